"""The pages can be found from one another: every link of a page leads to a file, and to a heading that is there."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
INDEX = ROOT / "docs" / "README.md"
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(page: Path) -> set[tuple[Path, str]]:
    """Return file and heading of every link that leads to a file of the project."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    found = {link.partition("#") for link in _LINK.findall(text) if "://" not in link}
    return {((page.parent / path).resolve() if path else page, heading) for path, _, heading in found}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    kept = ["".join(c for c in text.lower() if c in " -_" or unicodedata.category(c)[0] in "LN") for text in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert {path for path, _ in links(page) if not path.exists()} == set()
    with_heading = {(path, heading) for path, heading in links(page) if heading}
    assert {(path, heading) for path, heading in with_heading if heading not in anchors(path)} == set()


def test_every_page_is_linked_from_the_index() -> None:
    linked = {path for path, _ in links(INDEX)}
    assert {page.name for page in (ROOT / "docs").rglob("*.md") if page != INDEX and page not in linked} == set()
    assert INDEX in {path for path, _ in links(ROOT / "README.md")}
    assert INDEX in {path for path, _ in links(ROOT / "README.zh.md")}
