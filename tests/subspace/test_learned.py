"""Models held in subspaces of their layers, learned and random: gradients, counts, policies, ensembles, adapters."""

from dataclasses import replace

import pytest
import torch

from distsub.errors import AdapterError, ConfigError, DimensionError, TrajectoryError
from distsub.records import Budget, Learned, Random, Source, Span, Subspace
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import MadeOf, Snapshots

T = 4
SPAN = Span((Source(),), 0.001, Budget(steps=4), every=1)
LAYER = {"scope": "layer", "head": "trained", "embeddings": "frozen"}


def learned(mode="difference") -> Learned:
    return Learned(replace(SPAN, mode=mode))


def checkpoints(model, t=T, seed=0) -> Snapshots:
    generator = torch.Generator().manual_seed(seed)
    walk = [
        {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()}
        for _ in range(t)
    ]
    return Snapshots(tuple(walk), MadeOf(("walk",), f"{t}-{seed}"))


def held(zoo, name="Bert", d=3, **fields) -> SubspaceModel:
    base, spec = zoo.build(name), Subspace(**{"projection": learned(), **LAYER, **fields})
    return SubspaceModel(base, d, spec, snapshots=checkpoints(base)).eval()


def layers(model) -> int:
    return len(layout.blocks(model.model))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"projection": learned("raw")},
        {"projection": learned("centered")},
        {"embeddings": "trained"},
        {"projection": Random("fastfood"), "head": "frozen"},
        {"projection": Random("dense", match=SPAN)},
        {"scope": "model", "head": "in_subspace", "embeddings": "in_subspace"},
        {"scope": "model", "head": "trained", "embeddings": "in_subspace", "projection": learned("raw")},
    ],
    ids=range(8),
)
def test_values_and_gradients_are_those_of_the_dense_weights(zoo, fields):
    model = held(zoo, **fields)
    zoo.move(model, 0.1)
    plain = zoo.exact_gradients(zoo.merged(model))
    batch = zoo.batch("Bert")
    ours, theirs = (each(**batch.inputs, labels=batch.labels) for each in (model, plain))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-10)
    ours.loss.backward()
    theirs.loss.backward()
    expected, _ = zoo.dense_gradients(model, plain)
    torch.testing.assert_close(model.coordinates.grad, expected, rtol=1e-8, atol=1e-12)
    grads = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in model.head.items():
        if "embeddings" not in name:  # rows of padding: see exact_gradients
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-8, atol=1e-12)


def test_what_is_trained_is_counted(zoo):
    frozen, trained = held(zoo), held(zoo, embeddings="trained")
    names = dict(zoo.build("Bert").named_parameters())
    inside = {name for name in names if ".layer." in name}
    assert {entry.name for entry in frozen.entries} == inside == {entry.name for entry in trained.entries}
    assert frozen.num_trained == trained.num_trained == 3 * layers(frozen)
    assert set(frozen.head) == {name for name in names if "classifier" in name}
    assert set(trained.head) == set(names) - inside
    assert trained.num_trained_head == sum(names[name].numel() for name in set(names) - inside)
    moving = {name for name, p in trained.model.named_parameters() if p.requires_grad}
    assert moving == set(trained.head)


def test_a_zero_start_is_theta_0_and_a_random_one_is_near_it(zoo):
    batch, plain = zoo.batch("Bert"), zoo.build("Bert")
    logits = plain(**batch.inputs).logits
    assert torch.equal(held(zoo)(**batch.inputs).logits, logits)
    started = held(zoo, start="random", ensemble=16)
    assert started.coordinates.shape == (16, 3 * layers(started)) and started.num_trained == 48 * layers(started)
    # 16 vectors of 2 layers: 32 draws of |theta|^2 with mean 1 and variance 2/3, so five standard errors are 0.72.
    norms = started.coordinates.detach().view(16, 3, -1).square().sum(1)
    assert 0.28 < norms.mean() < 1.72
    assert not torch.equal(started(**batch.inputs).logits, logits)
    again = held(zoo, start="random", ensemble=16)
    assert torch.equal(started.coordinates, again.coordinates)


def test_an_ensemble_is_one_theta_from_the_mean_of_the_starts(zoo):
    """Every member has the same gradient, so Adam moves all alike: the mean is what one vector would have done."""
    many = held(zoo, start="random", ensemble=4)
    one = held(zoo)
    with torch.no_grad():
        one.coordinates.copy_(many.theta)
    batch = zoo.batch("Bert")
    for model in (many, one):
        optimizer = torch.optim.Adam([model.coordinates], lr=0.01, eps=1e-20)
        for _ in range(3):
            model(**batch.inputs, labels=batch.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(many.theta, one.theta, rtol=1e-9, atol=1e-12)


def test_matched_norms_are_those_of_the_last_update(zoo):
    base = zoo.build("Bert")
    snapshots = checkpoints(base)
    name = "bert.encoder.layer.1.output.dense.weight"
    last = {key: tensor * (10.0 if key == name else 1.0) for key, tensor in snapshots.updates[-1].items()}
    snapshots, spec = Snapshots((*snapshots.updates[:-1], last)), Subspace(Random("fastfood", match=SPAN), **LAYER)
    shares = []
    for seed in range(40):
        model = SubspaceModel(zoo.build("Bert"), 3, spec, seed, snapshots=snapshots)
        part = model.projection.parts[1]
        column = part.apply(torch.eye(3, dtype=torch.float64)[0])
        entry = [e for e in model.entries if e.layer.endswith("1")]
        start = entry[0].start
        place = next(e for e in entry if e.name == name)
        shares.append(column[place.start - start : place.stop - start].square().sum() / column.square().sum())
        assert abs(column.square().sum() - 1) < 0.5
    norms = {e.name: last[e.name].square().sum() for e in entry}
    expected = norms[name] / sum(norms.values())
    assert abs(torch.stack(shares).mean() - expected) < 0.02


def test_layers_of_a_random_subspace_differ(zoo):
    one, two = held(zoo, projection=Random("fastfood")).projection.parts
    assert one.fingerprint() != two.fingerprint()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"head": "in_subspace"}, ConfigError, "classifier.weight lies in none"),
        ({"embeddings": "in_subspace"}, ConfigError, "word_embeddings.weight lies in none"),
        ({"embeddings": "free"}, ConfigError, "embeddings should be 'in_subspace'.*, got 'free'"),
        ({"scope": "block"}, ConfigError, "scope should be 'model' or 'layer', got 'block'"),
        ({"start": "one"}, ConfigError, "start should be 'zero' or 'random', got 'one'"),
        ({"ensemble": 0}, ConfigError, "ensemble should be 1 or more, got 0"),
        ({"projection": learned("centred")}, ConfigError, r"projection.Learned.span.mode should be .*, got 'centred'"),
        ({"snapshots": None}, ConfigError, "give snapshots"),
        ({"projection": Random("fastfood_per_tensor", match=SPAN)}, ConfigError, "take fastfood"),
        ({"scales": "layer", "d": 20}, ConfigError, "no scales"),
        ({"d": 5}, DimensionError, "4 checkpoints; take 1 to 4"),
    ],
    ids=str,
)
def test_what_does_not_go_together(zoo, fields, error, message):
    base = zoo.build("Bert")
    given = {"d": 3, "snapshots": checkpoints(base), "projection": learned(), **LAYER, **fields}
    d, snapshots = given.pop("d"), given.pop("snapshots")
    with pytest.raises(error, match=message):
        SubspaceModel(base, d, Subspace(**given), snapshots=snapshots)


def test_checkpoints_of_another_layout(zoo):
    base = zoo.build("Bert")
    with pytest.raises(TrajectoryError, match="another layout"):
        SubspaceModel(
            base, 3, Subspace(learned(), **LAYER), snapshots=checkpoints(zoo.build("Bert", num_hidden_layers=1))
        )


@pytest.mark.parametrize("fields", [{}, {"embeddings": "trained"}, {"ensemble": 3, "start": "random"}], ids=str)
def test_an_adapter_needs_its_trajectory(zoo, tmp_path, fields):
    model = zoo.move(held(zoo, **fields), 0.1)
    with torch.no_grad():
        for parameter in model.head.values():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path, base_model=None)
    snapshots = checkpoints(zoo.build("Bert"))
    again = SubspaceModel.from_pretrained(tmp_path, zoo.build("Bert"), snapshots)
    batch = zoo.batch("Bert")
    assert torch.equal(again(**batch.inputs).logits, model(**batch.inputs).logits)
    with pytest.raises(AdapterError, match="lives in a learned subspace"):
        SubspaceModel.from_pretrained(tmp_path, zoo.build("Bert"))
    with pytest.raises(AdapterError, match="the checkpoints given are others"):
        SubspaceModel.from_pretrained(tmp_path, zoo.build("Bert"), replace(snapshots, made_of=MadeOf(("walk",), "x")))


def test_every_architecture_with_blocks_trains_in_its_layers(zoo, architecture):
    base = zoo.build(architecture)
    head = "frozen" if layout.head_names(base) else "in_subspace"
    snapshots = checkpoints(base)
    spec = Subspace(learned(), **{**LAYER, "head": head})
    model = SubspaceModel(base, 2, spec, snapshots=snapshots).eval()
    zoo.move(model, 0.1)
    batch = zoo.batch(architecture)
    model(**batch.inputs, labels=batch.labels).loss.backward()
    assert model.num_trained == 2 * len(model.projection.parts) and (model.coordinates.grad != 0).all()
