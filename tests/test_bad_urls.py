"""Errors about DATABASE_URL are one line and never contain its password."""

import asyncio
from collections.abc import Callable

import pytest

from pyapp import aio
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp.errors import ConfigError, DatabaseUnavailableError, PyappError
from tests.bad_input.urls import UNREACHABLE, UNREADABLE


def error_text(call: Callable[[], object], error: type[PyappError]) -> str:
    with pytest.raises(error) as caught:
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
    given = error_text(lambda: connect(url), ConfigError)
    monkeypatch.setattr("pyapp._core.config.os.environ", {"DATABASE_URL": url})

    assert error_text(load_settings, ConfigError) == given
    assert "DATABASE_URL" in given
    assert redact_url(url) == "(unreadable DATABASE_URL)"


@pytest.mark.parametrize("name", UNREACHABLE)
def test_unreachable_url_is_named_without_its_password(name: str):
    url = UNREACHABLE[name]
    given = error_text(lambda: connect(url), DatabaseUnavailableError)

    assert redact_url(url) in given
    assert error_text(
        lambda: asyncio.run(aio.connect(url)), DatabaseUnavailableError
    ).startswith("no database at ")
