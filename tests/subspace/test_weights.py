"""A model held in bfloat16: theta_0 + lambda P theta is summed in float32 and rounded once; gradients are float32."""

import pytest
import torch

from distsub.records import Budget, Learned, Random, Source, Span, Subspace
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import MadeOf, Snapshots

FAMILIES = {
    "dense": {"projection": Random("dense")},
    "sparse": {"projection": Random("sparse")},
    "fastfood": {"projection": Random("fastfood", block_length=64)},
    "fastfood_per_tensor": {"projection": Random("fastfood_per_tensor", "per_tensor", block_length=64)},
    "partition": {"projection": Random("partition")},
    "said": {"projection": Random("partition"), "scales": "layer"},
    "layers": {"projection": Random("dense"), "scope": "layer", "head": "trained", "embeddings": "frozen"},
    "learned": {
        "projection": Learned(Span((Source(),), 0.001, Budget(steps=4), every=1)),
        **{"scope": "layer", "head": "frozen", "embeddings": "frozen"},
    },
}


def held(zoo, family, dtype=torch.bfloat16, **fields):
    base = zoo.build("Bert", torch.float32).to(torch.bfloat16).to(dtype)  # what bfloat16 holds, in any precision
    generator = torch.Generator().manual_seed(3)
    walk = [{n: torch.randn(p.shape, generator=generator) for n, p in base.named_parameters()} for _ in range(3)]
    spec = Subspace(**{**FAMILIES[family], **fields})
    d = 3 if family in ("layers", "learned") else 60
    model = SubspaceModel(base, d, spec, snapshots=Snapshots(tuple(walk), MadeOf(("walk",), "3")))
    return zoo.move(model.eval(), 0.05)


def rounded_once(model, entry):
    """Compute theta_0 + lambda P theta of a parameter in float32 by its definition, and round it."""
    theta = model.projection.apply(model.theta.detach(), entry.start, entry.stop)
    for start, stop, group in model.groups if model.scales.numel() else ():
        low, high = max(start, entry.start), min(stop, entry.stop)
        if low < high:
            theta[low - entry.start : high - entry.start] *= model.scales.detach()[group]
    assert theta.dtype == torch.float32
    return (entry.frozen.float() + theta.view(entry.frozen.shape)).bfloat16()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_weight_is_rounded_once(zoo, family):
    model, seen = held(zoo, family), {}
    with model.hooks.begin() as current:
        for number, unit in enumerate(model.units):
            if unit.rows:
                continue
            with current.materialised(number):
                seen |= {entry.name: getattr(owner, key).clone() for owner, key, entry in unit.uses}
    moved = 0
    for entry in model.entries:
        wanted = rounded_once(model, entry)
        assert entry.frozen.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(model.weight(entry), wanted), entry.name
        if entry.name in seen:
            assert torch.equal(seen[entry.name], wanted), entry.name
        moved += int((wanted != entry.frozen).sum())
    assert moved > 0.3 * model.num_params and len(seen) > 20
    twice = sum(
        int((model.update(e.start, e.stop).bfloat16().view(e.frozen.shape) + e.frozen != rounded_once(model, e)).sum())
        for e in model.entries
    )
    assert twice > 0  # which an update that was rounded before it is added would not give


@torch.no_grad()
def test_rows_of_a_table_are_rounded_once(zoo):
    model = held(zoo, "said")
    table = next(entry for entry in model.entries if entry.name.endswith("word_embeddings.weight"))
    rows = torch.tensor([[3, 9, 3, 1]])
    looked_up = []
    module = model.model.bert.embeddings.word_embeddings
    module.register_forward_hook(lambda module, inputs, output: looked_up.append(output))
    model(input_ids=rows)
    assert torch.equal(looked_up[0], rounded_once(model, table)[rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_exact_ones_within_bfloat16(zoo, family):
    model, exact, data = held(zoo, family), held(zoo, family, torch.float64), zoo.batch("Bert")
    model(**data.inputs, labels=data.labels).loss.backward()
    exact(**data.inputs, labels=data.labels).loss.backward()
    assert model.coordinates.grad.dtype == torch.float32
    assert zoo.relative(model.coordinates.grad.double(), exact.coordinates.grad) < 0.05
    if model.scales.numel():
        assert zoo.relative(model.scales.grad.double(), exact.scales.grad) < 0.05


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "said"])
def test_weight_gradients_are_reduced_in_float32(zoo, family):
    """Of the same bfloat16 gradients of the weights, the reduction adds no error of bfloat16."""
    model, data = held(zoo, family, embeddings="frozen"), zoo.batch("Bert")
    plain = zoo.build("Bert", torch.bfloat16)
    plain.load_state_dict(model.merged_state())
    plain(**data.inputs, labels=data.labels).loss.backward()
    model(**data.inputs, labels=data.labels).loss.backward()
    grads = {name: parameter.grad for name, parameter in plain.named_parameters()}
    flat = torch.cat([grads[entry.name].reshape(-1).double() for entry in model.entries])
    assert zoo.relative(model.coordinates.grad.double(), model.projection.adjoint(flat)) < 1e-5
