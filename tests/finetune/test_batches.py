from itertools import pairwise

import pytest

from distsub.data import dataset
from distsub.errors import DataError
from distsub.finetune import batches


@pytest.fixture(scope="module")
def tokenizer():
    """Build a real BERT tokenizer from a handful of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    raw.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_tokenize_cuts_and_collate_pads(tokenizer):
    split = dataset.Split((["a", "a b c d e f g h"], ["b", "c d"]), [0, 1])
    examples = batches.tokenize(tokenizer, split, max_length=8)
    assert examples[0] == {"input_ids": [2, 4, 3, 5, 3], "token_type_ids": [0, 0, 0, 1, 1]}
    assert [len(example["input_ids"]) for example in examples] == [5, 8]
    batch = batches.collate(tokenizer, examples, [1, 0])
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3]


def test_batches_are_whole_epochs_of_similar_lengths():
    lengths = [row % 50 + 1 for row in range(1000)]
    drawn = list(batches.draw(lengths, 16, 150, seed=3))
    assert len(drawn) == 150
    epoch = drawn[: -(-1000 // 16)]
    assert sorted(row for batch in epoch for row in batch) == list(range(1000))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in epoch]
    assert sum(spread) / len(spread) < 10  # about 45 in batches drawn blindly
    firsts = [lengths[batch[0]] for batch in epoch]
    assert 0.25 < sum(a > b for a, b in pairwise(firsts)) / len(firsts) < 0.75  # neither rising nor falling


def test_batches_depend_on_the_seed_alone():
    lengths = list(range(1, 101))
    assert list(batches.draw(lengths, 8, 30, 1)) == list(batches.draw(lengths, 8, 40, 1))[:30]
    assert list(batches.draw(lengths, 8, 30, 1)) != list(batches.draw(lengths, 8, 30, 2))


def test_batches_of_few_rows():
    assert [sorted(batch) for batch in batches.draw([3, 4], 8, 3, 0)] == [[0, 1]] * 3
    with pytest.raises(DataError, match="no rows"):
        next(batches.draw([], 8, 3, 0))
