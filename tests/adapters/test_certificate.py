"""Certificates: bounds that hold as often as they say, of the model that the bits describe and no other."""

import dataclasses
import math
import random

import pytest
import torch

from distsub import load_adapter
from distsub.adapters import certificate, loading, predictor, rounding
from distsub.adapters.certificate import certify, chernoff, configuration_bits, hoeffding
from distsub.config import parse_sweep
from distsub.data import dataset
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, DataError
from distsub.preflight.checks import check
from distsub.records import Peft, Subspace, Trial
from distsub.results import Store
from distsub.runtime.worker import WorkerConfig, perform
from distsub.subspace import code_length


@pytest.mark.parametrize("error", [0.0, 0.01, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("bits", [0, 100, 10_000])
@pytest.mark.parametrize("rows", [10, 1000, 1_000_000])
def test_the_bounds(error, bits, rows):
    tight, loose = chernoff(error, bits, rows), hoeffding(error, bits, rows)
    assert error <= tight <= min(1, loose) + 1e-12
    assert chernoff(error, bits + 1000, rows) >= tight >= chernoff(error, bits, rows * 2)
    assert chernoff(error, bits, rows, 0.01) >= tight
    if error > 0 and tight < 1 - 1e-9:
        e, p = error, tight
        divergence = e * math.log(e / p) + (1 - e) * math.log((1 - e) / (1 - p)) if e < 1 else -math.log(p)
        assert divergence == pytest.approx((bits * math.log(2) + math.log(20)) / rows, rel=1e-6)


@pytest.mark.parametrize("truth", [0.02, 0.3])
def test_a_bound_fails_at_most_as_often_as_it_says(truth):
    """The best of 2^4 models, none better than another: their description takes 4 bits."""
    draw, failed = random.Random(0), 0
    for _ in range(400):
        seen = min(sum(draw.random() < truth for _ in range(60)) for _ in range(16)) / 60
        failed += chernoff(seen, 4, 60, 0.2) < truth
    assert failed <= 0.2 * 400


def train(tiny_text, folder, d=64, **changes):
    torch.set_num_threads(1)
    lines = [f"w{i % 9} {'good' if i % 2 else 'bad'} w{i % 7},{'sales' if i % 2 else 'legal'}" for i in range(600)]
    (folder / "mail.csv").write_text("\n".join(["body,team", *lines]) + "\n")
    task = resolve("mail", path=str(folder / "mail.csv"), text=("body",), label="team", holdout=200)
    [search, *_] = check(parse_sweep(tiny_text)).searches()
    trial = Trial(dataclasses.replace(search.setup, task=task, **changes), d, 3.0)
    Store.create(str(folder / "out"), "", "f")
    assert perform(trial, WorkerConfig(str(folder / "out"), checkpoint_s=None)).score > 0.8
    return folder / "out/adapters" / trial.id, folder / "mail.csv"


@pytest.fixture(scope="module")
def trained(tiny_text, tmp_path_factory):
    return train(tiny_text, tmp_path_factory.mktemp("certified"))


def test_it_is_of_the_model_with_rounded_numbers(trained):
    place, rows = trained
    found = certify(place, str(rows))
    assert found["rows"] == 600 and found["numbers"] == 64 and found["confidence"] == 0.95
    opened = loading.open_adapter(place)
    bits = 0.0
    for name, parameter in opened.model.trained().items():
        coded = code_length.rounded(parameter, (found["levels"] - 1) // 2, float(name == "scales"))
        parameter.data.copy_(coded.values)
        bits += coded.bits
    table = [line.split(",") for line in rows.read_text().splitlines()[1:]]
    asking = predictor.Predictor(opened)
    predicted = asking.predict([text for text, _ in table])
    wrong = sum(one != other for one, (_, other) in zip(predicted, table, strict=True)) / 600
    about = configuration_bits(opened.config, asking.precision, asking.max_length)
    assert found["error_rounded"] == wrong
    assert found["bits"] == pytest.approx(about + bits)
    assert found["bound"] == chernoff(wrong, found["bits"], 600)
    assert found["bound"] < found["bound_hoeffding"]
    assert found["verdict"].startswith("vacuous") == (found["bound"] >= 0.5)


def bits_by_decoding(symbols, levels):
    """What an adaptive coder spends symbol by symbol: each by how often it has come so far, and a half."""
    counts, bits = [0.5] * levels, 0.0
    for symbol in symbols:
        bits -= math.log2(counts[symbol] / sum(counts))
        counts[symbol] += 1
    return bits


@pytest.fixture(scope="module")
def noisy(trained, tmp_path_factory):
    """The adapter with noise on its numbers, so that there is something to learn."""
    place, rows = trained
    opened, folder = loading.open_adapter(place), tmp_path_factory.mktemp("noisy")
    numbers = opened.model.coordinates.data
    numbers += 1.5 * numbers.std() * torch.randn(len(numbers), generator=torch.Generator().manual_seed(0))
    opened.model.save_pretrained(folder, **{name: getattr(opened.config, name) for name in certificate._ABOUT})
    return folder, rows


@pytest.fixture(scope="module", params=["trained", "noisy"])
def certified(request, tmp_path_factory):
    place, rows = request.getfixturevalue(request.param)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    out = tmp_path_factory.mktemp("rounded")
    plain, found = certify(place, str(rows)), certify(place, str(rows), steps=40, out=out)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    return place, rows, plain, found, out


@pytest.mark.slow
class TestSteps:
    """Training that knows of the rounding: the bound is of the model that was saved, and of what it takes to decode."""

    def test_the_bound_is_of_the_saved_model(self, certified):
        _, rows, _, found, out = certified
        opened, largest = loading.open_adapter(out), (found["levels"] - 1) // 2
        bits = 0.0
        for name, parameter in opened.model.trained().items():
            away = parameter.detach().double() - float(name == "scales")
            step = away.abs()[away != 0].min().item()
            whole = (away / step).round()
            assert (away - whole * step).abs().max() < 1e-5 * step and whole.abs().max() <= largest
            assert step == pytest.approx(torch.tensor(step).half().item(), rel=1e-6)
            symbols = [int(each) + largest for each in whole]
            bits += 16 + code_length.integer(largest) + bits_by_decoding(symbols, found["levels"])
        asking = predictor.Predictor(opened)
        about = configuration_bits(opened.config, asking.precision, asking.max_length)
        assert found["bits"] == pytest.approx(about + bits, rel=1e-9)
        table = [line.split(",") for line in rows.read_text().splitlines()[1:]]
        predicted = asking.predict([text for text, _ in table])
        wrong = sum(one != other for one, (_, other) in zip(predicted, table, strict=True)) / 600
        assert found["error_rounded"] == wrong
        assert found["bound"] == chernoff(wrong, found["bits"], 600)
        assert found["bound_hoeffding"] == hoeffding(wrong, found["bits"], 600)

    def test_it_is_the_better_of_both(self, certified):
        *_, plain, found, _ = certified
        assert plain["steps"] == 0 and found["steps"] in (0, 40)
        assert found["bound"] < plain["bound"] if found["steps"] else found == plain
        assert found["error"] == plain["error"]

    def test_a_seed_repeats(self, certified):
        place, rows, _, found, _ = certified
        assert certify(place, str(rows), steps=40) == found

    def test_steps_repair_what_rounding_cannot(self, noisy):
        found = [certify(noisy[0], str(noisy[1]), steps=steps) for steps in (0, 80)]
        assert found[1]["steps"] == 80 and found[1]["error_rounded"] < found[0]["error_rounded"]


def test_numbers_on_levels_have_the_gradient_of_the_identity():
    x = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.6875, dtype=torch.float64, requires_grad=True)
    for largest in certificate.LEVELS:
        made = rounding.on_levels(x, step, largest, 1.0)
        coded = code_length.rounded(x, largest, 1.0, 0.6875)
        whole = (coded.symbols - largest).double()
        assert torch.allclose(made, 1.0 + 0.6875 * whole)
        [by_x, by_step] = torch.autograd.grad(made.sum(), [x, step])
        inside = ((x - 1) / 0.6875).abs() <= largest
        assert torch.equal(by_x, inside.double())  # numbers beyond the last level stay there
        expected = torch.where(inside, whole - (x - 1) / 0.6875, whole).sum()
        assert by_step.item() == pytest.approx(expected.item())


def test_more_rows_make_it_tighter(trained, tmp_path):
    place, rows = trained
    head, *lines = rows.read_text().splitlines()
    (tmp_path / "more.csv").write_text("\n".join([head, *lines * 40]) + "\n")
    few, many = certify(place, str(rows)), certify(place, str(tmp_path / "more.csv"))
    assert many["bound"] < few["bound"] and many["verdict"] == "holds below guessing"


def test_scales_and_a_head_beside_are_described_too(tiny_text, tmp_path):
    place, rows = train(tiny_text, tmp_path, method=Subspace(scales="layer", head="trained"))
    held = load_adapter(place)
    found = certify(place, str(rows))
    assert found["numbers"] == held.num_trained + held.num_trained_head > 64


def test_a_configuration_costs_what_is_unusual_of_it(trained):
    config = loading.open_adapter(trained[0]).config
    usual = configuration_bits(config, "fp32", 64)
    plain = dataclasses.replace(config, subspace=Subspace())
    other = dataclasses.replace(config, subspace=Subspace(head="frozen", modules="attention"))
    assert configuration_bits(plain, "fp32", 64) < configuration_bits(other, "fp32", 64)
    assert configuration_bits(dataclasses.replace(config, projection_seed=10**6), "fp32", 64) > usual


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,body", "1,w1 good"], "has no column of labels; give one"),
        (["body,team", "w1 good,", "w2 bad,legal"], "empty texts or labels"),
        (["body,team", ",sales", "w2 bad,legal"], "empty texts or labels"),
        (["body,team"], "has no rows: give the rows with labels"),
        (
            ["body,team", "w1 good,marketing"],
            r"have the label 'marketing'.*fix them, or give another label column \(--label\)$",
        ),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(trained, tmp_path, lines, message):
    (tmp_path / "odd.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        certify(trained[0], str(tmp_path / "odd.csv"))


def test_what_has_no_certificate_is_refused(trained, tiny_text, tmp_path, monkeypatch):
    place, rows = trained
    with pytest.raises(ConfigError, match="delta = 0 should lie between 0 and 1"):
        certify(place, str(rows), delta=0)
    with pytest.raises(ConfigError, match="steps = -1; allowed: 0"):
        certify(place, str(rows), steps=-1)
    with pytest.raises(ConfigError, match="is the adapter that is certified, which stays as it is"):
        certify(place, str(rows), out=place.parent / "." / place.name)
    real = loading.open_adapter

    def learned(*given):
        opened = real(*given)
        return dataclasses.replace(opened, config=dataclasses.replace(opened.config, snapshots=object()))

    monkeypatch.setattr(certificate.loading, "open_adapter", learned)
    with pytest.raises(ConfigError, match="this one was learned from fine-tunings"):
        certify(place, str(rows))


def test_of_a_method_of_peft_there_is_none(tiny_text, tmp_path):
    pytest.importorskip("peft")
    from distsub.models import peft_model, pretrained

    [search, *_] = check(parse_sweep(tiny_text)).searches()
    base = pretrained.build(pretrained.prepare(search.setup.model.name), 2, 0)
    method = Peft("LORA", head="trained", step=0.01)
    d = peft_model.dims(base, method, (200,))[0][0]
    trial = Trial(dataclasses.replace(search.setup, method=method), d, 1.0)
    Store.create(str(tmp_path / "out"), "", "f")
    perform(trial, WorkerConfig(str(tmp_path / "out"), checkpoint_s=None))
    split = dataset.load(trial.task, trial.budget).validation
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", f"{split.texts[0][0]},0"]) + "\n")
    with pytest.raises(ConfigError, match="of a random subspace; of a method of PEFT none"):
        certify(tmp_path / "out/adapters" / trial.id, str(tmp_path / "rows.csv"))
