"""What preparing a checkpoint takes: peak memory beyond the imports, over the bytes of its largest shard, and time.

    python benchmarks/prepare_memory.py            # two minutes, 3 GB of disk; writes prepare_memory.json

A random Llama of about 500 MB in bfloat16 (250 M parameters, one shard) and the same in float32 are prepared once, each
in a process of its own with an empty cache, and once more in a second process, as a worker's first trial does. Peak
memory is VmHWM, so pages of mapped files count while they are mapped.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HELD = ("float32", "bfloat16", "auto")

ONE = """
import json, sys, time
import torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.llama import modeling_llama
from distsub.finetune import memory
from distsub.models import pretrained

folder, dtype = sys.argv[1:]
meter = memory.Meter("cpu")
before, began = meter.peak_bytes(), time.perf_counter()
given = {"dtype": dtype} if "dtype" in pretrained.prepare.__code__.co_varnames else {}
found = pretrained.prepare(folder, **given)
print(json.dumps({"peak_bytes": meter.peak_bytes() - before, "seconds": time.perf_counter() - began}))
"""


def make(folder: Path, dtype: str) -> int:
    """Save a random model; gives the bytes of its one shard."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    [shard] = folder.glob("*.safetensors")
    return shard.stat().st_size


def measure(folder: Path, dtype: str, cache: str) -> dict[str, float]:
    """Prepare a checkpoint in a process of its own."""
    environment = {**os.environ, "DISTSUB_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(folder), dtype], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "prepare_memory.json")
    parser.add_argument("--held", nargs="*", default=HELD)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for stored in ("bfloat16", "float32"):
            folder = Path(place) / stored
            shard = make(folder, stored)
            for held in given.held:
                with tempfile.TemporaryDirectory(dir=place) as cache:
                    first, again = measure(folder, held, cache), measure(folder, held, cache)
                row: dict[str, Any] = {"stored": stored, "held": held, "shard_bytes": shard}
                row |= {"peak_over_shard": round(first["peak_bytes"] / shard, 3), "seconds": round(first["seconds"], 2)}
                row |= {"seconds_in_the_next_process": round(again["seconds"], 3)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}
    given.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
