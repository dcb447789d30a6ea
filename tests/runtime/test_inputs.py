"""Nodes that do not see the driver's files, for real: mount namespaces over them, a cluster, and inputs in a bucket."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import with_keys

from distsub.config import load_sweep
from distsub.files import Files
from distsub.finetune import importing, inputs
from distsub.preflight.checks import check
from distsub.results import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLONE_NEWNS, CLONE_FS = 0x00020000, 0x00000200


@contextlib.contextmanager
def unseen(folder):
    """Be where a folder is empty, with all that is started there; skips where that is not permitted.

    In this thread, since Ray starts nodes in the main one.
    """
    libc, before, directory = ctypes.CDLL(None, use_errno=True), os.open("/proc/thread-self/ns/mnt", 0), os.getcwd()
    if libc.unshare(CLONE_NEWNS):
        os.close(before)
        pytest.skip(f"no mount namespaces here: {os.strerror(ctypes.get_errno())}")
    try:
        for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "tmpfs", str(folder)]):
            done = subprocess.run(["mount", *mount], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no mounts here: {done.stderr.strip()}")
        yield
    finally:
        libc.unshare(CLONE_FS)  # threads that were started here share this one's, which then may not leave
        assert libc.setns(before, CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(before)
        os.chdir(directory)
    assert list(Path(folder).iterdir())


@pytest.fixture
def private(tmp_path, tiny_model, tiny_data, small_sweep):
    """A folder that only the driver shall see, with all that a sweep is of; its weights have to be converted."""
    from transformers import AutoModel

    folder = tmp_path / "private"
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_data, folder / "data")
    AutoModel.from_pretrained(folder / "model").half().save_pretrained(folder / "model")
    text = small_sweep.read_text().replace(tiny_model, "model").replace(tiny_data, "data")
    small_sweep.write_text(text.replace("steps = 40", "steps = 8").replace("eval_every = 10", "eval_every = 4"))
    return folder


@pytest.fixture
def imported(private, small_sweep, series):
    """A trajectory from elsewhere in that folder, which a method of the sweep takes its subspace from."""
    checkpoints = [str(series / f"checkpoint-{step}") for step in (10, 20, 30, 40)]
    importing.import_checkpoints(str(private / "model"), checkpoints, private / "imported")
    learned = '["did", { name = "intrinsic", trajectory = "imported", dims = [2] }]'
    text = small_sweep.read_text().replace('["did"]', learned)
    small_sweep.write_text(text.replace('"bisection"', '"grid"'))  # in so few steps no baseline beats chance


@pytest.fixture
def small_sweep(small_sweep, tmp_path):
    """The small sweep, beside its model and data."""
    (tmp_path / "private").mkdir()
    return small_sweep.rename(tmp_path / "private" / "small.toml")


def converted(cache):
    """Count the models that a cache holds in float32."""
    return len(list(Path(cache).glob("*/distsub.json")))


def test_a_process_that_sees_neither_model_nor_data_leaves_the_same_row(
    private, small_sweep, truth, trained_apart, tmp_path, monkeypatch
):
    """Not even the addresses are told: the results have them, and nothing is there."""
    sweep = check(load_sweep(small_sweep))
    store = Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, ".", sweep.places)
    assert len(list(inputs.put(store.files, sweep.places, sweep.budget))) == 2
    trial = sweep.searches()[0].baseline[0]
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    with unseen(private):
        trained_apart(store, trial, program=(sys.executable, "-c"))  # a warm one sees what its server does
    (row,) = store.table().to_pylist()
    changing = {"wall_s", "eval_s", "peak_bytes", "provenance"}
    assert {key: value for key, value in row.items() if key not in changing} == truth[trial.id]
    assert converted(tmp_path / "cache") == 1


@pytest.mark.parametrize(("blind", "storage"), [(1, "shared"), (2, "bucket")])
def test_nodes_that_do_not_see_the_driver_s_files_train_the_same(
    blind, storage, private, imported, rig, starts, small_sweep, truth, distsub_run, tmp_path, monkeypatch, request
):
    starts.patch(delay=0.5)
    caches, nodes = [tmp_path / "cache-0", tmp_path / "cache-1"], []
    if storage == "bucket":  # before its nodes start, which inherit its settings
        (address, options) = request.getfixturevalue("bucket")
        out = f"{address}/{tmp_path.name}?{options}"  # the server's buckets outlive it in this process
        rig.environment |= {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    else:
        out = tmp_path / "out"
    for i, cache in enumerate(caches):
        monkeypatch.setenv("DISTSUB_CACHE", str(cache))
        with unseen(private) if i < blind else contextlib.nullcontext():
            nodes.append(rig.add())
    run = distsub_run(small_sweep, out, rig.environment)
    run.finish(truth)
    assert {node for _, node, *_ in starts.read()} == {node.node_id for node in nodes}
    assert run.log().count("put into the results") == 2
    assert [converted(cache) for cache in caches] == [1, 1]
    fetched = [(cache / "inputs").is_dir() for cache in caches]
    assert fetched == ([True, True] if storage == "bucket" else [False, False])
    table = Store.open(str(out)).table(["model", "method"]).to_pydict()
    assert "private/model" in table["model"][0] and any(each.startswith("imported:") for each in table["method"])


def test_without_the_inputs_the_node_is_named(private, rig, small_sweep, distsub_run, tmp_path):
    # One training that finds no inputs is enough.
    small_sweep.write_text(with_keys(small_sweep.read_text(), seeds=1, learning_rates=[3e-3], retries=0))
    with unseen(private):
        rig.add()
    run = distsub_run(small_sweep, tmp_path / "out", rig.environment, "--no-inputs")
    assert run.wait(400) == 3
    assert not (tmp_path / "out" / "inputs").exists()
    errors = Store.open(str(tmp_path / "out")).table(["error"])["error"].to_pylist()
    assert errors and all(f"node {os.uname().nodename}: " in each and "private/model" in each for each in errors)


def test_a_model_and_data_in_a_bucket(bucket, private, small_sweep, truth, tmp_path, warm):
    """The same ids and rows as from local files; copied once; credentials in a sweep file are refused."""
    address, options = bucket
    files = Files.at(f"{address}/inputs?{options}")
    for file in [each for each in private.rglob("*") if each.is_file()]:
        files.send(file.relative_to(private).as_posix(), file)
    files.send("model/optimizer.pt", small_sweep)
    shutil.rmtree(private / "model")
    shutil.rmtree(private / "data")
    text = small_sweep.read_text()
    remote = text.replace('"model"', f'"{address}/inputs/model?{options}"')
    remote = remote.replace('path = "data"', f'path = "{address}/inputs/data?{options}"')
    small_sweep.write_text(remote)
    environment = os.environ | {"DISTSUB_CACHE": str(tmp_path / "cache")}

    def distsub(*arguments):
        return warm.run(*arguments, env=environment)

    done = distsub("run", small_sweep, "--out", tmp_path / "out", "--backend", "inline", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Store.open(tmp_path / "out").table().to_pylist()
    assert {row["trial_id"]: (row["score"], row["correct"]) for row in rows} == {
        trial: (row["score"], row["correct"]) for trial, row in truth.items()
    }
    assert rows[0]["model"].startswith(f"{address}/inputs/model")
    fetched = tmp_path / "cache" / "fetched"
    assert len([each for each in fetched.iterdir() if each.is_dir()]) == 2
    assert not list(fetched.rglob("optimizer.pt")) and converted(tmp_path / "cache") == 1
    assert not (tmp_path / "out" / "inputs").exists()

    small_sweep.write_text(text.replace('"model"', '"s3://AKIA:hidden/part@bucket/inputs/model"'))
    refused = distsub("run", small_sweep, "--out", tmp_path / "other")
    assert refused.returncode == 2 and "credentials" in refused.stderr and not (tmp_path / "other").exists()
    assert "hidden" not in refused.stderr + refused.stdout and "AKIA" not in refused.stderr
    small_sweep.write_text(remote.replace("/inputs/model?", "/nowhere?"))
    missing = distsub("run", small_sweep, "--out", tmp_path / "other")
    lines = [line for line in missing.stderr.splitlines() if line]
    assert missing.returncode == 2 and len(lines) == 1 and f"{address}/nowhere" in lines[0]
