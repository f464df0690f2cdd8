"""What a developer needs around the schema: servers, migrations, comparison, docs."""
