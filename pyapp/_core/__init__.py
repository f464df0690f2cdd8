"""What runs a query: loader, runner, validation, connection and configuration."""
