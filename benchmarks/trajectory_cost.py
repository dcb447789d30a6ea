"""Cost of one training step in a learned subspace of a BERT-base-sized model, beside full fine-tuning and a random one.

    python benchmarks/trajectory_cost.py                    # a table, and trajectory_cost.json beside this file
    python benchmarks/trajectory_cost.py --folder /scratch  # where 5.4 GB fit; they are deleted at the end

Model: BERT-base with random weights; t = 32 checkpoints of its layers in bfloat16, random too, mapped from disk; d = 32
per layer; 32 rows of 128 tokens, AdamW, float32. Times: the arms take turns in one process, so that a busy moment hits
them alike; ratios of medians and of minima to full fine-tuning. Memory: each arm in a process of its own, the highest
anonymous memory during set-up and two steps beyond that with the weights loaded. Mapped checkpoints are not
anonymous: they are the page cache's, and given up when memory is short.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from distsub.records import Budget, Learned, Source, Span, Subspace
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots

ARMS = ("full", "partition", "trajectory")
ROWS, LENGTH, T, D = 32, 128, 32, 32
TIME_TARGET, MEMORY_TARGET = 1.5, 1e9
RANDOM = Subspace(scope="layer", head="trained", embeddings="frozen")
LEARNED = replace(RANDOM, projection=Learned(Span((Source(),), 1e-5, Budget(steps=T))))


def build() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_labels=2, attn_implementation="sdpa")).train()


def write_checkpoints(folder: Path) -> None:
    """Write t random differences of every layer, of the size that fine-tuning makes."""
    shapes = {name: p.shape for name, p in build().named_parameters() if ".layer." in name}
    for number in range(T):
        generator = torch.Generator().manual_seed(number)
        update = {name: torch.randn(shape, generator=generator).mul_(1e-3) for name, shape in shapes.items()}
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in update.items()}
        save_file(tensors, folder / f"step-{number:06d}.safetensors")


def snapshots(folder: Path) -> Snapshots:
    """Map the checkpoints, as distsub.finetune.trajectory does."""
    updates = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            updates.append({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return Snapshots(tuple(updates))


def make_step(arm: str, model: nn.Module, folder: Path) -> Callable[[], None]:
    """Prepare one training step: forward, backward, AdamW."""
    held = model
    if arm == "partition":
        held = SubspaceModel(model, D, RANDOM)
    elif arm == "trajectory":
        held = SubspaceModel(model, D, LEARNED, snapshots=snapshots(folder))
    optimizer = torch.optim.AdamW([p for p in held.train().parameters() if p.requires_grad], lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (ROWS, LENGTH), generator=generator)
    batch: dict[str, Tensor] = {"input_ids": ids, "labels": torch.arange(ROWS) % 2}

    def step() -> None:
        held(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def anonymous_bytes() -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure_memory(arm: str, folder: Path) -> int:
    """Measure an arm's peak beyond its loaded weights, in bytes; call it in a fresh process."""
    model = build()
    torch.randn(512, 512) @ torch.randn(512, 512)  # buffers of the library are not the arm's
    loaded, peak, over = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step = make_step(arm, model, folder)
    for _ in range(2):
        step()
    over.set()
    watcher.join()
    return peak[0] - loaded


def measure_times(folder: Path, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Time the arms in turns; and the set-up of the learned one, which is the Gram matrices' pass over all files."""
    began = time.perf_counter()
    learned = make_step("trajectory", build(), folder)
    setup_s = time.perf_counter() - began
    steps = {"full": make_step("full", build(), folder), "partition": make_step("partition", build(), folder)}
    steps["trajectory"] = learned
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds + 1):
        for arm, step in steps.items():
            began = time.perf_counter()
            step()
            if number:
                times[arm].append(time.perf_counter() - began)
    return times, setup_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="Where the checkpoints lie while this runs.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(measure_memory(options.memory_of, options.folder))
        return
    with tempfile.TemporaryDirectory(prefix="trajectory-cost-", dir=options.folder) as name:
        folder = Path(name)
        write_checkpoints(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        memory = {}
        for arm in ARMS:
            command = [sys.executable, __file__, "--memory-of", arm, "--folder", name]
            command += ["--threads", str(options.threads)]
            memory[arm] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        times, setup_s = measure_times(folder, options.rounds)
    rows = [
        {
            "arm": arm,
            "step_s_median": round(statistics.median(times[arm]), 3),
            "step_s_min": round(min(times[arm]), 3),
            "ratio_median": round(statistics.median(times[arm]) / statistics.median(times["full"]), 3),
            "ratio_min": round(min(times[arm]) / min(times["full"]), 3),
            "peak_bytes_beyond_weights": memory[arm],
        }
        for arm in ARMS
    ]
    result = {
        "model": "BERT-base, random weights",
        "batch": [ROWS, LENGTH],
        "checkpoints": T,
        "d_per_layer": D,
        "mapped_bytes": size,
        "setup_s": round(setup_s, 1),
        "arms": rows,
        "bytes_beyond_a_random_subspace": memory["trajectory"] - memory["partition"],
        "targets": {"ratio": TIME_TARGET, "bytes_beyond_weights_and_a_step": MEMORY_TARGET},
        "rounds": options.rounds,
        "threads": options.threads,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items()))
    print(f"beyond a random subspace: {result['bytes_beyond_a_random_subspace'] / 1e6:.0f} MB; set-up {setup_s:.1f} s")


if __name__ == "__main__":
    main()
