"""The command `pyapp`."""

import sys

STOPPED = "stopped by Ctrl-C; what was reported as done stays"
STOPPED_STATUS = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can act on ends it with one line.

    The status is then 1, or 2 if the line itself was wrong, or 130 after Ctrl-C.
    """
    try:
        # Here, because it takes half a second, in which Ctrl-C may come, too.
        from pyapp.cli.run import run

        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(f"error: {STOPPED}", file=sys.stderr)
        sys.exit(STOPPED_STATUS)
