"""The site: built strictly out of the pages, every link leads somewhere, nothing comes from the network."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_docs import ROOT

import distsub

pytestmark = pytest.mark.slow


class Built(HTMLParser):
    """The ids of a page, and where it points: links, and what a browser loads by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids, self.targets, self.loads = {""}, [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        target = given.get("href") or given.get("src")
        if target:
            (self.targets if tag == "a" else self.loads).append(target)


CONFIG = (ROOT / "zensical.toml").read_text().replace('paths = ["."]', f'paths = ["{ROOT}"]')


def build(folder):
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason="zensical is not installed")
    folder = tmp_path_factory.mktemp("site")
    [what] = re.findall(r"cp -r (.*) build/pages/", (ROOT / "Makefile").read_text())
    pages = folder / "build" / "pages"
    pages.mkdir(parents=True)
    for name in what.split():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, pages / name)
    (folder / "zensical.toml").write_text(CONFIG)
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_every_link_leads_somewhere_and_nothing_comes_from_the_network(site):
    pages = {page: Built(page) for page in site.rglob("*.html")}
    assert len(pages) > 20
    dead, remote = [], []
    for page, built in pages.items():
        for target in [*built.targets, *built.loads]:
            if re.match(r"[a-z]+:|//", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (
                (site if path.startswith("/") else page.parent).joinpath(path.lstrip("/")).resolve() if path else page
            )
            file = file / "index.html" if file.is_dir() else file
            known = pages.get(file)
            if page.name != "404.html" and (not file.exists() or (known and anchor not in known.ids)):
                dead.append((str(page.relative_to(site)), target))
        remote += [target for target in built.loads if re.match(r"https?:|//", target)]
    assert dead == [] and remote == []


def test_the_reference_has_the_docstring_of_every_public_name(site):
    text = (site / "docs" / "api.html").read_text()
    headed = set(re.findall(r'<h3 id="distsub\.([^"]+)"', text))
    homes = {getattr(distsub, name).__qualname__ for name in distsub.__all__ if name != "__version__"}
    assert {name.rpartition(".")[2] for name in headed} == homes


@pytest.mark.parametrize(
    ("link", "broken"),
    [("[x](d90.md#d90)", False), ("[x](none.md)", True), ("[x](d90.md#nowhere)", True), ("::: distsub.Nope", True)],
)
def test_a_broken_link_ends_the_build(tmp_path, link, broken):
    pytest.importorskip("zensical", reason="zensical is not installed")
    (tmp_path / "zensical.toml").write_text(re.sub(r"(?m)^nav = \[.*?^\]$", "", CONFIG, flags=re.DOTALL))
    pages = tmp_path / "build" / "pages"
    pages.mkdir(parents=True)
    (pages / "d90.md").write_text("# d90\n")
    (pages / "index.md").write_text(f"# Start\n\n{link}\n")
    assert (build(tmp_path).returncode != 0) == broken
