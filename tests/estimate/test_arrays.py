"""d90 from anybody's numbers: the same estimate as from records, in any order, and what is refused."""

import doctest
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import distsub
from distsub.errors import ConfigError
from distsub.estimate import arrays
from distsub.estimate.d90 import fit
from distsub.records import Budget, Full, Model, Seeds, Setup, Subspace, Task, Trial
from distsub.search import Search, log_grid
from distsub.search.synthetic import Curve

D = [10, 30, 100, 300, 1000, 3000] * 3
SCORE = [0.52, 0.55, 0.66, 0.79, 0.86, 0.88, 0.51, 0.54, 0.70, 0.82, 0.87, 0.89, 0.5, 0.53, 0.63, 0.78, 0.85, 0.88]
SEED = ["a"] * 6 + ["b"] * 6 + ["c"] * 6
GIVEN = {
    "d": D,
    "score": SCORE,
    "full": [0.89, 0.90, 0.88],
    "chance": 0.5,
    "eval_examples": 1000,
    "seed": SEED,
}


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(arrays).failed == 0
    assert doctest.testmod(arrays).attempted > 1


def test_the_example_of_the_page_prints_what_the_page_shows(capsys):
    """Words exactly, numbers to 2%: other processors round differently."""
    page = (Path(__file__).parents[2] / "docs" / "intervals.md").read_text().partition("## From your own numbers")[2]
    code, shown = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL).group(1) for kind in ("python", "text"))
    exec(compile(code, "docs/intervals.md", "exec"), {})
    printed, number = capsys.readouterr().out, re.compile(r"\d+(?:\.\d+)?")
    assert number.sub("#", printed) == number.sub("#", shown)
    assert [float(each) for each in number.findall(printed)] == pytest.approx(
        [float(each) for each in number.findall(shown)], rel=0.02
    )


def test_arrays_and_records_give_the_same_estimate():
    """The same numbers as a sweep's rows and as plain lists: the same bits."""
    curve = Curve(seed=3, floor=0.5, plateau=0.9, full=0.9, slope=1.8, num_examples=408)
    etas, rates, dims = (0.1, 0.3), (1e-5, 2e-5), log_grid(10, 10_000, 2.0)
    task, budget = Task("made-up", "made-up", ("text",)), Budget(steps=100, eval_examples=408)
    full = [
        Trial(Setup(Model("model"), task, Full(), rate, budget, Seeds(0, seed, seed)))
        for rate in rates
        for seed in range(3)
    ]
    these = [
        Search(Setup(Model("model"), task, Subspace(), 1e-05, budget, Seeds(s, s, s)), dims, etas, tuple(full))
        for s in range(3)
    ]
    rows = [curve.observe(t, arrays=False) for t in [t for s in these for d in dims for t in s.trials_at(d)] + full]
    subspace = [row for row in rows if row.trial.d]
    found = distsub.d90(
        d=[row.trial.d for row in subspace],
        score=[row.score for row in subspace],
        eta=[row.trial.eta for row in subspace],
        seed=[f"run {row.trial.seeds.head}" for row in subspace],
        full={
            rate: [row.score for row in rows if not row.trial.d and row.trial.learning_rate == rate] for rate in rates
        },
        chance=rows[0].chance,
        eval_examples=408,
    )
    assert found == fit(these, rows).d_at()


def test_any_order_any_labels_any_container_give_the_same_bits():
    found = distsub.d90(**GIVEN)
    assert found.d == pytest.approx(330, rel=0.25)
    order = list(range(len(D)))
    random.Random(2).shuffle(order)
    again = distsub.d90(
        d=np.array(D)[order],
        score=np.array(SCORE)[order],
        seed=[{"a": 3.5, "b": ("x", 1), "c": None}[SEED[i]] for i in order],
        full=np.array([0.88, 0.89, 0.90]),
        chance=np.float64(0.5),
        eval_examples=1000,
    )
    assert again == found


def test_failed_trainings_are_counted_and_ignored():
    """Whatever stands as their score; a nan among full fine-tunings is a failed one too."""
    found = distsub.d90(**GIVEN)
    more = GIVEN | {
        "d": [*D, 10_000, 10_000],
        "score": [*SCORE, math.nan, 0.5],
        "seed": [*SEED, "a", "b"],
        "failed": [False] * len(D) + [True, True],
        "full": [0.89, 0.90, math.nan, 0.88],
    }
    after = distsub.d90(**more, dims=(10, 3000))
    assert after.failed_subspace == 2 / 20
    assert after.failed_full == 1 / 4
    assert abs(math.log(after.d / found.d)) < 0.15
    assert "1 of 4 full fine-tunings failed to train and are left out" in after.warnings


def test_a_full_fine_tuning_at_chance_moves_little():
    found, after = distsub.d90(**GIVEN), distsub.d90(**GIVEN | {"full": [0.89, 0.5, 0.90, 0.88]})
    assert abs(math.log(after.d / found.d)) < 0.1
    assert after.failed_full == 1 / 4


def test_what_is_assumed_is_said():
    found = distsub.d90(**{k: v for k, v in GIVEN.items() if k not in ("seed", "eval_examples")})
    assert "eval_examples is not given: 400 are assumed" in found.warnings
    assert "seeds are not given" in " ".join(found.warnings)
    assert 200 < found.d < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": [100 * each for each in SCORE]}, r"score at position 0 = 52 is outside.*give 0.52 for 52%"),
        ({"full": [89, 90, 88]}, "full at position 0 = 89 is outside the range of accuracy, 0 to 1"),
        ({"full": 0.9}, "as a list, one per seed"),
        ({"full": ["good"]}, "full = 'good' at position 0"),
        ({"chance": None}, "chance is missing"),
        ({"chance": 50}, "chance at position 0 = 50"),
        ({"metric": "rouge"}, "give one of accuracy, f1"),
        ({"score": [math.nan, *SCORE[1:]]}, "score = nan at position 0.*failed = True"),
        ({"score": SCORE[1:]}, "score has 17 entries, d has 18"),
        ({"seed": SEED[1:]}, "seed has 17 entries"),
        ({"d": [0, *D[1:]]}, "d = 0 at position 0"),
        ({"d": ["many", *D[1:]]}, "d = 'many' at position 0"),
        ({"eta": [-1.0] * 18}, "eta = -1.0 at position 0"),
        ({"eval_examples": 0}, "eval_examples = 0"),
        ({"dims": (100, 10)}, r"dims = \(100, 10\)"),
        ({"fraction": 90}, "fraction = 90"),
        ({"level": 95}, "level = 95"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        distsub.d90(**GIVEN | change)


def test_correlations_have_a_chance_of_zero():
    scores = [2 * each - 1 for each in SCORE]
    given = GIVEN | {"score": scores, "full": [0.78, 0.80, 0.76], "metric": "matthews", "chance": None}
    assert 150 < distsub.d90(**given).d < 1000


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"full": []}, "baseline_missing"),
        ({"full": [math.nan]}, "baseline_missing"),
        ({"full": [0.4, 0.45]}, "baseline_at_chance"),
        ({"d": [], "score": [], "seed": []}, "undecided"),
        ({"failed": [True] * 18}, "undecided"),
        ({"score": [0.55] * 18}, "above_range"),
        ({"score": [0.89] * 18}, "below_range"),
    ],
)
def test_where_there_is_no_number_none_is_given(change, outcome):
    found = distsub.d90(**GIVEN | change)
    assert found.outcome.name == outcome
    assert found.d is None


def test_it_needs_no_torch():
    code = (
        "import distsub, sys\n"
        "distsub.d90(d=[10, 100, 1000], score=[.5, .7, .9], full=[.9], chance=.5, eval_examples=9)\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_crossed_seeds_have_an_estimate():
    """Two projections by two heads by two orders: the places of the eight would else determine each other."""
    task, budget, held = Task("made-up", "made-up", ("text",)), Budget(steps=100, eval_examples=408), 0
    triples = [Seeds(a, b, c) for a in range(2) for b in range(2) for c in range(2)]
    baseline = tuple(Trial(Setup(Model("model"), task, Full(), 2e-05, budget, each)) for each in triples[:2])
    these = [
        Search(Setup(Model("model"), task, Subspace(), 2e-05, budget, each), log_grid(10, 10000, 3.0), (0.3,), baseline)
        for each in triples
    ]
    trials = [*(trial for each in these for d in each.dims for trial in each.trials_at(d)), *baseline]
    for seed in range(10):
        curve = Curve(seed=seed, floor=0.5, plateau=0.9, full=0.9, slope=2.0)
        found = fit(these, [curve.observe(trial, arrays=False) for trial in trials]).d_at()
        held += found.low < curve.crossing((0.3,), (2e-5,)) < found.high
    assert held >= 8


@pytest.mark.parametrize("case", range(40))
def test_whatever_comes_is_estimated_or_refused(case):
    """Few rows, constant ones, extreme ones, without seeds: an answer whose ends are in order, or one line."""
    r = random.Random(case)
    size = r.choice([1, 2, 3, 8, 30])
    d = [r.choice([1, 2, 3.7, 10, 100, 1000, 10**6, 10**9]) for _ in range(size)]
    score = {
        "random": [r.random() for _ in d],
        "same": [0.7] * size,
        "rising": [min(1.0, 0.4 + 0.07 * math.log(each)) for each in d],
        "extreme": [float(r.random() < 0.5) for _ in d],
    }[r.choice(["random", "same", "rising", "extreme"])]
    try:
        found = distsub.d90(
            d,
            score,
            full=[r.choice([r.uniform(0.5, 1), 1.0, math.nan]) for _ in range(r.choice([1, 3, 9]))],
            chance=r.choice([0.0, 0.5, 1.0]),
            metric=r.choice(["accuracy", "f1", "matthews"]),
            eval_examples=r.choice([None, 1, 408, 10**6]),
            eta=r.choice([None, [r.choice([0.1, 0.3, 5]) for _ in d]]),
            seed=r.choice([None, [r.choice("abc") for _ in d]]),
            failed=r.choice([None, [r.random() < 0.3 for _ in d]]),
            fraction=r.choice([0.5, 0.9, 1.0]),
            chance_corrected=r.random() < 0.3,
        )
    except ConfigError:
        return
    assert found.text
    assert found.d is None or (found.low or 0) <= found.d <= (found.high or math.inf)
