"""The report in a real browser, on a phone, a desk and paper, light and dark: nothing overflows, all can be read."""

import shutil
from dataclasses import replace

import pyarrow as pa
import pytest

from distsub import cli
from distsub.config import parse_sweep
from distsub.learned.schema import TABLES
from distsub.learned.store import write_part
from distsub.results import Store
from distsub.search import TrialQueue, make_policy
from distsub.search.synthetic import Curve

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update")

VIEWS = {
    f"{width} {scheme}": {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    for width in (390, 1280)
    for scheme in ("light", "dark")
}
VIEWS["paper"] = {"viewport": {"width": 688, "height": 1000}}  # A4 at 96 dots an inch, less its margins

FAULTS = """() => {
  const found = [], seen = each => each.getBoundingClientRect();
  for (const each of document.querySelectorAll("details")) each.open = true;
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`the page is ${root.scrollWidth} wide`);
  for (const each of document.querySelectorAll("table, pre, svg, figure, p, li, h1, h2, h3, dd, dt")) {
    const box = seen(each.closest(".wide") ?? each);
    if (box.right > innerWidth + 1 || box.left < -1) found.push(`${each.tagName} ${box.left} to ${box.right}`);
    if (!each.closest(".wide") && each.tagName === "TABLE") found.push("a table without a box to scroll in");
  }
  for (const each of document.querySelectorAll("td.number")) {
    const text = document.createRange();
    text.selectNodeContents(each);
    if (text.getClientRects().length > 1) found.push(`the number ${each.textContent} is broken`);
  }
  const light = colour => {
    const linear = v => v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const readable = (each, colour, size) => {
    const ink = light(colour), contrast = Math.max(ink, paper) / Math.min(ink, paper);
    if (contrast < 3) found.push(`"${each.textContent}" ${colour} has a contrast of ${contrast.toFixed(2)}`);
    if (size < 8.5) found.push(`"${each.textContent}" is ${size.toFixed(1)} px high`);
  };
  for (const each of document.querySelectorAll("p, li, dt, dd, td, th, h1, h2, h3, figcaption, li span"))
    readable(each, getComputedStyle(each).color, parseFloat(getComputedStyle(each).fontSize));
  for (const svg of document.querySelectorAll("svg")) {
    const frame = seen(svg), texts = [...svg.querySelectorAll("text")], scale = frame.width / svg.viewBox.baseVal.width;
    for (const [at, each] of texts.entries()) {
      const one = seen(each), name = `"${each.textContent}" of ${svg.ariaLabel}`, style = getComputedStyle(each);
      readable(each, style.fill, parseFloat(style.fontSize) * scale);
      if (one.left < frame.left - 1 || one.right > frame.right + 1) found.push(`${name} is cut`);
      if (one.top < frame.top - 1 || one.bottom > frame.bottom + 1) found.push(`${name} is cut`);
      for (const other of texts.slice(at + 1)) {
        const two = seen(other);
        const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
        const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
        if (wide > 1 && high > 0.3 * Math.min(one.height, two.height))
          found.push(`${name} and "${other.textContent}" overlap`);
      }
    }
  }
  return found;
}"""
"""What is wrong with a page, once all that is folded is open."""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield found
        found.close()


def written(folder):
    with pytest.raises(SystemExit):
        cli.main(["report", str(folder / "out")])
    return folder / "out" / "report" / "report.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_text, warm):
    """A sweep that was trained."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "tiny.toml").write_text(tiny_text.replace("seeds = 2", "seeds = 1").replace('"said", ', ""))
    done = warm.run("run", folder / "tiny.toml", "--out", folder / "out", "--backend", "inline")
    assert done.returncode == 0, done.stderr
    return written(folder)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory, tiny_text):
    """Many searches under long names, made up: failures, methods without a trial, analyses of learned subspaces."""
    folder = tmp_path_factory.mktemp("crowded" + "-and-of-a-long-path" * 4)
    head, task = tiny_text.split("[[tasks]]")
    task, rest = task.split("[search]")
    names = ["cls", "a-task-with-a-name-that-is-as-long-as-people-make-them-when-they-hurry", "<i>$x_1$</i> 漢 & co"]
    tasks = "".join(f"[[tasks]]{task}".replace('"tiny"', f'"{name}"', 1) for name in names)
    text = head.replace("seeds = 2", "seeds = 5").replace("256]", "256, 1024, 4096, 16384]") + tasks + "[search]" + rest
    sweep = parse_sweep(text, folder, "tiny.toml")
    store = Store.create(folder / "out", text, sweep.fingerprint, str(folder))
    queue = TrialQueue(sweep.searches(), make_policy(sweep.policy))
    for number in range(60):
        if (trial := queue.next(set(), 1)) is None:
            break
        row = replace(Curve(middle=5.0, eta_best=1.0, rate_best=3e-3).observe(trial), peak_bytes=3 * 2**30, wall_s=99.5)
        if trial.d and number % 7 == 0:
            row = replace(row, status="diverged", score=None, predicted=(), target=())
        if trial.d and number % 11 == 0:
            row = replace(row, status="error", score=None, predicted=(), target=(), error="CUDA: " + "no room. " * 40)
        queue.observe(row)
        store.write(row)
    for name in ("modes", "outlier_summaries", "transfer", "ablations"):
        values = {
            field.name: [1.0] * 6 if pa.types.is_list(field.type) else 0.123456 if pa.types.is_floating(field.type)
            else 12345678 if pa.types.is_integer(field.type) else f"{field.name} of a certain length"
            for field in TABLES[name]
        }  # fmt: skip
        write_part(store.files, name, "made", pa.Table.from_pylist([values] * 14).cast(TABLES[name]))
    return written(folder)


@pytest.fixture(params=["small", "crowded"])
def page(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_overflows_is_cut_or_cannot_be_read(browser, page, view):
    context = browser.new_context(**VIEWS[view])
    tab = context.new_page()
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    if view == "paper":
        tab.emulate_media(media="print")
    assert tab.evaluate(FAULTS) == []
    assert asked == [page.as_uri()], "a page that needs nothing else"
    context.close()


def test_a_click_on_a_head_sorts_and_what_is_missing_stays_last(browser, crowded):
    tab = browser.new_page()
    tab.goto(crowded.as_uri())
    box = tab.locator("details", has=tab.locator("th", has_text="trial_id")).last
    box.locator("summary").click()
    at = "table.querySelector('[aria-sort]').cellIndex"
    column = f"table => [...table.rows].slice(1).map(row => row.cells[{at}].innerText)"
    for clicks, falling in enumerate((False, True), 1):
        box.get_by_role("columnheader", name="score").click()
        cells = box.locator("table").evaluate(column)
        numbers = [float(cell) for cell in cells if cell != "-"]
        assert len(numbers) > 5 and numbers == sorted(numbers, reverse=falling), clicks
        assert set(cells[len(numbers) :]) == {"-"}
    tab.close()
