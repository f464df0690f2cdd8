"""No DATABASE_URL, however wrong, is quoted with its password; one line says why."""

import asyncio
from collections.abc import Callable

import pytest

from pyapp import aio
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp.errors import ConfigError, DatabaseUnavailableError, PyappError
from tests.bad_input.urls import NOBODY_THERE, UNREADABLE


def refusal(call: Callable[[], object], kind: type[PyappError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert "secret" not in text
    assert "word" not in text.replace("user:password@host", "").replace("u:p", "")
    return text


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_url_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    url = UNREADABLE[name]
    given = refusal(lambda: connect(url), ConfigError)
    monkeypatch.setattr("pyapp._core.config.os.environ", {"DATABASE_URL": url})

    assert refusal(load_settings, ConfigError) == given
    assert "DATABASE_URL" in given
    assert redact_url(url) == "(unreadable DATABASE_URL)"


@pytest.mark.parametrize("name", NOBODY_THERE)
def test_url_where_nobody_is_is_named_without_its_password(name: str):
    url = NOBODY_THERE[name]
    given = refusal(lambda: connect(url), DatabaseUnavailableError)

    assert redact_url(url) in given
    assert refusal(
        lambda: asyncio.run(aio.connect(url)), DatabaseUnavailableError
    ).startswith("no database at ")
