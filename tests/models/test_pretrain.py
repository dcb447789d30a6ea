"""The example that pretrains an encoder: what it keeps, and what it asks the encoder to fill in."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pretrain.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def kept(example, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    texts = [f"the film was {'very ' * (i % 7)}{'good' if i % 3 else 'bad'} and number {i} of many" for i in range(90)]
    example["pretrain"](example["train_tokenizer"](texts, out), texts, 8, out)
    return out


def test_checkpoints_along_the_way_open_in_transformers(kept):
    folders = sorted(kept.glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000", "step-00001", "step-00002", "step-00004", "step-00008"]
    weights = [torch.cat([t.flatten() for t in load_file(f / "model.safetensors").values()]) for f in folders]
    moved = [float((later - weights[0]).norm()) for later in weights]
    assert moved[0] == 0.0 and moved == sorted(moved) and len(set(moved)) == len(moved)
    tokenizer = AutoTokenizer.from_pretrained(folders[-1])
    AutoModelForMaskedLM.from_pretrained(folders[-1])
    assert tokenizer.unk_token_id not in tokenizer("The film was GOOD")["input_ids"]


def test_a_fifth_of_the_tokens_is_scored_and_most_of_it_is_hidden(example, kept):
    tokenizer = AutoTokenizer.from_pretrained(kept / "step-00000")
    seen = {}

    class Model:
        def bert(self, input_ids):
            seen["given"] = input_ids
            return type("Output", (), {"last_hidden_state": torch.zeros(*input_ids.shape, 3)})

        def cls(self, states):
            seen["scored"] = len(states)
            return torch.zeros(len(states), len(tokenizer))

    torch.manual_seed(0)
    ids = torch.randint(5, len(tokenizer), (64, 64))
    loss = example["masked_loss"](Model(), ids, tokenizer)
    hidden = int((seen["given"] == tokenizer.mask_token_id).sum())
    assert float(loss) == pytest.approx(torch.tensor(len(tokenizer)).log().item(), rel=1e-5)
    assert seen["scored"] == pytest.approx(0.2 * ids.numel(), rel=0.1)  # 4096 draws: sigma is 3%
    assert hidden == pytest.approx(0.8 * seen["scored"], rel=0.1)
    assert int((seen["given"] != ids).sum()) == pytest.approx(0.9 * seen["scored"], rel=0.1)
