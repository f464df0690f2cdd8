"""The spelling of drafted statements: as the style of this project wants it."""

import re

WIDTH = 88

_QUOTED = re.compile(r'"([a-z_][a-z0-9_]*)"')
_STRINGS = re.compile(r"('(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\2\$)", re.DOTALL)
_KEYWORDS = re.compile(
    r"\b(add|alter|as|attach|cascade|check|column|constraint|create|data|default"
    r"|detach|drop|expression|foreign|function|generated|identity|if|index|is|key"
    r"|not|null|on|or|partition|primary|references|replace|set|stored|table|trigger"
    r"|type|unique|using|valid|validate|view|always|exists)\b"
)


def tidy(statement: str) -> str:
    """Return *statement* in our spelling: no needless quotes, keywords upper."""
    parts = _STRINGS.split(statement.strip())
    text = "".join(
        part if n % 3 == 1 else _KEYWORDS.sub(lambda found: found[0].upper(), part)
        for n, part in enumerate(parts)
        if n % 3 != 2
    )
    text = "".join(
        part if part.startswith(("'", "$")) else _QUOTED.sub(r"\1", part)
        for n, part in enumerate(_STRINGS.split(text))
        if n % 3 != 2
    )
    text = text.replace(" IF EXISTS", "")
    if len(text) > WIDTH:
        text = re.sub(r"^(ALTER TABLE \S+) ", r"\1\n    ", text)
    return text


def alter_table(table: str, action: str) -> str:
    """Return the statement that does *action*, one line or more, to *table*."""
    lines = "\n    ".join(action.splitlines())
    text = f"ALTER TABLE app.{table}\n    {lines};"
    if _is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
        text = text.replace(" GENERATED ALWAYS", "\n    GENERATED ALWAYS")
    return text


def not_valid(add_constraint: str) -> str:
    """Return the statement that leaves the rows there already unchecked."""
    text = f"{add_constraint.removesuffix(';')} NOT VALID;"
    if _is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
    return (
        text.replace(" NOT VALID;", "\n        NOT VALID;") if _is_wide(text) else text
    )


def concurrent(create_index: str) -> str:
    """Return the statement that builds the index while others write."""
    text = re.sub(
        r"^CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)",
        lambda found: f"CREATE {found[1] or ''}INDEX CONCURRENTLY ",
        create_index,
        flags=re.MULTILINE,
    )
    return text.replace(" ON app.", "\nON app.", 1) if _is_wide(text) else text


def _is_wide(text: str) -> bool:
    return any(len(line) > WIDTH for line in text.splitlines())
