import re
import time

import pytest

from distsub.config import load_sweep, parse_sweep
from distsub.records import Observation
from distsub.runtime.intervals import Intervals
from distsub.runtime.progress import Progress, Reporter, bracket_text, left_text
from distsub.runtime.worker import failed
from distsub.search import TrialQueue, make_policy
from distsub.search.spending import Limit


def queue_of(path):
    sweep = load_sweep(path)
    return TrialQueue(sweep.searches(), make_policy(sweep.policy))


def play(queue, reporter, passes_from):
    with reporter:
        while (trial := queue.next(set(), 1)) is not None:
            reporter.started(trial)
            reporter.stepped(trial, 3, 40)
            score = 0.9 if trial.is_baseline or trial.d >= passes_from else 0.6
            row = Observation(trial, "finished", score=score, chance=0.5, wall_s=1.0)
            queue.observe(row)
            reporter.ended(row)


def test_lines_tell_every_trial_and_every_bracket(tiny_sweep, capsys):
    queue = queue_of(tiny_sweep)
    play(queue, Reporter(queue), 64)
    out = capsys.readouterr().out
    assert out.count("finished") == queue.findings()[0].num_trials + sum(f.num_trials - 4 for f in queue.findings()[1:])
    assert all(f"{search.name}: (16, 64] first passing d = 64" in out for search in queue.searches)


def test_lines_name_the_trial_by_the_start_of_its_id(tiny_sweep, capsys):
    queue = queue_of(tiny_sweep)
    reporter, trial = Reporter(queue), queue.searches[0].trials_at(16)[0]
    for tell in (
        reporter.cancelled,
        lambda t: reporter.crashed(t, "gone"),
        lambda t: reporter.ended(failed(t, OSError())),
    ):
        tell(trial)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(f"[{trial.id[:8]}]") for line in lines) == 3


def test_every_few_seconds_a_line_says_how_far_it_is_also_within_one_training(tiny_sweep, monkeypatch, capsys):
    monkeypatch.setattr("distsub.runtime.progress.EVERY_S", 0.05)
    queue = queue_of(tiny_sweep)
    reporter, trial = Reporter(queue), queue.next(set(), 1)

    def told():
        return [line.split("] progress ")[1] for line in capsys.readouterr().out.splitlines() if "] progress" in line]

    with reporter:
        time.sleep(0.3)
        assert set(told()) == {f"0/{reporter.progress.total} trainings, time left unknown"}
        reporter.started(trial)
        reporter.stepped(trial, 10, 40)
        time.sleep(0.3)
        lines = told()
        assert len(lines) >= 2
        assert re.fullmatch(
            r"0/\d+ trainings, about \d+ minutes? left; training full lr=0.001 s0 step 10/40", lines[-1]
        )
    time.sleep(0.2)
    assert told() == []  # the clock stands


@pytest.mark.parametrize("policy", ["bisection", "grid"])
@pytest.mark.parametrize("passes_from", [8, 64, 10_000])
def test_what_is_left_comes_to_nothing_and_is_never_more_than_may_be(tiny_text, policy, passes_from):
    sweep = parse_sweep(tiny_text.replace('"bisection"', f'"{policy}"'))
    queue = TrialQueue(sweep.searches(), make_policy(policy))
    most, ran = queue.max_trials(), 0
    assert sum(queue.most_left()) == most and queue.num_observed == 0
    while (trial := queue.next(set(), 1)) is not None:
        assert sum(queue.most_left()) >= 1 and queue.num_observed + 1 <= most
        score = 0.9 if trial.is_baseline or trial.d >= passes_from else 0.6
        row = Observation(trial, "finished", score=score, chance=0.5, wall_s=1.0)
        before = sum(queue.most_left())
        queue.observe(row)
        queue.observe(row)
        ran += 1
        assert queue.num_observed == ran and sum(queue.most_left()) <= before
    assert queue.most_left() == (0, 0)


def test_a_limit_is_part_of_what_is_left(tiny_sweep):
    sweep = load_sweep(tiny_sweep)
    queue = TrialQueue(sweep.searches(), make_policy("bisection"), Limit(trials=5))
    left = []
    while (trial := queue.next(set(), 1)) is not None:
        queue.next({trial.id}, 2)
        left.append(sum(queue.most_left()))
        queue.observe(Observation(trial, "finished", score=0.9, chance=0.5, wall_s=1.0))
    assert left == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(("slots", "minutes"), [(1, 40), (4, 10)])
def test_the_time_left_is_that_of_the_trainings_left_on_the_slots(tiny_sweep, slots, minutes, monkeypatch):
    queue = queue_of(tiny_sweep)
    monkeypatch.setattr(queue, "most_left", lambda: (0, 40))
    rows = [Observation(queue.searches[0].baseline[0], "finished", score=0.9, chance=0.5, wall_s=s) for s in (30, 90)]
    progress = Progress(queue, rows)
    progress.slots = slots
    assert progress.seconds_left() == 60 * minutes
    trial = queue.searches[0].trials_at(8)[0]
    progress.start(trial)
    progress.step(trial, 20, 40)
    assert progress.seconds_left() == pytest.approx(60 * minutes - 30 / slots)
    assert progress.text == f"0/40 trainings, about {minutes} minutes left"


def test_of_what_may_be_as_much_is_expected_as_the_plan_expects(tiny_sweep):
    queue = queue_of(tiny_sweep)
    baselines, probes = queue.most_left()
    assert Progress(queue, (), 0.5).left == baselines + round(probes / 2)


def test_time_left_in_words():
    said = [left_text(seconds) for seconds in (None, 0, 59, 61, 3600, 7200, 7300, 86400)]
    assert said == [
        "time left unknown",
        *("about 1 minute left", "about 1 minute left", "about 2 minutes left", "about 60 minutes left"),
        *("about 120 minutes left", "about 2 hours left", "about 24 hours left"),
    ]


def test_many_searches_do_not_cost_a_finding_each_time(tiny_sweep, monkeypatch):
    queue = queue_of(tiny_sweep)
    reporter, calls, clock = Reporter(queue), [], [0.0]
    monkeypatch.setattr("distsub.runtime.progress.time.monotonic", lambda: clock[0])
    real = queue.findings

    def slow():
        calls.append(clock[0])
        clock[0] += 1.0  # as if the searches were many
        return real()

    monkeypatch.setattr(queue, "findings", slow)
    for _ in range(100):
        reporter.changes()
        clock[0] += 0.5
    assert 2 <= len(calls) <= 5


def test_words(tiny_sweep, capsys):
    queue = queue_of(tiny_sweep)
    assert bracket_text(queue.findings()[0]) == "(-, -]"
    Reporter(queue).line("two\nlines \x1b[2J [bold]")
    assert capsys.readouterr().out.endswith("] two\\nlines \\x1b[2J [bold]\n")


def test_the_interval_is_told_while_it_shrinks(tiny_sweep, capsys):
    queue = queue_of(tiny_sweep)
    reporter = Reporter(queue)
    reporter.intervals.refresh = lambda fresh=False, real=reporter.intervals.refresh: real(True)  # whatever the time
    play(queue, reporter, 64)
    told = [line for line in capsys.readouterr().out.splitlines() if "estimate" in line]
    assert len(told) > 1 and "95%:" in told[-1] and told[-1] != told[0]
    assert all(reporter.intervals.text(search) in "".join(told) for search in queue.searches)


def test_fits_are_as_seldom_as_their_cost_asks(tiny_sweep, monkeypatch):
    queue = queue_of(tiny_sweep)
    clock, fits = [0.0], []
    monkeypatch.setattr("distsub.runtime.intervals.time.monotonic", lambda: clock[0])
    intervals = Intervals(queue.searches)
    monkeypatch.setattr(intervals, "_fit", lambda key: fits.append(clock.__setitem__(0, clock[0] + 1.0)) or "")
    for d in queue.searches[0].dims:
        intervals.add(Observation(queue.searches[0].trials_at(d)[0], "finished", score=0.7, chance=0.5))
        intervals.refresh()
        clock[0] += 5.0
    assert len(fits) <= 1 + len(queue.searches[0].dims) * 5 / 20
