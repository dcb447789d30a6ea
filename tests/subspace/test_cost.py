"""What a training step costs, counted and not timed: operations, on any device but a CPU each a launch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RobertaConfig, RobertaForSequenceClassification

from distsub.records import Budget, Learned, Random, Source, Span, Subspace
from distsub.subspace import projection, trajectory
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots


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


KEEP = 2**20
"""Bytes of weights kept for the backward pass: a 256th of the usual, as all else here."""


def operations(method: Subspace | None, d: int = 1000, t: int = 0, **config: int) -> int:
    torch.manual_seed(0)
    shape = {"vocab_size": 50265, "max_position_embeddings": 514} | config
    model = RobertaForSequenceClassification(RobertaConfig(**shape))
    random = torch.Generator().manual_seed(0)
    updates = [
        {n: torch.randn(p.shape, generator=random).bfloat16() for n, p in model.named_parameters()} for _ in range(t)
    ]
    snapshots = Snapshots(tuple(updates)) if t else None
    if method is not None:
        model = SubspaceModel(model, d, method, snapshots=snapshots, keep=KEEP, check=False)
    model.train()
    ids = torch.randint(5, shape["vocab_size"], (2, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    step()  # draws the random state, which is kept
    with Count() as count:
        step()
    return count.operations


SMALL = {"vocab_size": 3142, "hidden_size": 48, "intermediate_size": 192}
"""RoBERTa-base at a 256th of its D; its layers are the same, and where stretches shrink likewise its operations are.

With random subspaces it launches 14 to 29 more: in small tensors fewer blocks are of one tensor alone."""


@pytest.mark.slow
def test_operations_of_a_step_of_roberta_base_beyond_the_models_own(monkeypatch):
    """The model's own are counted beside, with chunks as on a device that launches them."""
    monkeypatch.setattr(projection, "launches", lambda device: True)
    monkeypatch.setattr(projection, "DEVICE_CHUNK", projection.DEVICE_CHUNK >> 8)
    own = operations(None, **SMALL)
    assert 800 < own < 1000
    short, long = (Random("fastfood", block_length=length) for length in (1024, 8192))
    extra = {
        "partition": operations(Subspace(), **SMALL) - own,
        "fastfood": operations(Subspace(short), **SMALL) - own,
        "said": operations(Subspace(short, scales="layer"), **SMALL) - own,
        "said, long blocks": operations(Subspace(long, scales="layer"), **SMALL) - own,
    }
    print(f"the model's own: {own}; beyond them: {extra}")
    assert all(0 < each <= 1000 for each in extra.values()), extra


@pytest.mark.slow
def test_operations_of_a_step_in_a_learned_subspace_of_roberta_base(monkeypatch):
    """From 32 checkpoints in bfloat16. Streamed, in pieces as on a CPU, it had 93,000; two layers have a sixth."""
    monkeypatch.setattr(projection, "launches", lambda device: True)
    monkeypatch.setattr(trajectory, "WIDE", trajectory.WIDE >> 8)
    monkeypatch.setattr(trajectory, "CHUNK", trajectory.CHUNK >> 8)
    own, made_of = operations(None, **SMALL), Learned(Span((Source(),), 0.001, Budget(steps=32), every=1))
    layers = Subspace(made_of, scope="layer", head="trained", embeddings="frozen")
    extra = {
        "each layer": operations(layers, 32, 32, **SMALL) - own,
        "model": operations(Subspace(made_of), 32, 32, **SMALL) - own,
    }
    monkeypatch.setattr(trajectory, "_room", lambda device: 0)
    streamed = operations(layers, 32, 32, **SMALL, num_hidden_layers=2)
    print(f"learned: {extra}; streamed: {streamed}")
    assert all(0 < each <= 1000 for each in extra.values()), extra
    assert streamed > 10000, "the count sees what it should"
