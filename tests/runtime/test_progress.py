import io

from rich.console import Console

from distsub.config import load_sweep
from distsub.finetune.train import failed
from distsub.runtime.intervals import Intervals
from distsub.runtime.progress import LiveReporter, Reporter, bracket_text, reporter_for, trial_text
from distsub.search import Board, make_policy
from distsub.trial import Observation


def board_of(path):
    sweep = load_sweep(path)
    return Board(sweep.searches(), make_policy(sweep.policy))


def play(board, reporter, passes_from):
    with reporter:
        while (trial := board.next(set(), 1)) is not None:
            reporter.started(trial)
            reporter.stepped(trial, 3, 40)
            score = 0.9 if trial.is_baseline or trial.d >= passes_from else 0.6
            row = Observation(trial, "finished", score=score, chance=0.5, wall_s=1.0)
            board.observe(row)
            reporter.ended(row)


def test_lines_tell_every_trial_and_every_bracket(tiny_sweep, capsys):
    board = board_of(tiny_sweep)
    play(board, Reporter(board), 64)
    out = capsys.readouterr().out
    assert out.count("finished") == board.findings()[0].num_trials + sum(f.num_trials - 6 for f in board.findings()[1:])
    assert all(f"{search.name}: (16, 64] d90 = 64" in out for search in board.searches)


def test_lines_name_the_trial_by_the_start_of_its_id(tiny_sweep, capsys):
    board = board_of(tiny_sweep)
    reporter, trial = Reporter(board), board.searches[0].trials_at(16)[0]
    for tell in (
        reporter.cancelled,
        lambda t: reporter.crashed(t, "gone"),
        lambda t: reporter.ended(failed(t, OSError())),
    ):
        tell(trial)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(f"[{trial.id[:8]}]") for line in lines) == 3


def test_the_live_table_has_one_line_per_search(tiny_sweep):
    board = board_of(tiny_sweep)
    reporter = LiveReporter(board)
    sink = Console(file=io.StringIO(), width=160, force_terminal=False)
    reporter._live.console = sink
    play(board, reporter, 64)
    sink.print(reporter._table())
    shown = sink.file.getvalue()
    assert all(search.name in shown for search in board.searches) and "d90 = 64" in shown and "elapsed" in shown


def test_many_searches_do_not_cost_a_finding_each_time(tiny_sweep, monkeypatch):
    board = board_of(tiny_sweep)
    reporter, calls, clock = Reporter(board), [], [0.0]
    monkeypatch.setattr("distsub.runtime.progress.time.monotonic", lambda: clock[0])
    real = board.findings

    def slow():
        calls.append(clock[0])
        clock[0] += 1.0  # as if the searches were many
        return real()

    monkeypatch.setattr(board, "findings", slow)
    for _ in range(100):
        reporter.changes()
        clock[0] += 0.5
    assert 2 <= len(calls) <= 5


def test_words(tiny_sweep, monkeypatch):
    board = board_of(tiny_sweep)
    assert bracket_text(board.findings()[0]) == "(-, -]"
    assert trial_text(board.searches[0].trials_at(8)[0]) == "tiny said d=8 eta=1 s0"
    assert type(reporter_for(board, plain=True)) is Reporter


def test_the_interval_is_told_while_it_shrinks(tiny_sweep, capsys):
    board = board_of(tiny_sweep)
    reporter = Reporter(board)
    reporter.intervals.refresh = lambda fresh=False, real=reporter.intervals.refresh: real(True)  # whatever the time
    play(board, reporter, 64)
    told = [line for line in capsys.readouterr().out.splitlines() if "estimate" in line]
    assert len(told) > 1 and "95%:" in told[-1] and told[-1] != told[0]
    assert all(reporter.intervals.text(search) in "".join(told) for search in board.searches)


def test_fits_are_as_seldom_as_their_cost_asks(tiny_sweep, monkeypatch):
    board = board_of(tiny_sweep)
    clock, fits = [0.0], []
    monkeypatch.setattr("distsub.runtime.intervals.time.monotonic", lambda: clock[0])
    intervals = Intervals(board.searches)
    monkeypatch.setattr(intervals, "_fit", lambda key: fits.append(clock.__setitem__(0, clock[0] + 1.0)) or "")
    for d in board.searches[0].dims:
        intervals.add(Observation(board.searches[0].trials_at(d)[0], "finished", score=0.7, chance=0.5))
        intervals.refresh()
        clock[0] += 5.0
    assert len(fits) <= 1 + len(board.searches[0].dims) * 5 / 20
