"""A training's memory: what it leaves behind, what it may take, and what happens when that is too little."""

import gc
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from builders import with_keys

from distsub.config import load_sweep, parse_sweep
from distsub.errors import ConfigError, OutOfMemoryError
from distsub.finetune import memory, train
from distsub.finetune.train import Stopped
from distsub.results import Store
from distsub.runtime import launch
from distsub.runtime.worker import WorkerConfig, failed, perform


@pytest.fixture
def sweep(tiny_text):
    return parse_sweep(with_keys(tiny_text, steps=4, eval_every=None))


@pytest.fixture
def models(monkeypatch):
    """Weak references to every model, base model and optimizer of the trainings that follow."""
    found, build, optimise = [], train.build_model, train.build_optimizer

    def note(made):
        found.append(weakref.ref(made))
        return made

    def build_model(*args, **more):
        model, record = build(*args, **more)
        note(getattr(model, "model", model))
        return note(model), record

    monkeypatch.setattr(train, "build_model", build_model)
    monkeypatch.setattr(train, "build_optimizer", lambda *args: note(optimise(*args)))
    return found


def too_little(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 4 GiB.\nMore.")


@pytest.mark.parametrize("kind", ["full", "subspace"])
@pytest.mark.parametrize("end", ["finished", "cancelled", "out of memory", "crashed"])
def test_nothing_of_a_training_is_left_whatever_way_it_ends(sweep, store, models, kind, end):
    search = sweep.searches()[0]
    trial = search.baseline[0] if kind == "full" else search.trials_at(64)[0]

    def report(step, steps):
        if end == "out of memory":
            too_little()
        return end == "cancelled" or (end == "crashed" and 1 / 0)

    try:
        row = perform(trial, WorkerConfig(store.uri, checkpoint_s=None), report)
        assert row.status == end == "finished"
    except (OutOfMemoryError, ZeroDivisionError, Stopped) as raised:
        assert end != "finished" and raised.__context__ is None  # it would hold the stack, and the model in it
    memory.release()  # after a crash the stack is held until the error is dealt with
    assert len(models) == 3 and [each() for each in models] == [None] * 3


def test_the_imports_are_looked_through_once(sweep, store):
    search = sweep.searches()[0]
    perform(search.baseline[0], WorkerConfig(store.uri))
    set_aside = gc.get_freeze_count()
    assert set_aside > 100_000
    perform(search.trials_at(8)[0], WorkerConfig(store.uri))
    assert set_aside - 1000 < gc.get_freeze_count() <= set_aside  # what was set aside may die, and no more is


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_shortage_is_told_from_other_errors(error, short):
    assert memory.is_shortage(error) == short


def test_what_torch_raises_on_a_cpu_is_a_shortage():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.int8)
    assert memory.is_shortage(caught.value)


def test_it_says_what_it_asked_for_and_what_to_lower(sweep, store, monkeypatch):
    search = sweep.searches()[0]
    monkeypatch.setattr(torch.optim.AdamW, "step", too_little)
    with pytest.raises(OutOfMemoryError) as caught:
        perform(search.baseline[0], WorkerConfig(store.uri))
    said = str(caught.value)
    assert "\n" not in said and "full with batch_size = 16, max_length = 16" in said and 'precision = "bf16"' in said
    shared = memory.advice(search.trials_at(8)[0], "cuda", 0.25, caught.value)
    assert "memory on 0.25 of a GPU: said with" in shared and "or raise [resources] gpus_per_trial" in shared
    whole = memory.advice(search.baseline[0], "cuda", 1.0, caught.value)
    assert "memory of a whole GPU: full with" in whole and "raise" not in whole
    row = failed(search.baseline[0], caught.value)
    assert row.error.startswith("out of ") and row.status == "error"


def test_a_share_of_a_gpu_is_a_bound_that_the_next_trial_of_the_process_replaces(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=16 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    for share in (0.25, 1.0, 0.01):
        memory.bound("cuda", share)
    memory.bound("cpu", 0.5)
    assert given == [0.25 - 1 / 32, 1.0, 0.0]  # the share, less what a CUDA context takes


def test_it_is_not_tried_again_where_a_trial_is_alone(sweep, store, models, monkeypatch, capsys):
    monkeypatch.setattr(torch.optim.AdamW, "step", too_little)
    assert launch.run(sweep, store, "inline") == 3
    rows = store.read()
    assert {row.status for row in rows} == {"error"} and all(row.error.startswith("out of ") for row in rows)
    assert len(models) == 3 * len(rows)  # and retries = 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gpus_per_trial = 2", r"\[resources\] gpus_per_trial: 2: a training runs on one GPU"),
        ("gpus_per_trial = 1.5", r"\[resources\] gpus_per_trial: 1.5: a training runs on one GPU; give 1, a fraction"),
        ("gpus_per_trial = -1", "greater than or equal to 0"),
        ("[resources.baseline]\ngpus_per_trial = 1.01", r"\[resources\] baseline gpus_per_trial: 1.01: a training"),
        (
            "[resources.baseline]\ngpus_per_trial = 1",
            r"\[resources.baseline\] gpus_per_trial = 1 beside .* = 0: a thresh",
        ),
        ("gpus_per_trial = 0.5\n[resources.baseline]\ngpus_per_trial = 0", "give both GPUs or none"),
        ("[resources.baseline]\nretries = 1", 'unknown key "retries"'),
    ],
)
def test_what_a_training_cannot_have_is_refused_with_the_reason(tiny_text, given, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_sweep(tiny_text.split("[resources]")[0] + "[resources]\n" + given)
    assert "\n" not in str(caught.value)


def test_full_fine_tuning_may_have_resources_of_its_own(tiny_text):
    head = tiny_text.split("[resources]")[0]
    own = "[resources]\ngpus_per_trial = 0.25\n[resources.baseline]\ngpus_per_trial = 1\ncpus_per_trial = 3"
    sweep, plain = parse_sweep(head + own), parse_sweep(head)
    search = sweep.searches()[0]
    baseline, probe = sweep.resources.of(search.baseline[0]), sweep.resources.of(search.trials_at(8)[0])
    assert (baseline.cpus_per_trial, baseline.gpus_per_trial) == (3, 1)
    assert (probe.cpus_per_trial, probe.gpus_per_trial) == (1, 0.25)
    assert WorkerConfig("x").within(baseline.cpus_per_trial).threads == 3
    assert sweep.fingerprint == plain.fingerprint
    half = parse_sweep(head + "[resources]\ngpus_per_trial = 0.5\n[resources.baseline]\ncpus_per_trial = 2")
    assert half.resources.of(search.baseline[0]).gpus_per_trial == 0.5


DRIVER = """
import sys
from distsub.config import load_sweep
from distsub.results import Store
from distsub.runtime import launch, worker
Config = worker.WorkerConfig
worker.WorkerConfig = lambda **given: Config(**given | {"device": "cpu"})  # no GPU is here
sweep = load_sweep(sys.argv[1])
sys.exit(launch.run(sweep, Store.create(sys.argv[2], sweep.text, sweep.fingerprint), "tune", adapters=False))
"""

SHORT = """\
import torch
gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
with open({log!r}, "a") as sink:
    sink.write(f"{{trial.method.kind}} {{trial.task.name}} {{gpus:g}} {{trial.id}}\\n")
if {when}:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""


@pytest.fixture
def on_a_gpu(rig, starts, tiny_sweep, tmp_path):
    """Run a sweep on a node with one (logical) GPU, of which trainings run short under a condition."""
    sweep = tiny_sweep
    # A training that runs short ends its process: one full fine-tuning of each task is enough.
    text = with_keys(sweep.read_text(), methods=["did"], seeds=1, etas=[3.0], learning_rates=[3e-3])
    rig.add(num_cpus=4, num_gpus=1)

    def run(when, resources, second_task=False):
        log = tmp_path / "log"
        starts.patch(more=SHORT.format(log=str(log), when=when))
        head = text.split("[resources]")[0]
        if second_task:
            block = head[head.index("[[tasks]]") : head.index("[search]")]
            head = head.replace(block, block + block.replace('name = "tiny"', 'name = "other"'))
        sweep.write_text(f"{head}[resources]\nretries = 3\n{resources}")
        out, environment = tmp_path / "out", rig.environment | {"CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", DRIVER, str(sweep), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.getcwd())
        lines = [line.split() for line in log.read_text().splitlines()]
        loaded = load_sweep(sweep)
        return done, lines, launch.queue_of(loaded, Store.open(str(out)).read())

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_share_is_too_small_for_is_tried_once_more_alone_and_ends_no_other_search(on_a_gpu):
    """Full fine-tuning of one task needs the whole GPU, that of the other more."""
    short = 'trial.method.kind == "full" and (gpus < 1 or trial.task.name == "other")'
    done, starts, queue = on_a_gpu(short, "gpus_per_trial = 0.5", second_task=True)
    assert done.returncode == 3, done.stdout + done.stderr
    full = [(trial, gpus) for method, _, gpus, trial in starts if method == "full"]
    assert sorted(full) == sorted((trial, gpus) for trial in {trial for trial, _ in full} for gpus in ("0.5", "1"))
    assert {task for method, task, *_ in starts if method == "full"} == {"tiny", "other"}
    assert {gpus for method, _, gpus, _ in starts if method == "subspace"} == {"0.5"}
    assert "out of " in done.stdout and "tried once more, alone on a GPU" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    outcome = {
        search.task.name: each.outcome.name for search, each in zip(queue.searches, queue.findings(), strict=True)
    }
    assert outcome["tiny"] == "found" and outcome["other"] != "found"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_fine_tuning_gets_what_is_written_for_it(on_a_gpu):
    done, starts, queue = on_a_gpu(
        "gpus < 1 and trial.method.kind == 'full'", "gpus_per_trial = 0.5\n[resources.baseline]\ngpus_per_trial = 1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(method, gpus) for method, _, gpus, _ in starts} == {("full", "1"), ("subspace", "0.5")}
    assert len({trial for *_, trial in starts}) == len(starts) and "out of " not in done.stdout
    assert [finding.outcome.name for finding in queue.findings()] == ["found"]
