"""Every Python block of the documentation runs on its own, twice."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOPICS = ["messages", "prices", "quota", "referrals", "sessions", "usage", "users"]


def blocks_of(page: Path) -> list[tuple[int, str]]:
    """Return the Python blocks of *page*, each with its first line number."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


PAGES = [page for page in sorted(DOCS.glob("*.md")) if blocks_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_of_a_page_run(
    database: str, monkeypatch: pytest.MonkeyPatch, page: Path, tmp_path: Path
):
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)
    for line, block in blocks_of(page) * 2:
        # Tracebacks then show the line numbers of the page.
        code = compile("\n" * line + block, str(page), "exec")
        exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("topic", TOPICS)
def test_topic_has_a_page_that_begins_with_a_script(topic: str):
    (_, script), *_ = blocks_of(DOCS / f"{topic}.md")

    lines = [line for line in script.splitlines() if line.strip()]
    assert 8 <= len(lines) <= 14


@pytest.mark.parametrize(
    "page",
    sorted(
        page
        for folder in ("", "docs/", "migrations/")
        for page in ROOT.glob(f"{folder}*.md")
    ),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_of_a_page_lead_to_files_and_headings(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page

        assert linked.is_file(), target
        assert not anchor or anchor in anchors_of(linked), target


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings, as Markdown renderers derive them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in headings
    }
