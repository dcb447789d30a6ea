"""How far logits move in bfloat16 beside padding: where it is hidden, and where it is not.

    python benchmarks/padding.py            # writes benchmarks/padding.json, half a minute on one core

Random models of the eleven architectures of tests/finetune/test_completions.py as transformers initialises them: 4
layers of width 32 and 128, ten seeds. Three rows of 4, 13 and 51 tokens alone and together, padded at the left as for
an answer: the largest difference of the next token's logits as a share of the largest logit, which `rehearsal` bounds.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
LENGTHS, WIDTHS, SEEDS = (3, 12, 50), (1, 4), 10
WIDENED = (
    *("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "intermediate_size", "ffn_dim", "d_ff", "d_kv"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "head_dim"),
)


def make(decoders: Any, kind: str, width: int, seed: int) -> Any:
    """Make a random model in bfloat16."""
    name, settings = decoders.KINDS[kind]
    settings = {key: value * width if key in WIDENED else value for key, value in settings.items()}
    settings |= {key: 4 for key in ("num_hidden_layers", "n_layer", "num_layers") if key in settings}
    both = {"decoder_start_token_id": 0, "forced_eos_token_id": None} if kind in ("t5", "bart") else {}
    made: Any = getattr(transformers, name)
    torch.manual_seed(seed)
    config = {"vocab_size": decoders.SIZE["vocab_size"], **settings, **decoders.MARKS, **both}
    return made(made.config_class(**config)).to(torch.bfloat16).eval()


@torch.no_grad()
def apart(model: Any, tokenizer: Any, seed: int) -> tuple[float, float]:
    """Give the shares by which logits move, with padding hidden and seen."""
    from distsub.finetune import generation

    draw = random.Random(seed)
    rows = [{"input_ids": [1, *(draw.randrange(7, 56) for _ in range(n))], "labels": [2]} for n in LENGTHS]

    def first(chosen: list[int], hide: bool) -> torch.Tensor:
        batch = generation.prompts(tokenizer, rows, chosen, "cpu")
        if not hide:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return model.generate(
            **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        ).logits[0].float()  # fmt: skip

    alone = torch.cat([first([row], True) for row in range(len(rows))])
    shares = [(first([*range(len(rows))], hide) - alone).abs().max() / alone.abs().max() for hide in (True, False)]
    return shares[0].item(), shares[1].item()


def main() -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    import decoders

    from distsub.preflight.settings import SETTINGS

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found: dict[str, list[tuple[float, float]]] = {
        kind: [
            apart(make(decoders, kind, width, seed), decoders.tokenizer(), seed)
            for width in WIDTHS
            for seed in range(SEEDS)
        ]
        for kind in decoders.KINDS
    }
    values = np.array([pair for pairs in found.values() for pair in pairs])
    about = {
        "models": len(values),
        "hidden": {f"{100 * q:g}%": round(float(np.quantile(values[:, 0], q)), 4) for q in (0.5, 0.9, 0.99, 1.0)},
        "seen": {f"{100 * q:g}%": round(float(np.quantile(values[:, 1], q)), 4) for q in (0.01, 0.1, 0.5)},
        "seen_and_refused": round(float((values[:, 1] > SETTINGS.rounded).mean()), 3),
        "largest_hidden": {kind: round(max(each for each, _ in pairs), 4) for kind, pairs in found.items()},
        "smallest_seen": {kind: round(min(each for _, each in pairs), 4) for kind, pairs in found.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (HERE / "padding.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
