import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import decoders
import pytest
from builders import with_keys

from distsub import cli
from distsub.config import load_sweep
from distsub.learned.store import read_analysis
from distsub.models import pretrained
from distsub.records import Subspace, canonical
from distsub.results import Store

COMMANDS = (
    *("init", "run", "plan", "status", "query", "report", "compact", "inspect", "doctor", "predict", "fit"),
    *(
        "trajectory record",
        "trajectory import",
        "transfer",
        "outliers",
        "ablate",
        "replay",
        "export",
        "certify",
        "push",
    ),
)


def call(capsys, *arguments):
    """Run a command in this process; give (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def refused(capsys, *arguments):
    """Run a command that must fail on bad input: exit code 2, one line per complaint, no traceback."""
    code, _, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if line]
    assert code == 2, err
    assert lines and all(line.startswith("distsub: ") for line in lines), err
    return err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text, warm):
    """A small sweep run inline once, by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(with_keys(tiny_text, seeds=1, steps=6, eval_every=None))
    arguments = ["run", str(folder / "tiny.toml"), "--out", str(folder / "out"), "--backend", "inline"]
    done = warm.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "results:" in done.stdout and "Traceback" not in done.stderr
    return folder


def test_every_command_is_documented():
    root = Path(__file__).resolve().parents[2]
    pages = "\n".join(page.read_text() for page in [root / "README.md", *(root / "docs").glob("*.md")])
    registered = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    for group in cli.app.registered_groups:
        commands = group.typer_instance.registered_commands
        registered |= {f"{group.name} {command.name or command.callback.__name__}" for command in commands}
    assert set(COMMANDS) <= registered
    for name in registered:
        assert f"distsub {name}" in pages, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    code, out, _ = call(capsys, *name.split(), "--help")
    assert code == 0 and "Usage" in out and "Example" in out + ("Example" if name == "doctor" else "")


def test_commands_stand_in_groups():
    panels = {command.rich_help_panel for command in cli.app.registered_commands}
    assert panels == {"Measure", "Adapters", "Learned subspaces", "Maintenance"}


@pytest.mark.parametrize("command", ["--help", "run --help"])
def test_help_that_is_not_read_to_its_end_is_no_error(command):
    script = f"{sys.executable} -m distsub.cli {command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_in_every_format(finished, capsys):
    code, out, _ = call(capsys, "status", finished / "out", "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [row["search"].split("/")[2] for row in rows] == ["said", "did"]
    assert "outcome" in call(capsys, "status", finished / "out", "--format", "csv")[1].splitlines()[0]
    said = call(capsys, "status", finished / "out")[1]
    assert said.startswith("tiny: done, 2 of 2 searches ended\n") and "bracket" in said


def test_query_sees_all_views(finished, capsys):
    sql = (
        "select (select count(*) from searches) s, (select count(*) from d90) d, (select count(*) from published_d90) p"
    )
    code, out, _ = call(capsys, "query", finished / "out", sql, "--format", "json")
    assert code == 0 and json.loads(out) == [{"s": 2, "d": 2, "p": 16}]
    sql = "select bool_and(len(correct) = len(target)) ok, count(*) > 2 many from observations"
    assert json.loads(call(capsys, "query", finished / "out", sql, "--format", "json")[1]) == [
        {"ok": True, "many": True}
    ]


def test_report_writes_a_page_and_a_curve(finished, capsys):
    code, out, _ = call(capsys, "report", finished / "out")
    assert code == 0
    assert (finished / "out" / "report" / "report.html").stat().st_size > 10_000
    [picture] = (finished / "out" / "report").glob("curve-*.svg")
    assert str(picture) in out


def test_the_report_of_several_leaves_their_own_alone(finished, tmp_path, capsys):
    other = shutil.copytree(finished / "out", tmp_path / "other")
    call(capsys, "report", other)
    before = {file: file.read_bytes() for file in (other / "report").iterdir()}
    code, out, _ = call(capsys, "report", other, finished / "out")
    assert code == 0 and f"report: {other}/report-with-out/report.html" in out
    assert before == {file: file.read_bytes() for file in (other / "report").iterdir()}
    assert "report-with-out" in refused(capsys, "report", other, finished / "out", "--to", other / "report")


def test_plan_counts_what_run_never_exceeds(finished, capsys):
    code, out, _ = call(capsys, "plan", finished / "tiny.toml", "--format", "json")
    rows = json.loads(out)
    ran = json.loads(
        call(capsys, "query", finished / "out", "select count(*) n from observations", "--format", "json")[1]
    )
    assert code == 0 and rows[0]["total"] == "at most" and ran[0]["n"] <= rows[0]["trials"]


def test_a_plan_times_every_training_whatever_its_learning_rate(finished, tmp_path, capsys):
    path = tmp_path / "rates.toml"
    path.write_text((finished / "tiny.toml").read_text() + '\n[threshold]\nchance = "theta_0"\n')
    code, out, _ = call(capsys, "plan", path, "--probe", "--format", "json")
    assert code == 0 and all(row["slot_hours"] > 0 for row in json.loads(out))


def test_the_documented_questions_run_as_the_page_prints_them(finished, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text()
    [block] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    questions = [question for question in block.split(";\n") if question.strip()]
    assert len(questions) >= 5
    for question in questions:
        code, _, said = call(capsys, "query", finished / "out", question, "--format", "json")
        assert code == 0, said


def test_inspect_a_model_and_an_adapter(finished, tiny_model, capsys):
    facts = json.loads(call(capsys, "inspect", tiny_model, "--format", "json")[1])
    spanned = {name: facts[f"num_params_{name}"] for name in ("model", "head", "attention", "mlp")}
    assert spanned["model"] == facts["num_params"] > spanned["attention"] + spanned["mlp"] + spanned["head"] > 0
    assert facts["blocks"] == 2 and facts["groups_layer"] == 4 and facts["groups_tensor"] > 30
    assert facts["kind"] == "base model, here with a new head of 2 classes"
    adapter = next((finished / "out" / "adapters").iterdir())
    facts = json.loads(call(capsys, "inspect", adapter, "--format", "json")[1])
    assert facts["num_trained"] == facts["d"] < facts["num_params"] == facts["num_params_model"]
    assert isinstance(facts["d"], int) and len(facts["base_sha256"]) == 64 and facts["revision"] is None
    assert isinstance(facts["fingerprint"], list) and "torch" in facts["versions"]
    fields = {f"subspace.{name}" for name in canonical(Subspace()) if name != "projection"}
    assert fields | {"method", "projection_seed", "subspace.projection.family"} < facts.keys()


def test_inspect_tells_of_an_adapter_what_people_ask(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    adapter = next((finished / "out" / "adapters").iterdir())
    row = next(row for row in Store.open(finished / "out").read() if row.trial.id == adapter.name)
    for place in (adapter, f"{adapter}/"):
        lines = call(capsys, "inspect", place)[1].splitlines()
        said = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
        assert max(map(len, lines)) <= 80 and said["d"] == said["num_trained"] == str(row.trial.d)
        assert said["score"] == f"{row.score:.5g}" and said["seeds"] == row.trial.seeds.text
        assert said["task"] == "tiny" and said["method"] in ("did", "said") and said["bytes"].endswith("KiB")
        assert said["distsub"] and "fingerprint" not in said and "base_sha256" not in said
    facts = json.loads(call(capsys, "inspect", adapter, "--format", "json")[1])
    assert (facts["score"], facts["seeds"], facts["num_examples"]) == (
        row.score,
        row.trial.seeds.text,
        row.num_examples,
    )
    away = shutil.copytree(adapter, tmp_path / "away")  # out of the results, whose row says the score
    code, out, _ = call(capsys, "inspect", away)
    assert not code and "score" not in out


@pytest.mark.parametrize(
    "kind, sides, output", [("llama", "decoder", "of its own"), ("t5", "encoder-decoder", "tied to the embedding")]
)
def test_inspect_shows_a_language_model_as_one(tmp_path, capsys, kind, sides, output):
    facts = json.loads(call(capsys, "inspect", decoders.make(kind, tmp_path), "--format", "json")[1])
    assert facts["kind"].startswith(f"language model, {sides};") and facts["output_layer"].startswith(output)
    assert facts["architecture"] == decoders.KINDS[kind][0] and facts["num_params_head"] == 0
    assert facts["num_params_output"] == 32 * decoders.SIZE["vocab_size"]
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(plain | {"architectures": ["LlamaForSequenceClassification"]}))
    if kind == "llama":
        facts = json.loads(call(capsys, "inspect", tmp_path, "--format", "json")[1])
        assert facts["kind"] == "classifier of 2 classes, here with a new head of 2 classes"


def test_init_writes_a_sweep_that_loads_and_keeps_what_is_there(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    code, _, _ = call(capsys, "init", path, "--task", "mrpc", "--model", "FacebookAI/roberta-base")
    assert code == 0 and load_sweep(path).tasks[0].name == "mrpc"
    assert "exists already" in refused(capsys, "init", path)


def edited(finished, tmp_path, old, new):
    path = tmp_path / "edited.toml"
    text = (finished / "tiny.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 6", "step = 6", 'did you mean "steps"'),
        ('text = "sentence"', 'text = "sentense"', "sentence"),
        ("num_labels = 2", "num_labels = 1\n", "metric"),
        ("dims = [8, 16, 64, 256]", "dims = [4, 16]", "4 scales"),
        ("dims = [8, 16, 64, 256]", "dims = [8, 100000]", "D = 20866"),
        ("max_length = 16", "max_length = 2", "max_length = 2 leaves no room for a word"),
        ('models = [{ path = "', 'models = [{ path = "/nowhere', "no directory"),
        ('name = "tiny"\npath', 'name = "mrpc"\n#', "mrpc"),
        ("etas = [1.0, 3.0]", "etas = []", "etas"),
        ("[budget]", "[budget", "TOML"),
        ('methods = ["said", "did"]', 'methods = ["freeze"]', 'add a subspace, such as "did"'),
    ],
)
def test_bad_sweeps_are_told_in_one_line_and_leave_nothing(finished, tmp_path, capsys, old, new, message):
    path = edited(finished, tmp_path, old, new)
    assert message in refused(capsys, "run", path, "--out", tmp_path / "out", "--backend", "inline")
    assert not (tmp_path / "out").exists()


def test_bad_data_is_told_in_one_line(finished, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for rows, message in (("a,5", "label"), ("", "empty")):
        for name in ("train", "validation"):
            (data / f"{name}.csv").write_text(f"sentence,label\n{rows}\n" if rows else "sentence,label\n")
        text = (finished / "tiny.toml").read_text()
        start = text.index('path = "', text.index("[[tasks]]"))
        end = text.index("\n", start)
        path = tmp_path / "bad.toml"
        path.write_text(text[:start] + f'path = "{data}"' + text[end:])
        assert message in refused(capsys, "run", path, "--out", tmp_path / "out")


def test_the_directory_of_another_sweep_is_refused(finished, tmp_path, capsys):
    path = edited(finished, tmp_path, "steps = 6", "steps = 7")
    assert "another sweep" in refused(capsys, "run", path, "--out", finished / "out")


def test_an_unwritable_output_is_told(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, "run", finished / "tiny.toml", "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize("sql", ["selec 1", "select nope from observations", "select * from read_csv('/etc/passwd')"])
def test_broken_sql_is_told_in_one_line(finished, capsys, sql):
    refused(capsys, "query", finished / "out", sql)


def test_what_is_no_results_directory_is_told(tmp_path, capsys):
    assert "no results directory" in refused(capsys, "status", tmp_path)


def test_a_foreign_adapter_is_told(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(capsys, "inspect", tmp_path)


def test_damaged_rows_are_named_and_skipped(finished, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished / "out", copy)
    victim = next((copy / "observations").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:100])
    code, _, err = call(capsys, "status", copy)
    assert code == 0 and victim.name in err


def test_compact_changes_no_answer(finished, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished / "out", copy)

    def listings():
        rows = json.loads(call(capsys, "status", copy, "--format", "json")[1])
        return [{**row, "last_row_s": None} for row in rows], call(capsys, "query", copy, "from d90")[:2]

    before = listings()
    code, out, _ = call(capsys, "compact", copy, "--format", "json")
    [row] = json.loads(out)
    assert code == 0 and row["parts"] == 1 and row["merged"] == row["rows"] > 2 and row["loose"] == 0
    assert listings() == before
    assert not list((copy / "observations").glob("*.parquet"))


@pytest.mark.slow
def test_interrupted_is_130_and_says_how_to_go_on(finished, tmp_path):
    arguments = ["run", str(finished / "tiny.toml"), "--out", str(tmp_path / "out"), "--backend", "inline"]
    command = [sys.executable, "-m", "distsub.cli", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    while "finished" not in process.stdout.readline():
        assert process.poll() is None
    for _ in range(30):  # as a person presses again: a library may be deaf at that very moment
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=2)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130 and "the same command resumes" in out and "Traceback" not in out + err


def test_a_reader_that_leaves_early_is_no_crash(finished, warm):
    sql = "select * from observations, range(2000)"
    query = f"{shlex.join(warm.command)} query '{finished / 'out'}' '{sql}' --format csv"
    command = f"{query} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def copy_model(tiny_model, folder, leave_out=()):
    for file in Path(tiny_model).iterdir():
        if not file.name.startswith(leave_out):
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 48), ("num_hidden_layers", 5)])
def test_a_config_of_other_weights_is_refused(tiny_model, tmp_path, capsys, key, value):
    copy_model(tiny_model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    assert "does not belong to its weights" in refused(capsys, "inspect", tmp_path)


def test_a_model_without_tokenizer_is_refused(finished, tiny_model, tmp_path, capsys):
    copy_model(tiny_model, tmp_path, ("tokenizer", "vocab", "special"))
    path = edited(finished, tmp_path, tiny_model, str(tmp_path))
    assert "tokenizer" in refused(capsys, "plan", path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('methods = ["said", "did"]', 'methods = [{name = "did", projection = "partition"}]', "without a parameter"),
        ("seeds = 1", "seeds = 1000000000", "10000"),
        ("steps = 6", f"steps = {2**70}", "steps"),
        ("cpus_per_trial = 1", "cpus_per_trial = 1\ngpus_per_trial = 1", "no GPU"),
        ('path = "', 'train = "validation"\npath = "', "both"),
    ],
)
def test_plan_refuses_what_a_run_would_choke_on(finished, tmp_path, capsys, old, new, message):
    path = tmp_path / "edited.toml"
    text = (finished / "tiny.toml").read_text()
    head, tasks, rest = text.partition("[[tasks]]")
    path.write_text(head + tasks + rest.replace(old, new) if old in rest else head.replace(old, new) + tasks + rest)
    text = path.read_text()
    if "partition" in new:
        path.write_text(text.replace("dims = [8, 16, 64, 256]", "dims = [15000]"))
    assert message in refused(capsys, "plan", path)


def test_a_damaged_copy_of_the_sweep_heals(finished, tmp_path, capsys):
    import shutil

    shutil.copytree(finished / "out", tmp_path / "out")
    (tmp_path / "out" / "sweep.toml").write_text("")
    code, _, _ = call(capsys, "run", finished / "tiny.toml", "--out", tmp_path / "out", "--backend", "inline")
    assert code == 0 and call(capsys, "status", tmp_path / "out")[0] == 0


LEARNED = """\
name = "learned"
models = [{{ path = "{model}" }}]
methods = ["intrinsic", {{ name = "random", etas = [0.1] }}]
seeds = 1
policy = "grid"
dims = [2]

[[tasks]]
name = "tiny"
path = "{data}"
text = "sentence"

[trajectory]
every = 20

[search]
etas = [1.0]
learning_rate = 3e-3

[baseline]
learning_rates = [3e-3]

[budget]
steps = 40
batch_size = 16
max_length = 16
precision = "fp32"
"""


@pytest.mark.slow
def test_learned_updates_from_the_sweep_to_the_figures(tiny_model, tiny_data, tmp_path, capsys):
    sweep, out, here = tmp_path / "learned.toml", tmp_path / "out", ("--backend", "inline", "--plain")
    sweep.write_text(LEARNED.format(model=tiny_model, data=tiny_data))
    assert call(capsys, "run", sweep, "--out", out, *here)[0] == 0
    code, listed, printed = call(capsys, "outliers", out, "--k", 2, "--permutations", 19)
    assert code == 0 and "excess_kurtosis" in listed and "figures/components.png" in printed
    code, listed, _ = call(capsys, "ablate", out, "--k", 2, "--edit", "reset", *here)
    assert code == 0 and "reset" in listed and (out / "figures" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    code, listed, _ = call(capsys, "transfer", out, "--format", "json")
    assert code == 0 and [row["source"] for row in json.loads(listed)] == ["tiny"]
    sql = "select count(*) n, bool_and(seeds = 1) one from ablations where versus = 'none'"
    assert json.loads(call(capsys, "query", out, sql, "--format", "json")[1]) == [{"n": 4, "one": True}]
    assert 'unknown; did you mean "zero"' in refused(capsys, "ablate", out, "--edit", "zeros")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_disabled_weights_give_the_same_table_through_tune_as_inline(tiny_model, tiny_data, tmp_path, capsys, warm):
    """Two real Ray workers read masks, edit weights and leave rows as one process does that runs them in turn."""
    sweep = tmp_path / "learned.toml"
    text = with_keys(LEARNED.format(model=tiny_model, data=tiny_data), seeds=2)
    sweep.write_text(text)
    code, *_ = call(capsys, "run", sweep, "--out", tmp_path / "inline", "--backend", "inline", "--plain")
    assert code == 0
    shutil.copytree(tmp_path / "inline", tmp_path / "tune")
    more = ("--k", "2", "--edit", "zero", "--edit", "reset", "--plain", "--backend")
    assert call(capsys, "ablate", tmp_path / "inline", *more, "inline")[0] == 0
    folder = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # Ray's sockets need a short path
    try:
        given = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        given |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        done = warm.run("ablate", tmp_path / "tune", *more, "tune", env=given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and done.stdout.count("finished tiny") == 2 * 4 * 2
    stores = [Store.open(str(tmp_path / name)) for name in ("inline", "tune")]
    for name in ("masks", "ablations", "outliers"):
        inline, tune = (read_analysis(store.files, name).to_pylist() for store in stores)
        assert inline == tune and inline, name
    edits = {
        (row["edit"], row["mask"], row["seeds"]) for row in read_analysis(stores[0].files, "ablations").to_pylist()
    }
    masks = ("outliers", "random", "tensor", "magnitude")
    assert edits == {(edit, mask, 2) for edit in ("zero", "reset") for mask in masks}
    times = {"wall_s", "eval_s", "peak_bytes", "provenance"}
    inline, tune = (store.table().drop_columns(list(times)).to_pylist() for store in stores)
    assert inline == tune and sum(row["ablation"] is not None for row in inline) == 16


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dims = [2]", "dims = [2, 3]", "d = 3 is above the 2 directions that its checkpoints span"),
        (
            "every = 20",
            'every = "epoch"\ncheckpoints = 8',
            "gives 2 checkpoints, 8 are asked for: 40 steps are 2 epochs",
        ),
        ("every = 20", "every = 41", "gives 0 checkpoints, 1 are asked for"),
        (
            "every = 20",
            'every = "step"',
            "[trajectory] every: give \"epoch\" or a number of steps from 1 on, not 'step'",
        ),
        ("every = 20", "every = 0", "[trajectory] every: give"),
        ("every = 20", "every = 20\nlearning_rate = 1e20", "diverged at learning rate 1e+20"),
        (
            '"intrinsic", ',
            '{{ name = "intrinsic", first = 3 }}, ',
            "first = 3, but the trajectory of task 'tiny' has 2",
        ),
        ('"intrinsic", ', '{{ name = "inductive", sources = "tony" }}, ', 'sources: "tony" is not among the tasks'),
    ],
)
def test_what_trajectory_cannot_do_is_told_in_one_line(tiny_model, tiny_data, tmp_path, capsys, old, new, message):
    assert old in LEARNED
    sweep = tmp_path / "learned.toml"
    sweep.write_text(LEARNED.replace(old, new).format(model=tiny_model, data=tiny_data))
    said = refused(capsys, "trajectory", "record", sweep, "--out", tmp_path / "out")
    assert message in said and len(said.splitlines()) == 1


def test_trajectories_that_do_not_fit_are_told_and_damaged_ones_are_mended(tiny_model, tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_model, tmp_path / "model")
    sweep, out = tmp_path / "learned.toml", tmp_path / "out"
    sweep.write_text(LEARNED.format(model=tmp_path / "model", data=tiny_data))
    code, listed, said = call(capsys, "trajectory", "record", sweep, "--out", out, "--format", "json")
    assert code == 0 and said.startswith("recorded") and json.loads(listed)[0]["checkpoints"] == 2
    assert call(capsys, "trajectory", "record", sweep, "--out", out)[2].startswith("known")
    [file] = (out / "trajectories").glob("*/step-000020.safetensors")
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:-9]), file.unlink, (file.parent / "trajectory.json").unlink):
        damage()
        assert call(capsys, "trajectory", "record", sweep, "--out", out)[2].startswith("recorded")
        assert file.read_bytes() == content
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    pretrained.prepare.cache_clear()  # as in another process
    said = refused(capsys, "trajectory", "record", sweep, "--out", out)
    assert "has changed" in said and "rows of the old: 1" in said and len(said.splitlines()) == 1


def test_checkpoints_from_elsewhere_are_imported(series, tiny_model, tmp_path, capsys):
    given = [series / f"checkpoint-{step}" for step in (20, 10)]
    out = tmp_path / "imported"
    code, listed, said = call(
        capsys, "trajectory", "import", tiny_model, *given, "--out", out, "--dtype", "float32", "--format", "json"
    )
    assert code == 0 and [row["step"] for row in json.loads(listed)] == [10, 20]
    assert "note: without classifier.bias, classifier.weight" in said and f'trajectory = "{out}"' in said
    said = refused(capsys, "trajectory", "import", tiny_model, *given, "--out", out)
    assert "is there already" in said and len(said.splitlines()) == 1


def test_outliers_of_nothing_learned_are_refused(tmp_path, capsys):
    assert "is no results directory" in refused(capsys, "outliers", tmp_path)
