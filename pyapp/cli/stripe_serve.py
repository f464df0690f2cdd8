"""`pyapp stripe serve`: Stripe's webhooks, and metrics on a port of their own."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from pyapp._core.config import load_settings
from pyapp._core.connection import pool
from pyapp.cli.listening import (
    check_address,
    metrics_served,
    parse_address,
    require_prometheus,
)
from pyapp.cli.logs import start_logging
from pyapp.cli.stripe import make_optional_client
from pyapp.errors import ConfigError, MissingExtraError
from pyapp.stripe_sync.client import find_livemode

if TYPE_CHECKING:
    from pyapp._core.connection_types import Pool
    from pyapp.stripe_sync.metrics import ServerMetrics
    from pyapp.stripe_sync.server import ConnectionCounts


def register(app: typer.Typer) -> None:
    """Add the command to `pyapp stripe`."""
    app.command()(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one."),
    ] = 8000,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT", help="Serve /metrics there; HOST is 127.0.0.1."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log JSON lines.")] = False,
) -> None:
    """Serve Stripe's webhooks at /stripe/webhook until SIGTERM or Ctrl-C."""
    try:
        import uvicorn  # noqa: F401

        from pyapp.stripe_sync import server
        from pyapp.stripe_sync.web import create_app
    except ModuleNotFoundError as exc:
        if exc.name in {"anyio", "h11", "starlette", "uvicorn"}:
            raise MissingExtraError("web") from exc
        raise
    start_logging("text", is_json=as_json)
    address = None if metrics is None else parse_address("--metrics", metrics)
    if address:
        require_prometheus()
    settings = load_settings()
    if not settings.stripe_webhook_secrets:
        raise ConfigError(
            "STRIPE_WEBHOOK_SECRET is not set; set it, or write it into .env.local"
        )
    client = make_optional_client(settings)
    check_address(host, port)
    with pool(settings.database_url) as connections:
        counts = server.ConnectionCounts()
        measured = _measure(connections, counts) if address else None
        app = create_app(
            connections,
            settings.stripe_webhook_secrets,
            client,
            livemode=find_livemode(settings),
            on_delivery=measured.observe if measured else None,
        )
        with ExitStack() as stack:
            if measured and address:
                stack.enter_context(metrics_served(measured.registry, *address))
            server.serve(app, host, port, counts)


def _measure(connections: "Pool", counts: "ConnectionCounts") -> "ServerMetrics":
    from pyapp.stripe_sync.metrics import ServerMetrics

    return ServerMetrics(connections, counts)
