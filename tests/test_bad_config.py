"""An invalid configuration is one line that names the variable and no secret."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pyapp._core.config import load_log_format, load_settings
from pyapp.errors import ConfigError
from pyapp.stripe_sync import make_client
from tests.bad_input.values import ESCAPE, TEXTS
from tests.support import run_cli

URL = "DATABASE_URL=postgresql://u:secret-word@localhost:1/x\n"
AMOUNTS = (
    "many",
    "-1",
    "-0.0001",
    "NaN",
    "sNaN",
    "Infinity",
    "-Infinity",
    "1e16",
    "1e400",
    "1e999999",
    "1e-400",
    "1,5",
    "0x10",
    "1 000",
    "9" * 5001,
    "0.2; --",
    "%s",
    ESCAPE,
)
FORMATS = ("xml", "JSON", "text json", "'", ESCAPE, "x" * 10_000)
# Contents of .env.local, and whether DATABASE_URL is read from them.
FILES: Mapping[str, tuple[bytes, bool]] = {
    "nothing": (b"", False),
    "bytes that are not UTF-8": (b"A=\xff\xfe\n" + URL.encode(), False),
    "UTF-16": (URL.encode("utf-16"), False),
    "NUL": (b"\0\0\0\n" + URL.encode(), True),
    "no equals sign": (b"name\n" + URL.encode(), True),
    "an open quote": (b"A='x\n" + URL.encode(), True),
    "only quotes": (b"DATABASE_URL=''\n", False),
    "JSON": (b'{"DATABASE_URL": "secret-word"}', False),
    "a byte order mark": (b"\xef\xbb\xbf" + URL.encode(), True),
    "carriage returns": (URL.replace("\n", "\r\n").encode(), True),
    "an escape sequence": (b"\x1b[2J=1\n" + URL.encode(), True),
    "ten megabytes": (b"#" + b"x" * 10_000_000 + b"\n" + URL.encode(), True),
    "ten thousand names": (b"".join(b"A%d=1\n" % n for n in range(10_000)), False),
    "no end of line": (URL.strip().encode(), True),
    "a name twice": (b"DATABASE_URL=x\n" + URL.encode(), True),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a stack.env, and an empty environment."""
    monkeypatch.setattr("pyapp._core.config.os.environ", {})
    (tmp_path / "stack.env").write_text("ENVIRONMENT=local\n")
    (tmp_path / ".env.local").write_text(URL)
    return tmp_path


def refusal(project: Path, setting: str) -> str:
    with (project / ".env.local").open("a", encoding="utf-8") as file:
        file.write(setting + "\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(project)
    text = str(caught.value)
    assert text.isprintable()
    assert "secret" not in text
    assert len(text) < 200
    return text


@pytest.mark.parametrize("name", ["PYAPP_MARGIN", "PYAPP_REFERRAL_BONUS"])
@pytest.mark.parametrize("value", AMOUNTS)
def test_invalid_amount_is_reported(project: Path, name: str, value: str):
    assert refusal(project, f"{name}={value!r}").startswith(f"{name} is ")


@pytest.mark.parametrize("value", FORMATS)
def test_invalid_log_format_is_reported(project: Path, value: str):
    text = refusal(project, f'PYAPP_LOG="{value}"')

    assert text.startswith("PYAPP_LOG is ")
    with pytest.raises(ConfigError):
        load_log_format(project)


@pytest.mark.parametrize("name", FILES)
def test_broken_file_is_read_or_reported(project: Path, name: str):
    content, is_readable = FILES[name]
    (project / ".env.local").write_bytes(content)
    try:
        found = load_settings(project).database_url
    except ConfigError as exc:
        found = f"refused: {exc}"

    assert found.isprintable()
    if is_readable:
        assert f"DATABASE_URL={found}\n" == URL
    else:
        assert found.startswith("refused: ")
        assert "secret" not in found


@pytest.mark.parametrize("name", ["stack.env", ".env.local"])
def test_folder_instead_of_a_file_is_no_traceback(project: Path, name: str):
    (project / name).unlink()
    (project / name).mkdir()

    if name == "stack.env":
        assert load_settings(project).environment is None
    else:
        with pytest.raises(ConfigError, match="DATABASE_URL is not set"):
            load_settings(project)


@pytest.mark.parametrize("key", [text for text in TEXTS.values() if "\0" not in text])
def test_stripe_key_is_never_quoted(
    project: Path, monkeypatch: pytest.MonkeyPatch, key: str
):
    values = {
        "STRIPE_SECRET_KEY": f"sk_test_secret-word{key}",
        "DATABASE_URL": URL[13:],
    }
    monkeypatch.setattr("pyapp._core.config.os.environ", values)
    monkeypatch.chdir(project)
    settings = load_settings(project)
    make_client(settings)
    code, out, err = run_cli("stripe", "reconcile", "--dry-run")

    assert (code, out) == (1, "")
    assert err.startswith("error: no database at ")
    assert "secret" not in repr(settings) + err
