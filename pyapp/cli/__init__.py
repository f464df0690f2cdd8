"""The command `pyapp`."""

import signal
import sys

_received = signal.SIGINT


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a failure ends it with one line on stderr.

    The exit status is 1 for an error, 2 for a wrong command line, 130 after Ctrl-C and
    143 after SIGTERM.
    """
    try:
        if arguments is None:
            # A first process of a container would otherwise ignore the signal.
            signal.signal(signal.SIGTERM, _terminate)
        # Imported here, because Ctrl-C can arrive during this half second, too.
        from pyapp.cli.run import run

        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        reason, status = stopped()
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(status)


def stopped() -> tuple[str, int]:
    """Return the last line and the exit status of a command that a signal stopped."""
    name = "Ctrl-C" if _received == signal.SIGINT else "SIGTERM"
    return f"stopped by {name}; work reported as done is kept", 128 + _received


def _terminate(*_: object) -> None:
    global _received
    _received = signal.SIGTERM
    raise KeyboardInterrupt
