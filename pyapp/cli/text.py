"""Text for a terminal, which need not be there."""


def printable(text: str) -> str:
    """Return *text* without what would steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
