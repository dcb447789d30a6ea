"""The live table's picture over a zoo of sweeps and sizes of the terminal."""

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from distsub.config import parse_sweep
from distsub.records import Observation
from distsub.runtime.batch import Batch
from distsub.runtime.live import LiveReporter, reporter_for
from distsub.runtime.progress import Reporter
from distsub.runtime.worker import failed
from distsub.search import TrialQueue, make_policy

SWEEP = """
name = "zoo"
models = {models}
tasks = [{tasks}]
methods = {methods}
seeds = {seeds}
dims = [100, 200, 400, 800, 100000]
search = {{ etas = [0.3], learning_rate = 1e-5 }}
baseline = {{ learning_rates = [1e-5] }}
budget = {{ steps = 40 }}
"""
LONG = "a_question_about_tickets_that_customers_have_written_in_the_year_"
ZOO = {
    "one": {},
    "seeds": {"seeds": 3},
    "thirty": {"seeds": 5, "methods": '["did", "said"]', "tasks": ["sst2", "mrpc", "cola"]},
    "alike": {"methods": '["did", {name="did", projection="fastfood"}, {name="did", projection="sparse"}]'},
    "long": {"tasks": [f"{LONG}{year}" for year in (2023, 2024, 2025)], "seeds": 2},
    "markup": {"tasks": ["[bold]loud[/bold]", "[/mnt/x]", "[a1b2]", ":smile:"]},
    "wide": {"tasks": ["数据" * 20 + "一", "数据" * 20 + "二"]},
    "control": {"tasks": ["evil\x1b[2J\x1b]0;title\x07", "two\nlines", "back\u202ewards"]},
    "models": {"models": '["org/a", "other/a", "package:bert-base-uncased-with-a-long-name-and-more-behind-it"]'},
}
KINDS = pytest.mark.parametrize("kind", ZOO)


def queue_of(models='["package:nobody"]', tasks=("sst2",), methods='["did"]', seeds=1):
    """Tasks are renamed afterwards: what a sweep file may name is decided elsewhere."""
    known = ["sst2", "mrpc", "cola", "rte"][: len(tasks)]
    text = SWEEP.format(models=models, tasks=", ".join(f'"{each}"' for each in known), methods=methods, seeds=seeds)
    names = dict(zip(known, tasks, strict=True))

    def renamed(search):
        task = replace(search.task, name=names[search.task.name])
        return search.vary(task=task, baseline=tuple(trial.vary(task=task) for trial in search.baseline))

    return TrialQueue([renamed(search) for search in parse_sweep(text).searches()], make_policy("bisection"))


def play(queue, reporter, number, passes_from=400):
    """Run so many trials, and start the next."""
    for _ in range(number):
        trial = queue.next(set(), 1)
        if trial is None:
            break
        reporter.started(trial)
        reporter.stepped(trial, 3, 40)
        score = 0.9 if trial.is_baseline or trial.d >= passes_from else 0.6
        row = Observation(trial, "finished", score=score, chance=0.5, wall_s=30.0)
        queue.observe(row)
        reporter.ended(row)
    if (trial := queue.next(set(), 1)) is not None:
        reporter.started(trial)
    reporter.findings(fresh=True)


def drawn(reporter, width, height):
    sink = io.StringIO()
    console = Console(file=sink, width=width, height=height, force_terminal=False, color_system=None)
    console.print(reporter.picture(width, height))
    return sink.getvalue().splitlines()


@KINDS
@pytest.mark.parametrize("number", [0, 7, 1000])
@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (120, 50), (200, 60)])
def test_it_fits_and_tells_its_rows_apart(kind, number, width, height):
    queue = queue_of(**ZOO[kind])
    reporter = LiveReporter(queue, title="zoo")
    reporter._live.console = Console(file=io.StringIO(), width=width)
    reporter._is_open = True
    play(queue, reporter, number)
    lines = drawn(reporter, width, height)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert len(lines) < height
    start = next(index for index, line in enumerate(lines) if line.split()[-1] in ("state", "seeds"))
    rows = lines[start + 1 :][: min(len(queue.searches), height - start - 2)]
    end = (index for index, line in enumerate(rows) if "more searches" in line or "trainings" in line)
    rows = rows[: next(end, len(rows))]
    behind = next(lines[start].index(name) for name in ("bracket", "state") if name in lines[start])
    names = [line[:behind] for line in rows]
    if len(queue.searches) > 1:
        assert len(rows) > 1 and len(set(names)) == len(names)
    bar = next(line for line in lines if "trainings" in line)
    assert f" {reporter.progress.done}/{reporter.progress.total} trainings" in bar


@KINDS
def test_every_row_is_there_where_there_is_room(kind):
    queue = queue_of(**ZOO[kind])
    reporter = LiveReporter(queue)
    reporter._live.console = Console(file=io.StringIO(), width=200)
    play(queue, reporter, 1000)
    text = "\n".join(drawn(reporter, 200, 80))
    for index in range(min(24, len(queue.searches))):
        assert all(reporter.labels.parts(index)[part] in text for part in reporter.labels.varying)
    assert text.count("passes at d = 400") >= min(24, len(queue.searches))


def test_what_all_rows_have_in_common_stands_once_above():
    reporter = LiveReporter(queue_of(seeds=3), title="mine")
    caption, header, *_ = drawn(reporter, 80, 24)
    assert caption == "mine: task sst2, model nobody, method did" and header.split()[0] == "seed"


@pytest.mark.parametrize("error", ["[/mnt/x] is not there", "[a1b2]", "\x1b[2Jgone", "[bold", "a\nb"])
def test_an_error_is_shown_as_it_is(error):
    queue = queue_of()
    reporter = LiveReporter(queue)
    sink = io.StringIO()
    reporter._live.console = Console(file=sink, width=200)
    trial = queue.next(set(), 1)
    with reporter:
        reporter.crashed(trial, error)
        reporter.ended(replace(failed(trial, OSError()), error=error))
        reporter.line(error)
    shown = sink.getvalue()
    assert shown.count(error.replace("\x1b", "\\x1b").replace("\n", "\\n")) == 3
    assert "\x1b[2J" not in shown and shown.count(f"[{trial.id[:8]}]") == 2


def test_what_trains_and_what_waits():
    queue = queue_of(**ZOO["thirty"])
    reporter = LiveReporter(queue)
    reporter._is_open = True
    trials = [search.trials_at(d)[0] for search in queue.searches for d in (100, 200)]
    for trial in trials[:12]:
        reporter.progress.hand_out(trial)
    for trial in trials[:10]:
        reporter.started(trial)
    reporter.stepped(trials[0], 7, 40)
    lines = drawn(reporter, 80, 24)
    training = [line for line in lines if line.startswith("training")]
    assert len(training) == 3 and "step 7/40" in training[0] and training[1].endswith("starting")
    assert any(line.strip() == "and 7 more" for line in lines)
    assert any(line.startswith("waiting") and " 2 more" in line for line in lines)
    assert any(line.rstrip().endswith("tries d = 100, d = 200") for line in lines)
    reporter.cancelled(trials[0])
    assert "step 7/40" not in "\n".join(drawn(reporter, 80, 24))


def test_a_list_of_trials_without_searches_has_a_bar():
    trials = [trial for search in queue_of(seeds=2).searches for trial in search.trials_at(100)]
    batch = Batch(trials)
    reporter = LiveReporter(batch)
    play(batch, reporter, 1)
    assert reporter.progress.done == 1 and reporter.progress.total == 2
    [line] = drawn(reporter, 80, 24)
    assert "1 trainings with a result" in line


@pytest.mark.parametrize(("terminal", "kind"), [("xterm-256color", LiveReporter), ("dumb", Reporter)])
def test_a_table_only_where_a_cursor_moves(terminal, kind, monkeypatch):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    assert type(reporter_for(queue_of())) is kind
    assert type(reporter_for(queue_of(), plain=True)) is Reporter
