"""The configuration: stack.env, overridden by .env.local and the environment."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from pyapp._core.config import find_root, load_settings
from pyapp._core.database_url import redact_url
from pyapp.errors import ConfigError

EXAMPLE = Path(__file__).parents[1]
NAMES = (
    "ENVIRONMENT",
    "NEXT_PUBLIC_ENVIRONMENT",
    "DATABASE_URL",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_API_BASE",
    "PYAPP_LOG",
    "PYAPP_MARGIN",
    "PYAPP_REFERRAL_BONUS",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project like a fresh clone, with no variable in the environment."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, source in (
        ("stack.env", "stack.env"),
        (".env.local", ".env.local.example"),
    ):
        (tmp_path / name).write_bytes((EXAMPLE / source).read_bytes())
    return tmp_path


def test_example_works_unchanged(project: Path) -> None:
    settings = load_settings(project)

    assert settings.root == project
    assert settings.environment == settings.public_environment == "local"
    assert settings.database_url == "postgresql://pyapp:pyapp@localhost:54329/pyapp"
    assert settings.stripe_api_key is None
    assert settings.stripe_webhook_secrets == ()
    assert settings.margin == Decimal("0.2")
    assert settings.referral_bonus == Decimal(500)


def test_every_line_of_the_example_works_uncommented(project: Path) -> None:
    file = project / ".env.local"
    text = re.sub(r"^# (?=[A-Z_]+=)", "", file.read_text(), flags=re.MULTILINE)
    file.write_text(text)

    settings = load_settings(project)

    assert settings.stripe_api_key == "sk_test_..."
    assert settings.stripe_webhook_secrets == ("whsec_...",)
    assert settings.stripe_api_base == "http://localhost:12111"
    assert (settings.margin, settings.referral_bonus) == (Decimal("0.2"), Decimal(500))
    assert settings.log_format == "text"


def test_env_local_overrides_stack_env_and_the_environment_both(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / ".env.local").open("a") as file:
        file.write("\nENVIRONMENT=test\nPYAPP_MARGIN=0.5\nSTRIPE_API_BASE=http://a\n")
    monkeypatch.setenv("PYAPP_MARGIN", "0.25")
    monkeypatch.setenv("STRIPE_API_BASE", "")

    settings = load_settings(project)

    assert settings.environment == "test"
    assert settings.margin == Decimal("0.25")
    assert settings.stripe_api_base is None


def test_webhook_secrets_are_separated_by_commas(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_new, whsec_old,")

    assert load_settings(project).stripe_webhook_secrets == ("whsec_new", "whsec_old")


def test_password_keeps_dollars_and_quotes(project: Path) -> None:
    url = "postgresql://pyapp:a${HOME}%40b@localhost:54329/pyapp"
    (project / ".env.local").write_text(f"DATABASE_URL='{url}'\n", encoding="utf-8-sig")

    assert load_settings(project).database_url == url


def test_root_is_the_nearest_folder_with_a_stack_env(project: Path) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)

    assert find_root(below) == project
    assert find_root(project.parent) == project.parent


def test_error_for_a_missing_url_has_the_remedy(project: Path) -> None:
    (project / ".env.local").unlink()
    with pytest.raises(
        ConfigError, match=r"DATABASE_URL is not set .*; set it, or write it into"
    ):
        load_settings(project)

    (project / ".env.local.example").touch()
    with pytest.raises(ConfigError, match=r"cp .env.local.example .env.local$"):
        load_settings(project)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://a:secret@b/c", "postgresql://a:%secret@b/c", "secret"]
)
def test_invalid_url_is_refused_and_not_quoted(
    project: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        load_settings(project)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["PYAPP_MARGIN", "PYAPP_REFERRAL_BONUS"])
@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity", "20%"])
def test_invalid_amount_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
        load_settings(project)


def test_bonus_above_the_limit_of_a_referral_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYAPP_REFERRAL_BONUS", "1000001")

    with pytest.raises(ConfigError, match="from 0 to 1000000"):
        load_settings(project)


def test_file_that_is_not_text_is_refused(project: Path) -> None:
    (project / ".env.local").write_bytes(b"\xff\xfeD")

    with pytest.raises(ConfigError, match=r"\.env\.local: it is not UTF-8"):
        load_settings(project)


def test_secrets_are_not_in_the_repr(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_test_hunter2")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_hunter2")

    shown = repr(load_settings(project))

    assert "hunter2" not in shown
    assert "pyapp:pyapp" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h:1/d", "postgresql://u@h:1/d"),
        ("postgresql://u@h/d?password=pass", "postgresql://u@h/d"),
        ("host=h user='a b' password=pass dbname=d", "postgresql://a%20b@h/d"),
        ("postgresql://u:pass@[::1]:5/d", "postgresql://u@[::1]:5/d"),
        ("postgresql://u:pass@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg"),
        ("postgresql://u:pa%ss@h/d", "(unreadable DATABASE_URL)"),
    ],
)
def test_redacted_url_has_no_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown
