"""What a training step costs, counted and not timed: operations, on any device but a CPU each a launch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RobertaConfig, RobertaForSequenceClassification

from distsub.records import Random, Subspace
from distsub.subspace import projection
from distsub.subspace.model import SubspaceModel


class Count(TorchDispatchMode):
    """Counts the operations that compute or copy; views and empty tensors launch nothing."""

    FREE = ("detach", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operations += not func.is_view and name not in self.FREE
        return func(*args, **kwargs or {})


def operations(method: Subspace | None) -> int:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=50265, max_position_embeddings=514))
    model = (model if method is None else SubspaceModel(model, 1000, method, check=False)).train()
    ids = torch.randint(5, 50000, (2, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    step()  # draws the random state, which is kept
    with Count() as count:
        step()
    return count.operations


@pytest.mark.slow
def test_operations_of_a_step_of_roberta_base_beyond_the_models_own(monkeypatch):
    """The model's own are counted beside, with chunks as on a device that launches them."""
    monkeypatch.setattr(projection, "launches", lambda device: True)
    own = operations(None)
    assert 800 < own < 1000
    short, long = (Random("fastfood", block_length=length) for length in (1024, 8192))
    extra = {
        "partition": operations(Subspace()) - own,
        "fastfood": operations(Subspace(short)) - own,
        "said": operations(Subspace(short, scales="layer")) - own,
        "said, long blocks": operations(Subspace(long, scales="layer")) - own,
    }
    print(f"the model's own: {own}; beyond them: {extra}")
    assert all(0 < each <= 1000 for each in extra.values()), extra
