"""What a model reads: texts as token ids, drawn in batches of similar length and padded.

The data seed decides the order of the batches and nothing else.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from distsub.data.dataset import Split
from distsub.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]
"""One tokenized text: input_ids, and token_type_ids where the tokenizer makes them; no padding."""


def tokenize(tokenizer: "PreTrainedTokenizerBase", split: Split, max_length: int) -> list[Example]:
    """Turn texts into token ids, cut to a length and not padded.

    Args:
        tokenizer: The model's.
        split: Texts, single or pairs.
        max_length: Tokens per example, special tokens included; of a pair the longer text is cut first.

    Returns:
        One example per row.
    """
    first, *second = map(list, split.texts)
    encoded = tokenizer(
        first,
        second[0] if second else None,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
    )
    return [dict(zip(encoded.keys(), row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def draw(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Draw shuffled batches of similar length, epoch after epoch.

    Every epoch holds every row once; its last batch may be smaller. The order is a function of the arguments alone.

    Args:
        lengths: Tokens per row.
        batch_size: Rows per batch.
        steps: Batches to draw in all.
        seed: The data seed.

    Yields:
        Row numbers of one batch.

    Raises:
        DataError: There are no rows.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    if not lengths:
        raise DataError("cannot draw batches of no rows")
    generator = torch.Generator().manual_seed(seed)
    left = steps
    while left > 0:
        order = get_length_grouped_indices(list(lengths), batch_size, generator=generator)
        epoch = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        # The library sorts each pool from long to short: shuffled, or the step number would tell the length.
        for index in torch.randperm(len(epoch), generator=generator).tolist()[:left]:
            yield epoch[index]
            left -= 1


def send(batch: dict[str, "Tensor"], device: str) -> dict[str, "Tensor"]:
    """Move a batch to a device; to CUDA without waiting, so that the next one is made while this one is worked on."""
    if not device.startswith("cuda"):
        return {key: value.to(device) for key, value in batch.items()}
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}


def collate(
    tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], indices: Sequence[int]
) -> dict[str, "Tensor"]:
    """Pad some examples to the longest of them.

    Args:
        tokenizer: Knows the padding token and side.
        examples: From `tokenize`.
        indices: Which of them.

    Returns:
        input_ids and attention_mask (and token_type_ids), each [len(indices), longest].
    """
    chosen: Any = [examples[index] for index in indices]
    return dict(tokenizer.pad(chosen, return_tensors="pt", return_attention_mask=True))
