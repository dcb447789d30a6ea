"""A sweep may grow and not change: every key of a sweep file, added to, changed and left out."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from distsub.config import methods, sweep_file, tables, tasks
from distsub.records.places import ModelPlace, Places
from distsub.results.growth import changes

BASE = {
    "name": "mine",
    "models": [{"name": "org/one"}],
    "tasks": [{"name": "a", "source": "org/a", "text": "t"}, {"name": "b", "source": "org/b", "text": "t"}],
    "methods": ["did", {"name": "said", "projection": "dense"}],
    "seeds": 2,
    "dims": [16, 64],
    "search": {"etas": [0.3, 1.0], "learning_rate": 1e-4},
    "baseline": {"learning_rates": [1e-4, 3e-4]},
    "budget": {"steps": 100},
}


def sweep_of(raw):
    return sweep_file._File.model_validate(copy.deepcopy(raw)).sweep(Path("/somewhere"), json.dumps(raw))


def record_of(raw):
    return sweep_of(raw).record


def refusals(old, new):
    return list(dict.fromkeys(str(change) for change in changes(old, new) if not change.grows))


def with_(path, value, base=BASE):
    """The file with a value at a path, which is made where there is none."""
    raw = copy.deepcopy(base)
    table = raw
    *tables, key = path
    for each in tables:
        table = table.setdefault(each, {}) if isinstance(table, dict) else table[each]
    if value is None:
        del table[key]
    else:
        table[key] = value
    return raw


GROWTH = {
    "models": (("models",), ["org/two", "org/one"]),
    "tasks": (("tasks",), [{"name": "c", "source": "org/c", "text": "t"}, *BASE["tasks"]]),
    "methods": (("methods",), ["said", *BASE["methods"]]),
    "seeds": (("seeds",), [1, 0, {"head": 3}]),
    "dims": (("dims",), [64, 16, 32, 128]),
    "dims by ratio": (("dims",), {"low": 16, "high": 64, "ratio": 2.0}),
    "[search] etas": (("search", "etas"), [3.0, 1.0, 0.3]),
    "[baseline] learning_rates": (("baseline", "learning_rates"), [1e-5, 1e-4, 3e-4]),
    "[trajectory]": (("trajectory",), {"every": 10}),
    "[[methods]] dims": (("methods", 1, "dims"), [16, 32, 64]),
    "[[methods]] etas": (("methods", 1, "etas"), [0.1, 0.3, 1.0]),
}


@pytest.mark.parametrize("key", GROWTH)
def test_more_is_growth_and_less_is_refused_by_name(key):
    small, large = record_of(BASE), record_of(with_(*GROWTH[key]))
    assert refusals(small, large) == [] and changes(small, large)
    lost = refusals(large, small)
    assert len(lost) == 1
    name = {
        "dims by ratio": "dims",
        "[[methods]] dims": "[[methods]] said dims",
        "[[methods]] etas": "[[methods]] said etas",
    }
    assert lost[0].startswith(f"{name.get(key, key)}: ") and " -> " in lost[0] and "\n" not in lost[0]


def task(**keys):
    return with_(("tasks",), [BASE["tasks"][0] | keys, BASE["tasks"][1]])


def completion(**keys):
    given = {"text": None, "kind": "completion", "prompt": "p", "completion": "c"}
    return task(**(given | {"metric": "exact_match", "max_new_tokens": 4} | keys))


def method(**keys):
    return with_(("methods",), [keys])


CHANGED = {
    "policy": (BASE, with_(("policy",), "grid")),
    "[threshold] fraction": (BASE, with_(("threshold",), {"fraction": 0.8})),
    "[threshold] value": tuple(
        with_(("baseline",), None, BASE | {"threshold": {"value": each}}) for each in (0.7, 0.8)
    ),
    "[threshold] chance": (BASE, with_(("threshold",), {"chance": "theta_0"})),
    "[search] learning_rate": (BASE, with_(("search", "learning_rate"), 2e-4)),
    "[search] tries": (BASE, with_(("search", "tries"), 1)),
    **{
        f"[budget] {key}": (BASE, with_(("budget", key), value))
        for key, value in {
            "steps": 200, "batch_size": 8, "max_length": 64, "train_examples": 500, "eval_examples": 50, "warmup": 0.1,
            "eval_every": 10, "weight_decay": 0.1, "max_grad_norm": 1.0, "precision": "fp32",
        }.items()
    },
    **{
        f"[trajectory] {key}": (with_(("trajectory",), {"every": 5}), with_(("trajectory",), {"every": 5, key: value}))
        for key, value in {"learning_rate": 1e-3, "steps": 7, "every": 9, "checkpoints": 3, "dtype": "float32"}.items()
    },
    "[[models]] org/one revision": (BASE, with_(("models",), [{"name": "org/one", "revision": "v2"}])),
    "[[models]] org/one dtype": (BASE, with_(("models",), [{"name": "org/one", "dtype": "bfloat16"}])),
    "[[models]] org/one head_from": (BASE, with_(("models",), [{"name": "org/one", "head_from": "checkpoint"}])),
    **{
        f"[[tasks]] a {key}": (BASE, task(**{key: value}))
        for key, value in {
            "source": "org/other", "config": "mrpc", "revision": "v2", "text": ["t", "u"], "label": "y",
            "num_labels": 3, "metric": "macro_f1", "train": "first", "validation": "second", "where": {"lang": "en"},
            "holdout": 0.3, "labels": ["no", "yes"], "empty": "drop", "separator": ";", "quote": "none",
            "encoding": "cp1252",
        }.items()
    },
    "[[tasks]] a standardise": tuple(
        task(kind="regression", metric="pearson", num_labels=None, standardise=each) for each in (False, True)
    ),
    "[[tasks]] a kind": (BASE, task(text=None, kind="completion", prompt="t", completion="u")),
    **{
        f"[[tasks]] a {key}": (completion(), completion(**{key: value}))
        for key, value in {
            "prompt": "x", "completion": "x", "max_new_tokens": 9, "stop": "x", "answer": "x",
        }.items()
    },
    "[[tasks]] a messages": tuple(
        completion(prompt=None, completion=None, messages=each) for each in ("t", "u")
    ),
    **{
        f"[[methods]] {name} {key}": (method(name=name, **before), method(name=name, **{key: value}))
        for name, key, before, value in (
            ("did", "projection", {}, "dense"), ("did", "normalization", {}, "per_tensor"),
            ("said", "groups", {}, "tensor"), ("did", "head", {}, "frozen"), ("random", "scope", {}, "model"),
            ("random", "embeddings", {}, "trained"), ("random", "ensemble", {}, 4), ("random", "start", {}, "random"),
            ("random", "step", {}, 0.1), ("random_matched", "step", {}, 0.1), ("intrinsic", "mode", {}, "raw"),
            ("intrinsic", "first", {}, 3), ("did", "modules", {}, "mlp"), ("other_seed", "shift", {}, 2),
            ("last", "trajectory", {}, "imported"),
            ("inductive", "sources", {"sources": "a"}, ["b"]), ("unified", "step", {}, 0.1),
            ("zero_shot", "step", {}, 0.1), ("last", "step", {}, 0.1), ("freeze", "embeddings", {}, "trained"),
        )
    },
    **{
        f"[[methods]] LORA {key}": (method(peft="LORA"), method(peft="LORA", **{key: value}))
        for key, value in {"options": {"use_rslora": True}, "head": "frozen", "step": 0.1}.items()
    },
    "[[methods]] did block_length": tuple(
        method(name="did", projection="fastfood", block_length=each) for each in (64, 128)
    ),
}  # fmt: skip

FREE = {
    "name": "other",
    "resources": {
        "cpus_per_trial": 2,
        "gpus_per_trial": 0.5,
        "max_concurrent_trials": 3,
        "retries": 0,
        "baseline": {"gpus_per_trial": 1.0},
    },
    "limit": {"hours": 1.0, "trials": 5},
}


@pytest.mark.parametrize("key", CHANGED)
def test_what_was_asked_and_is_asked_otherwise_is_refused_by_name(key):
    old, new = map(record_of, CHANGED[key])
    assert refusals(old, old) == refusals(new, new) == []
    for one, other in ((old, new), (new, old)):
        lines = refusals(one, other)
        assert lines and all("\n" not in line and " -> " in line for line in lines)
        keys = [line.split(": ")[0] for line in lines]
        # Some keys bring another: labels their number, a holdout no split, a scope its usual head.
        assert (
            (key in keys and (len(keys) <= 2 or key.endswith("kind")))  # a kind brings its columns
            or (key.endswith("scope") and "methods" in keys[0])
        ), lines


def test_a_record_from_before_a_key_is_that_of_a_sweep_that_leaves_it_out():
    old, new = record_of(BASE), record_of(BASE)
    for entry in old["tasks"] + new["tasks"]:
        entry["content"] = "5eed"
    for entry in old["tasks"]:
        del entry["standardise"]
    assert refusals(old, new) == refusals(new, old) == []
    new["tasks"][0]["standardise"] = True
    assert refusals(old, new) == ["[[tasks]] a standardise: false -> true"]
    assert refusals(new, old) == ["[[tasks]] a standardise: true -> false"]


def test_more_etas_say_how_a_method_of_peft_keeps_its_own():
    few, many = (record_of(with_(("search", "etas"), etas, method(peft="LORA"))) for etas in ([0.3], [0.3, 1.0]))
    [line] = refusals(few, many)
    assert line.startswith("[[methods]] LORA etas: ") and "etas = [1.0] here keeps them" in line
    kept = record_of(with_(("search", "etas"), [0.3, 1.0], method(peft="LORA", etas=[1.0])))
    assert refusals(few, kept) == []


def test_every_key_of_a_sweep_file_is_held_by_one_of_these_tests():
    def keys(prefix, table):
        return {f"{prefix}{key}" for key in table.model_fields}

    named = {*CHANGED, *GROWTH, *FREE}
    ends = {
        name.rpartition(" ")[0].partition(" ")[0] + " " + name.rpartition(" ")[2] for name in named if "]] " in name
    }
    of = {"search": tables.SearchTable, "baseline": tables.BaselineTable, "budget": tables.BudgetTable}
    of |= {"threshold": tables.ThresholdTable, "trajectory": methods.TrajectoryTable}
    for table, record in of.items():
        assert keys(f"[{table}] ", record) <= named
    assert keys("", sweep_file._File) - of.keys() <= named
    for table, record in (("resources", tables.ResourcesTable), ("limit", tables.LimitTable)):
        assert set(record.model_fields) == set(FREE[table])
    # A path is where a content lies; a name tells entries apart; "training" stands for several other keys.
    assert keys("[[models]] ", tables.ModelTable) - {"[[models]] name", "[[models]] path"} <= ends
    assert keys("[[tasks]] ", tasks.TaskTable) - {"[[tasks]] name", "[[tasks]] path"} <= ends
    others = {f"[[methods]] {key}" for key in ("name", "peft", "training")}
    assert keys("[[methods]] ", methods.MethodTable) - others <= ends


@pytest.mark.parametrize("key", FREE)
def test_what_decides_no_result_changes_nothing(key):
    assert changes(record_of(BASE), record_of(BASE | {key: FREE[key]})) == []


SAME = {
    "defaults said": BASE | {"policy": "bisection", "threshold": {"fraction": 0.9, "chance": "majority"}},
    "all tries said": with_(("search", "tries"), 2),
    "the projection said": with_(("methods",), [{"name": "did", "projection": "partition"}, BASE["methods"][1]]),
    "the method's grid said": with_(("methods", 1, "dims"), [16, 64]),
    "other order": BASE | {key: BASE[key][::-1] for key in ("models", "tasks", "methods", "dims")},
    "seeds listed": BASE | {"seeds": [1, {"projection": 0, "head": 0, "data": 0}]},
}


@pytest.mark.parametrize("case", SAME)
def test_another_way_to_say_the_same_is_the_same(case):
    for old, new in ((BASE, SAME[case]), (SAME[case], BASE)):
        assert changes(record_of(old), record_of(new)) == []


def test_several_keys_are_named_in_their_own_words():
    other = with_(("budget", "steps"), 200, with_(("dims",), [16, 96]))
    assert refusals(record_of(BASE), record_of(other)) == ["dims: [16, 64] -> [16, 96]", "[budget] steps: 100 -> 200"]


def test_what_follows_from_another_key_is_told_once():
    old = with_(("trajectory",), {"every": 5}, method(name="intrinsic"))
    assert refusals(record_of(old), record_of(with_(("budget", "steps"), 200, old))) == ["[budget] steps: 100 -> 200"]
    assert refusals(record_of(old), record_of(with_(("search", "learning_rate"), 1.0, old))) == [
        "[search] learning_rate: 0.0001 -> 1.0"
    ]


def test_a_block_length_that_follows_from_dims_says_so_and_what_keeps_it():
    fastfood = method(name="did", projection="fastfood")
    wider = with_(("dims",), [16, 64, 96], fastfood)
    (line,) = refusals(record_of(fastfood), record_of(wider))
    assert line.startswith("[[methods]] did block_length: 64 -> 128 (") and "dims up to 64 keep it" in line
    # Where it was set for more than was asked, the sweep grows; and where it was and no longer is, that is told.
    room = method(name="did", projection="fastfood", block_length=128)
    assert refusals(record_of(room), record_of(with_(("dims",), [16, 64, 96], room))) == []
    (line,) = refusals(record_of(room), record_of(fastfood))
    assert line.endswith("block_length = 128 keeps it)")


def test_sources_that_follow_from_the_tasks_say_so():
    unified = with_(("methods",), [{"name": "unified"}])
    wider = with_(("tasks",), [*BASE["tasks"], {"name": "c", "source": "org/c", "text": "t"}], unified)
    (line,) = refusals(record_of(unified), record_of(wider))
    assert line.startswith("[[methods]] unified sources: ") and 'sources = ["a", "b"] keeps it' in line
    kept = with_(("methods",), [{"name": "unified", "sources": ["a", "b"]}], wider)
    assert refusals(record_of(unified), record_of(kept)) == []


def test_one_more_eta_where_each_d_has_a_number_of_tries_and_where_it_has_all():
    tries = with_(("search",), BASE["search"] | {"etas": [0.3, 1.0, 3.0], "tries": 2})
    assert refusals(record_of(BASE), record_of(tries)) == []
    one = with_(("baseline", "learning_rates"), [1e-4], with_(("search", "etas"), [1.0]))
    assert refusals(record_of(one), record_of(BASE)) == []


RATES = {"low": 1e-5, "high": 1e-4, "tries": 6}
RANGES = with_(("search", "etas"), {"low": 0.1, "high": 1.0, "tries": 4})
RANGES = with_(("baseline", "learning_rates"), RATES, RANGES)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("search", "etas"), "[search] etas"),
        (("baseline", "learning_rates"), "[baseline] learning_rates"),
        (("methods", 1, "etas"), "[[methods]] said etas"),
    ],
)
def test_a_range_in_the_place_of_a_list_is_another_sweep_and_so_is_another_range(path, name):
    whole = with_(path, RATES)
    for other in (BASE, with_(path, RATES | {"tries": 8}), with_(path, RATES | {"high": 2e-4})):
        for old, new in ((whole, other), (other, whole)):
            [line] = refusals(record_of(old), record_of(new))
            assert line.startswith(f"{name}: ") and "{ low = 1e-05, high = 0.0001, tries = 6 }" in line
    assert changes(record_of(whole), record_of(copy.deepcopy(whole))) == []


def test_what_a_range_is_tried_under_has_to_stay():
    for path, value in ((("seeds",), 3), (("dims",), [16, 64, 32]), (("models",), ["org/one", "org/two"])):
        wider = with_(path, value, RANGES)
        kept = path != ("dims",)  # of three d the middle is another
        assert (refusals(record_of(RANGES), record_of(wider)) == []) is kept
    [line] = refusals(record_of(RANGES), record_of(with_(("dims",), [16, 32, 64], RANGES)))
    assert line.startswith("dims: ") and "middle of dims, which was 64 and would be 32" in line
    assert refusals(record_of(RANGES), record_of(with_(("dims",), [16, 64, 128], RANGES))) == []
    for raw, base in ((RANGES, RANGES), (BASE, BASE)):
        found = refusals(record_of(raw), record_of(with_(("seeds",), [1, 0], base)))
        assert [line.startswith("seeds: ") and "keep 0 first" in line for line in found] == [True] * (raw is RANGES)
    own = with_(("methods", 0), {"name": "did", "dims": [16, 32], "etas": RATES})
    own = with_(("methods", 1), {"name": "said", "dims": [16, 32]}, own)
    for method, others in ((0, 1), (1, 0)):
        found = refusals(record_of(own), record_of(with_(("methods", method, "dims"), [8, 16, 32], own)))
        assert len(found) == others
    [line] = refusals(
        record_of(with_(("dims",), list(range(1, 21)), RANGES)), record_of(with_(("dims",), list(range(1, 31)), RANGES))
    )
    assert "20 values -> 30 values, with 21" in line and "which was 11 and would be 16" in line


def test_long_lists_say_what_is_missing():
    old = with_(("dims",), list(range(1, 41)))
    assert refusals(record_of(old), record_of(with_(("dims",), list(range(2, 60))))) == [
        "dims: 40 values -> 58 values, without 1"
    ]


def known(raw, content="c" * 64, rows="d" * 64):
    sweep = sweep_of(raw)
    models = tuple(ModelPlace(each.name, each.revision, content) for each in sweep.models)
    tasks = tuple(dataclasses.replace(each, content=rows + each.name, num_labels=2) for each in sweep.tasks)
    return sweep.known(Places(models, tasks)).record


def test_what_is_moved_is_the_same_and_what_has_changed_is_named():
    moved = BASE | {"models": ["org/renamed"]}
    moved = with_(
        ("tasks",), [each | {"source": f"other/{each['name']}", "label": "y"} for each in BASE["tasks"]], moved
    )
    assert changes(known(BASE), known(moved)) == []
    assert refusals(known(BASE), known(BASE, content="e" * 64)) == [
        "[[models]] org/one content: cccccccccccc -> eeeeeeeeeeee"
    ]
    assert [each.split(": ")[0] for each in refusals(known(BASE), known(BASE, rows="e" * 64))] == [
        "[[tasks]] a content", "[[tasks]] b content",
    ]  # fmt: skip


def test_rows_that_another_budget_draws_are_told_by_the_budget():
    fewer = with_(("budget", "train_examples"), 50)
    assert refusals(known(BASE), known(fewer, rows="e" * 64)) == ["[budget] train_examples: none -> 50"]


def test_records_survive_json():
    record = record_of(BASE)
    assert json.loads(json.dumps(record)) == record
