"""The pages: every link leads somewhere, every page is in the index, the README is short."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "cluster/README.md")), *DOCS]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(page):
    """Give the targets of a page's links and pictures, those in blocks of code left out."""
    text = re.sub(r"`[^`\n]*`", "code", FENCE.sub("", page.read_text()))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page):
    """Give the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def dead(page, target):
    """Say whether a link of a page leads nowhere; links out of the repository are not looked at."""
    if "://" in target:
        return False
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return True
    return bool(anchor) and file.suffix == ".md" and anchor not in anchors(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    assert [target for target in links(page) if dead(page, target)] == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](none.md) [y](#a-b) [z](#c) `[q](gone.md)`\n")
    assert [target for target in links(page) if dead(page, target)] == ["none.md", "#c"]


def test_every_page_is_in_the_index():
    index = ROOT / "docs/index.md"
    listed = {(index.parent / target).resolve() for target in links(index)}
    assert {*DOCS, ROOT / "cluster/README.md"} - {index} == listed


def test_the_menu_of_the_site_has_every_page_in_the_order_of_the_index():
    menu = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    shown = [
        page for entry in menu for pages in entry.values() for page in ([pages] if isinstance(pages, str) else pages)
    ]
    index = ROOT / "docs" / "index.md"
    listed = [str((index.parent / target).resolve().relative_to(ROOT)) for target in links(index)]
    assert [page for page in shown if page in listed] == listed


def test_every_page_that_the_code_names_exists():
    files = [*(ROOT / "distsub").rglob("*.py"), *(ROOT / "sweeps").glob("*.toml")]
    text = "\n".join(file.read_text() for file in files)
    named = set(re.findall(r"docs/[\w-]+\.md", text))
    assert named and {name for name in named if not (ROOT / name).exists()} == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_the_page_of_settings_lists_every_number_with_its_value():
    from distsub.estimate.settings import EstimateSettings
    from distsub.preflight.settings import RehearsalSettings
    from distsub.search.settings import SearchSettings

    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (measured|assumed|technical) \| \S", (ROOT / "docs/settings.md").read_text(), re.M
    )
    records = (SearchSettings(), EstimateSettings(), RehearsalSettings())
    values = {name: value for record in records for name, value in dataclasses.asdict(record).items()}
    shown = {name: str(list(value) if isinstance(value, tuple) else value) for name, value in values.items()}
    assert {name: value for name, value, _ in rows} == shown
