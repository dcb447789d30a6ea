"""A results directory whose sweep grows: only what is missing is trained, and the answer is that of the wider sweep."""

import json
import re
import shutil
import threading
from pathlib import Path

import computed
import pytest
from builders import with_keys

from distsub import cli
from distsub.config import parse_sweep
from distsub.results import Store

WIDER = {
    "dims": ("[8, 64]", "[8, 16, 64, 100]"),
    "seeds": ("seeds = 1", "seeds = 2"),
    "etas": ("etas = [1.0]", "etas = [1.0, 3.0]"),
    "methods": ('methods = ["did"]', 'methods = ["said", "did"]'),
    "learning_rates": ("learning_rates = [0.003]", "learning_rates = [1e-3, 3e-3]"),
    "tasks": ("[search]", '[[tasks]]\nname = "again"\npath = "{data}"\ntext = "sentence"\n[search]'),
    "models": ("models = [", 'models = [{{ path = "{other}" }}, '),
}


@pytest.fixture(scope="module")
def other_model(tiny_model, tmp_path_factory):
    """The same model but for one weight."""
    import torch
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model, folder)
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 3] += 1e-2
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(tiny_text):
    one = {"methods": ["did"], "seeds": 1, "policy": "grid", "dims": [8, 64], "etas": [1.0], "learning_rates": [0.003]}
    return with_keys(tiny_text, **one, steps=20, eval_every=None)


@pytest.fixture(scope="module")
def other_data(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(tiny_data, folder)
    file = folder / "train.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def wider(small, other_data, other_model):
    def make(*keys):
        text = small
        for key in keys:
            old, new = WIDER[key]
            assert old in text
            text = text.replace(old, new.format(data=other_data, other=other_model), 1)
        return text

    return make


@pytest.fixture
def trained():
    """Let a test train; the others compute their rows, since what they test is which are made."""


@pytest.fixture(autouse=True)
def rows_are_computed(request, monkeypatch):
    if "trained" not in request.fixturenames:
        monkeypatch.setattr("distsub.runtime.worker.train", computed.train)


@pytest.fixture(scope="module")
def firsts(small, tmp_path_factory):
    """Give a small sweep that was run, by whether its rows were trained or computed."""
    made = {}

    def first(is_trained):
        if is_trained not in made:
            folder = tmp_path_factory.mktemp("first")
            assert run(small, folder / "out", folder)[0] == 0
            made[is_trained] = folder / "out"
        return made[is_trained]

    return first


@pytest.fixture
def first(firsts, request, rows_are_computed):
    """A small sweep, run."""
    return firsts("trained" in request.fixturenames)


def run(text, out, folder, *options):
    file = Path(folder) / "sweep.toml"
    file.write_text(text)
    return call("run", file, "--out", out, "--backend", "inline", "--plain", *options)


def call(*arguments):
    """Run a command; its exit code and what it wrote."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main([str(each) for each in arguments])
    return end.value.code, out.getvalue(), err.getvalue()


def answers(out):
    columns = "task, model, method, d90, d90_low, d90_high, d90_text, trials"
    sql = f"select {columns} from d90 order by all"
    code, text, _ = call("query", out, sql, "--format", "json")
    assert code == 0
    return text


def scores(out):
    table = Store.open(out).table(["trial_id", "status", "score"])
    return {row["trial_id"]: (row["status"], row["score"]) for row in table.to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize("keys", [("dims", "methods"), ("models", "tasks")], ids="+".join)
def test_a_sweep_that_trains_grows_to_the_answer_of_the_wider_one(trained, first, wider, tmp_path, keys):
    grows(first, wider, tmp_path, keys)


@pytest.mark.parametrize(
    "keys",
    [
        *(pytest.param((key,), marks=[] if key in ("dims", "models") else pytest.mark.slow) for key in WIDER),
        pytest.param(("dims", "seeds", "etas", "methods", "learning_rates"), marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_a_sweep_grows_to_the_answer_of_the_wider_one(first, wider, tmp_path, keys):
    grows(first, wider, tmp_path, keys)


def grows(first, wider, tmp_path, keys):
    text = wider(*keys)
    shutil.copytree(first, tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "observations").glob("*.parquet")}
    code, said, note = run(text, tmp_path / "out", tmp_path)
    assert code == 0, note
    assert f"{len(before)} known" in said
    assert "goes on with a wider sweep: " in note and all(key in note for key in keys)
    now = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "observations").glob("*.parquet")}
    assert before.items() < now.items()  # nothing trained twice
    assert f"done     {len(now) - len(before)} finished" in said
    fresh = tmp_path / "fresh"
    assert run(text, fresh, tmp_path)[0] == 0
    assert scores(tmp_path / "out") == scores(fresh)
    assert answers(tmp_path / "out") == answers(fresh)
    assert (tmp_path / "out" / "sweep.toml").read_text() == text
    # The record of what it has held, oldest first.
    held = json.loads((tmp_path / "out" / "sweep.json").read_text())["held"]
    assert [each["text"] for each in held] == [(first / "sweep.toml").read_text(), text]
    assert all(re.match(r"20\d\d-\d\d-\d\dT", each["when"]) and each["distsub_version"] for each in held)


def test_the_narrower_sweep_goes_on_in_the_wider_ones_directory(first, small, wider, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(first, out)
    assert run(wider("dims"), out, tmp_path)[0] == 0
    before, record = answers(out), (out / "sweep.json").read_bytes()
    lost = next(row.trial.id for row in Store.open(out).read() if row.trial.d == 8)
    code, _, note = run(small, out, tmp_path)
    assert code == 0 and "holds a wider sweep than this one (dims: [8, 16, 64, 100] -> [8, 64])" in note
    assert (out / "sweep.json").read_bytes() == record and (out / "sweep.toml").read_text() == wider("dims")
    assert answers(out) == before
    (out / "observations" / f"{lost}.parquet").unlink()
    code, said, _ = run(small, out, tmp_path)
    assert code == 0 and "done     1 finished" in said and answers(out) == before


REFUSED = {
    "dims": (("[8, 64]", "[8, 96]"), "dims: [8, 64] -> [8, 96]"),
    "steps": (("steps = 20", "steps = 21"), "[budget] steps: 20 -> 21"),
    "rows": (("batch_size = 16", "batch_size = 16\ntrain_examples = 64"), "[budget] train_examples: none -> 64"),
    "where": (('text = "sentence"', 'text = "sentence"\nholdout = 30'), "[[tasks]] tiny "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_sweep_is_refused_in_one_line_that_names_the_keys(first, small, tmp_path, case):
    (old, new), named = REFUSED[case]
    assert old in small
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    code, _, said = run(small.replace(old, new), first, tmp_path)
    (line,) = [line for line in said.splitlines() if line.startswith("distsub: ")]
    assert code == 2 and named in line and "--out" in line and "content" not in line
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before


def test_name_resources_limit_and_comments_change_nothing_and_the_limit_is_the_latest(first, small, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(first, out)
    text = small.replace('name = "tiny"\nmodels', 'name = "other"\nmodels').replace("retries = 1", "retries = 0")
    text += "# why\n[limit]\ntrials = 50\n"
    code, said, note = run(text, out, tmp_path)
    assert code == 0 and "nothing left to do" in said and "wider" not in note
    assert (out / "sweep.toml").read_text() == text
    assert len(json.loads((out / "sweep.json").read_text())["held"]) == 1


def test_a_directory_without_a_record_of_its_sweep_cannot_grow(first, wider, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(first, out)
    record = json.loads((out / "sweep.json").read_text())
    for broken in ({"sweep": None}, {"sweep": {}}, {"sweep": {"dims": 3}}, {"sweep": [1]}, {"held": 3}):
        (out / "sweep.json").write_text(json.dumps(record | broken))
        code, _, said = run(wider("dims"), out, tmp_path)
        lines = [line for line in said.splitlines() if line.startswith("distsub: ")]
        assert code == 2 and len(lines) == 1 and "--out" in lines[0]


def test_two_drivers_with_different_sweeps_leave_a_directory_that_one_of_them_can_go_on_with(small, wider, tmp_path):
    """Both ask for more than there was; neither contains the other: one wins, and the other is told."""
    one, other = small.replace("[8, 64]", "[8, 64, 100]"), small.replace("[8, 64]", "[8, 16, 64]")
    sweeps = [parse_sweep(text, tmp_path) for text in (small, one, other)]

    def enter(sweep):
        return Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, str(tmp_path), sweep.places, sweep.record)

    enter(sweeps[0])
    ended, gate = [], threading.Barrier(8)

    def driver(sweep):
        gate.wait()
        try:
            ended.append((sweep.fingerprint, bool(enter(sweep))))
        except OSError as error:
            ended.append((sweep.fingerprint, str(error)))

    threads = [threading.Thread(target=driver, args=(sweeps[1 + i % 2],)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    now = Store.open(tmp_path / "out")
    assert now.fingerprint in {sweep.fingerprint for sweep in sweeps[1:]}
    assert all((told is True) == (name == now.fingerprint) for name, told in ended)
    assert all("dims: " in told for _, told in ended if told is not True)
    assert parse_sweep(now.sweep_text, tmp_path).fingerprint == now.fingerprint
    assert enter(sweeps[0]).fingerprint == now.fingerprint  # the first still goes on


# ---- rows of other directories


def test_rows_and_adapters_are_taken_from_other_results_by_id(trained, first, wider, tmp_path):
    text, out = wider("dims"), tmp_path / "out"
    code, said, _ = run(text, out, tmp_path, "--reuse", first)
    known = scores(first)
    assert code == 0 and f"{len(known)} known ({len(known)} taken from {first})" in said
    assert run(text, tmp_path / "fresh", tmp_path)[0] == 0
    assert scores(out) == scores(tmp_path / "fresh") and answers(out) == answers(tmp_path / "fresh")
    adapters = [{each.name for each in (place / "adapters").iterdir()} for place in (first, out, tmp_path / "fresh")]
    assert adapters[0] and adapters[0] < adapters[1] == adapters[2]
    name = next(iter(adapters[0]))
    for file in (first / "adapters" / name).iterdir():
        assert (out / "adapters" / name / file.name).read_bytes() == file.read_bytes()
    # They are rows of its own: what they came from may go, a second time nothing is taken.
    code, said, _ = run(text, out, tmp_path, "--reuse", first, "--reuse", tmp_path / "fresh")
    assert code == 0 and f"(0 taken from {first}, 0 taken from {tmp_path / 'fresh'})" in said


def test_only_what_is_asked_for_and_has_ended_is_taken(first, small, wider, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    assert run(wider("dims"), other, tmp_path)[0] == 0
    store = Store.open(other)
    rows = store.read()
    import dataclasses

    failed = next(row for row in rows if row.trial.d == 8)
    (other / "observations" / f"{failed.trial.id}.parquet").unlink()
    store.write(dataclasses.replace(failed, status="error", score=None, error="x"))
    code, said, _ = run(small, out, tmp_path, "--reuse", other)
    assert code == 0 and "(2 taken from " in said and "done     1 finished" in said
    assert scores(out) == scores(first)


@pytest.mark.parametrize("change", ["batch_size = 8", "train_examples = 32\nbatch_size = 16"])
def test_nothing_is_taken_that_was_asked_otherwise(first, small, tmp_path, change):
    code, said, _ = run(small.replace("batch_size = 16", change), tmp_path / "out", tmp_path, "--reuse", first)
    assert code == 0 and "0 known (0 taken from " in said


def test_adapters_are_not_taken_where_none_are_kept(first, small, tmp_path):
    code, _, _ = run(small, tmp_path / "out", tmp_path, "--reuse", first, "--no-adapters")
    assert code == 0 and not (tmp_path / "out" / "adapters").exists()


def test_results_to_take_from_that_are_none_are_told_before_anything_is_made(small, tmp_path):
    code, _, said = run(small, tmp_path / "out", tmp_path, "--reuse", tmp_path / "none")
    (line,) = [line for line in said.splitlines() if line.startswith("distsub: ")]
    assert code == 2 and "is no results directory" in line and not (tmp_path / "out").exists()


# ---- rows of no search


def test_status_and_report_tell_of_rows_that_no_search_asks_for(first, small, wider, other_data, other_model, tmp_path):
    out, data, model = (
        tmp_path / "out",
        re.search('path = "(.*data.*)"', small)[1],
        re.search('path = "(.*model.*)"', small)[1],
    )
    shutil.copytree(first, out)
    plain = [call(command, out)[1] for command in ("status", "report")]
    assert not any("no search" in said for said in plain)
    before = answers(out)
    changed = {
        "more": (wider("dims"), r"2 of trainings that the sweep does not include"),
        "rows": (
            small.replace(data, other_data),
            r"3 of task tiny with other rows \(\w{12}, the sweep's are \w{12}\)",
        ),
        "model": (small.replace(model, other_model), r"3 of another model \(\w{12}\)"),
    }
    for name, (text, _) in changed.items():
        assert run(text, tmp_path / name, tmp_path)[0] == 0
        for file in (tmp_path / name / "observations").glob("*.parquet"):
            shutil.copy(file, out / "observations")
    for command in ("status", "report"):
        (line,) = re.findall("note: rows of no search.*?(?=\n\n|\n\\S)", call(command, out)[1], re.DOTALL)
        assert all(re.search(pattern, " ".join(line.split())) for _, pattern in changed.values()), line
    assert answers(out) == before


# ---- one number


def texts(printed):
    """Every estimate that an output states, in its order."""
    return re.findall(r"d90 (?:=|>|<=) ?[\d.]+ \(95%: [^)]*\)", " ".join(printed.split()))


@pytest.mark.parametrize("backend", ["inline", pytest.param("tune", marks=pytest.mark.slow)])
def test_run_status_query_and_report_give_one_number(tiny_text, tmp_path, backend):
    text = with_keys(tiny_text, dims=[16, 256], steps=20, eval_every=None)
    (tmp_path / "sweep.toml").write_text(f"{text}max_concurrent_trials = 1\n")
    out = tmp_path / "out"
    code, said, note = call("run", tmp_path / "sweep.toml", "--out", out, "--backend", backend, "--plain")
    assert code == 0, note
    live = [line for line in said.splitlines() if "] estimate " in line]
    last = {line.split("] estimate ")[1].split(": ")[0]: texts(line)[-1] for line in live if texts(line)}
    code, queried, _ = call("query", out, "select * from d90 order by method", "--format", "json")
    rows = json.loads(queried)
    stated = [row["d90_text"] for row in rows]
    assert len(stated) == 2 and sorted(last.values()) == sorted(stated)
    for command in ("status", "report"):
        code, printed, _ = call(command, out)
        assert code == 0 and sorted(texts(printed)) == sorted(stated), command
    assert sorted(texts(said.split("done ")[1])) == sorted(stated)
    code, final, _ = call("run", tmp_path / "sweep.toml", "--out", out, "--backend", "inline", "--format", "json")
    found = {row["label"]: row for row in json.loads(final.splitlines()[-1])["d90"]}
    for row in rows:
        assert all(found[row["label"]][key] == row[key] for key in ("d90", "d90_low", "d90_high"))


@pytest.mark.slow
def test_results_on_object_storage_are_taken_and_grow(trained, first, small, wider, tmp_path, bucket):
    address, options = bucket
    uri = f"{address}/other?{options}"
    code, said, note = run(small, uri, tmp_path, "--reuse", first)
    assert code == 0 and "3 known (3 taken from " in said and "nothing left to do" in said, note
    code, said, note = run(wider("dims"), uri, tmp_path)
    assert code == 0 and "3 known" in said and "goes on with a wider sweep: dims: " in note
    code, _, note = run(small.replace("[8, 64]", "[8, 32]"), uri, tmp_path)
    assert code == 2 and "dims: [8, 16, 64, 100] -> [8, 32]" in note
    out = tmp_path / "out"
    code, said, _ = run(wider("dims"), out, tmp_path, "--reuse", uri)
    assert code == 0 and "5 known (5 taken from s3://bucket/other)" in said and "nothing left to do" in said
    assert answers(out) == answers(uri) and len(list((out / "adapters").iterdir())) == 4
