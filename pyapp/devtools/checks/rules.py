"""The rules that a table keeps, in words: from their names and definitions."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyapp.devtools.checks.catalog import Catalog, Constraint, Index, Trigger

_REFUSAL = re.compile(r"EXECUTE FUNCTION app\.refuse_change\('((?:[^']|'')*)'\)")
_EVENTS = re.compile(r"(BEFORE|AFTER|INSTEAD OF) (.+?) ON app\.")
_ON_DELETE = {
    "RESTRICT": "which cannot be deleted meanwhile",
    "CASCADE": "and goes when that goes",
    "SET NULL": "and forgets it when that goes",
}
_LISTED = re.compile(r"ARRAY\[(.+?)\]")

# What a check is called says what it is; these say it in full.
_PHRASES = (
    ("_is_amount", "{} is finite and not negative"),
    ("_is_finite", "{} is finite"),
    ("_not_negative", "{} is not negative"),
    ("_not_empty", "{} is not empty"),
    ("_positive", "{} is positive"),
    ("_shape", "{} has the right shape"),
    ("_length", "{} is not too long"),
    ("_known", "{} is one of {}"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by its name, which a violation reports, in words and in SQL."""

    name: str
    words: str
    sql: str


def list_rules(table: str, catalog: Catalog) -> Iterator[Rule]:
    """Yield a table's keys, references and checks, unique indexes, and triggers."""
    for constraint in catalog.constraints:
        if constraint.table_name == table:
            words = _constraint_words(constraint)
            yield Rule(constraint.name, words, constraint.definition)
    for index in catalog.indexes:
        is_rule = index.is_unique and not index.constraint_name
        if index.table_name == table and is_rule:
            yield Rule(index.name, _index_words(index), _index_sql(index))
    comments = {function.name: function.comment for function in catalog.functions}
    for trigger in catalog.triggers:
        if trigger.table_name == table:
            words = _trigger_words(trigger, comments[trigger.function_name] or "")
            yield Rule(trigger.name, words, _trigger_sql(trigger))


def _constraint_words(constraint: Constraint) -> str:
    columns = _join(constraint.columns)
    match constraint.kind:
        case "p":
            return f"each {columns} once; the key"
        case "u":
            return f"each {columns} once"
        case "f":
            action = re.search(r"ON DELETE (\w+(?: NULL)?)", constraint.definition)
            then = _ON_DELETE.get(action[1] if action else "", "")
            return f"{columns} names a row of {constraint.referenced_table}, {then}"
        case "c":
            return _check_words(constraint)
        case "x":
            return f"no two rows conflict in {columns}"


def _check_words(constraint: Constraint) -> str:
    """Return the name of a check as a sentence, with columns as they are written."""
    name = constraint.name.removeprefix(f"{constraint.table_name}_")
    rule = name.removesuffix("_check")
    listed = _LISTED.search(constraint.definition)
    values = re.findall(r"'([^']*)'", listed[1]) if listed else []
    for ending, phrase in _PHRASES:
        if rule.endswith(ending):
            subject = rule.removesuffix(ending)
            if subject not in constraint.columns:
                subject = subject.replace("_", " ")
            return phrase.format(subject, ", ".join(values))
    return rule.replace("_", " ")


def _index_words(index: Index) -> str:
    rule = index.name.removeprefix(f"{index.table_name}_").removesuffix("_idx")
    return f"each {rule.replace('_', ' ')} once"


def _index_sql(index: Index) -> str:
    return "UNIQUE " + index.definition.partition(" USING btree ")[2]


def _trigger_words(trigger: Trigger, comment: str) -> str:
    if refusal := _REFUSAL.search(trigger.definition):
        return f"refused: {refusal[1].replace(chr(39) * 2, chr(39))}"
    return comment.removeprefix("Trigger: ").removesuffix(".")


def _trigger_sql(trigger: Trigger) -> str:
    when = _EVENTS.search(trigger.definition)
    condition = re.search(r" WHEN \((.+)\) EXECUTE", trigger.definition)
    events = f"{when[1]} {when[2]}" if when else trigger.definition
    return events + (f" WHEN {condition[1]}" if condition else "")


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
