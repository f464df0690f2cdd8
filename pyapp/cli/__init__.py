"""The command `pyapp`."""

import sys

STOPPED = "stopped by Ctrl-C; work reported as done is kept"
STOPPED_STATUS = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a failure ends it with one line on stderr.

    The exit status is 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
    """
    try:
        # Imported here, because Ctrl-C can arrive during this half second, too.
        from pyapp.cli.run import run

        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(f"error: {STOPPED}", file=sys.stderr)
        sys.exit(STOPPED_STATUS)
