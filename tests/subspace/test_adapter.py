"""The saved adapter: what comes back is what was saved, on the right weights only, and every error says what to do."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distsub.errors import AdapterError, ConfigError, OutputError
from distsub.records import Full, Random, Subspace, canonical
from distsub.subspace import adapter, layout
from distsub.subspace.adapter import CONFIG, WEIGHTS
from distsub.subspace.model import SubspaceModel

SAID = Subspace(scales="layer")
SMALL = Subspace(Random("fastfood", block_length=256), scales="layer")


def train(model: SubspaceModel, data, steps: int = 3) -> SubspaceModel:
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.05)
    model.train()
    for _ in range(steps):
        model(**data.inputs, labels=data.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def saved(zoo, tmp_path: Path) -> Path:
    """An adapter trained on the tiny BERT."""
    model = SubspaceModel(zoo.build("Bert", torch.float32), 60, SMALL)
    train(model, zoo.batch("Bert"))
    model.save_pretrained(tmp_path, base_model="some/bert", num_labels=3, head_seed=7)
    return tmp_path


def edit(directory: Path, **changes) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | changes))


def load(zoo, directory: Path) -> SubspaceModel:
    return SubspaceModel.from_pretrained(directory, zoo.build("Bert", torch.float32))


class TestRoundTrip:
    def test_logits_are_bit_identical_after_training(self, zoo, spec, tmp_path):
        """Saved before and after further steps, and the trained one compared: theta = 0 would prove nothing."""
        data = zoo.batch("Bert")
        model = train(SubspaceModel(zoo.build("Bert", torch.float32), 60, spec), data)
        model.save_pretrained(tmp_path / "early", base_model=None)
        early = model(**data.inputs).logits
        train(model, data).save_pretrained(tmp_path / "late", base_model=None)
        late = model(**data.inputs).logits
        assert not torch.equal(early, late)
        for name, expected in (("early", early), ("late", late)):
            again = SubspaceModel.from_pretrained(tmp_path / name, zoo.build("Bert", torch.float32))
            assert not again.training
            assert torch.equal(again(**data.inputs).logits, expected)
            assert again.spec == spec and again.describe() == model.describe()

    def test_every_architecture(self, zoo, architecture, tmp_path):
        data = zoo.batch(architecture)
        model = zoo.move(SubspaceModel(zoo.build(architecture), 60, SAID)).eval()
        model.save_pretrained(tmp_path, base_model=None)
        again = SubspaceModel.from_pretrained(tmp_path, zoo.build(architecture))
        assert torch.equal(again(**data.inputs).logits, model(**data.inputs).logits)

    def test_a_thousand_numbers_fit_in_five_kilobytes(self, zoo, tmp_path):
        for scales in (None, "layer"):
            model = SubspaceModel(zoo.build("Bert", torch.float32), 1000, Subspace(Random("fastfood"), scales))
            model.save_pretrained(tmp_path, base_model=None)
            assert (tmp_path / WEIGHTS).stat().st_size < 5000

    def test_what_the_files_hold(self, zoo, tmp_path):
        model = SubspaceModel(zoo.build("Bert", torch.float32), 60, Subspace(scales="layer", head="trained"))
        model.save_pretrained(tmp_path, base_model="some/bert", revision="abc", task="mrpc")
        tensors = load_file(tmp_path / WEIGHTS)
        assert {name: tuple(t.shape) for name, t in tensors.items()} == {
            "coordinates": (56,),
            "scales": (4,),
            "head.classifier.weight": (3, 16),
            "head.classifier.bias": (3,),
        }
        config = adapter.load_config(tmp_path)
        assert (config.d, config.projection_seed, config.subspace) == (60, 0, model.spec)
        assert (config.base_model, config.revision, config.num_labels, config.task) == ("some/bert", "abc", 3, "mrpc")
        assert (config.num_trained, config.num_trained_head) == (60, 51)
        assert config.head_sha256 is None
        assert len(config.fingerprint) == 16
        assert set(config.versions) == {"distsub", "torch", "transformers"}
        assert json.loads((tmp_path / CONFIG).read_text())["subspace"] == canonical(model.spec)
        assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]

    def test_a_trained_head_comes_with_the_adapter(self, zoo, tmp_path):
        data = zoo.batch("Bert")
        model = train(SubspaceModel(zoo.build("Bert", torch.float32), 60, Subspace(head="trained")), data)
        model.save_pretrained(tmp_path, base_model=None)
        other = zoo.build("Bert", torch.float32)
        with torch.no_grad():
            other.classifier.weight.normal_()
        again = SubspaceModel.from_pretrained(tmp_path, other)
        assert torch.equal(again(**data.inputs).logits, model(**data.inputs).logits)

    def test_saving_again_replaces(self, zoo, saved):
        data, model = zoo.batch("Bert"), load(zoo, saved)
        train(model, data).save_pretrained(saved, base_model=None)
        assert torch.equal(load(zoo, saved)(**data.inputs).logits, model(**data.inputs).logits)

    def test_a_base_can_be_held_only_once(self, zoo, saved):
        base = zoo.build("Bert", torch.float32)
        SubspaceModel.from_pretrained(saved, base)
        with pytest.raises(AdapterError, match="held in a subspace already"):
            SubspaceModel.from_pretrained(saved, base)
        with pytest.raises(ConfigError, match="build a fresh one"):
            SubspaceModel(base, 60)

    def test_unwritable_directory(self, zoo, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            zoo.held().save_pretrained(tmp_path / "file", base_model=None)


class TestOtherModels:
    def test_other_weights(self, zoo, saved):
        base = zoo.build("Bert", torch.float32)
        with torch.no_grad():
            base.bert.encoder.layer[0].output.dense.bias[3] += 1e-6
        expected = adapter.load_config(saved).base_sha256[:12]
        message = rf"other weights: sha256 {expected} \(some/bert\), this model has \w{{12}};"
        with pytest.raises(AdapterError, match=message):
            SubspaceModel.from_pretrained(saved, base)
        assert not layout.head_names(base) & {name for name, p in base.named_parameters() if not p.requires_grad}
        base(**zoo.batch("Bert").inputs)  # a model that was refused stays as it was

    def test_another_head(self, zoo, saved):
        base = zoo.build("Bert", torch.float32)
        with torch.no_grad():
            base.classifier.weight.normal_()
        with pytest.raises(AdapterError, match=r"another head.*head of head_seed = 7 with num_labels = 3"):
            SubspaceModel.from_pretrained(saved, base)

    def test_another_number_of_labels(self, zoo, saved):
        base = zoo.build("Bert", torch.float32)
        base.classifier = torch.nn.Linear(16, 5)
        with pytest.raises(AdapterError, match=r"another head.*num_labels = 3"):
            SubspaceModel.from_pretrained(saved, base)

    def test_another_architecture(self, zoo, saved):
        with pytest.raises(AdapterError, match="other weights"):
            SubspaceModel.from_pretrained(saved, zoo.build("DistilBert", torch.float32))

    def test_another_precision(self, zoo, saved):
        with pytest.raises(AdapterError, match=r"weights in float32, this model's are in float64; load .* in float32"):
            SubspaceModel.from_pretrained(saved, zoo.build("Bert", torch.float64))


class TestDamage:
    def test_nothing_there(self, zoo, tmp_path):
        with pytest.raises(AdapterError, match=f"no adapter in .*{CONFIG} cannot be read"):
            load(zoo, tmp_path / "nowhere")

    def test_missing_weights(self, zoo, saved):
        (saved / WEIGHTS).unlink()
        with pytest.raises(AdapterError, match=f"{WEIGHTS} cannot be read .*copy or save it again"):
            load(zoo, saved)

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_truncated_weights(self, zoo, saved, keep):
        (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:keep])
        with pytest.raises(AdapterError, match="no safetensors file, or cut short"):
            load(zoo, saved)

    def test_weights_of_another_save(self, zoo, saved):
        """What is left when a save is killed between its two files."""
        tensors = load_file(saved / WEIGHTS)
        tensors["coordinates"][0] += 1
        save_file(tensors, saved / WEIGHTS, {"format": "pt"})
        with pytest.raises(AdapterError, match="a save was interrupted"):
            load(zoo, saved)

    @pytest.mark.parametrize("change", ["shorter", "missing", "more"])
    def test_wrong_number_of_coordinates(self, zoo, saved, change):
        tensors = load_file(saved / WEIGHTS)
        if change == "shorter":
            tensors["coordinates"] = tensors["coordinates"][:-1].clone()
        elif change == "missing":
            del tensors["scales"]
        else:
            tensors["head.classifier.bias"] = torch.zeros(3)
        save_file(tensors, saved / WEIGHTS)
        edit(saved, weights_sha256=hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest())
        messages = {"shorter": r"\[55\] for 'coordinates'.*\[56\]", "missing": "no such tensor for 'scales'"}
        with pytest.raises(AdapterError, match=messages.get(change, "does not know: head.classifier.bias")):
            load(zoo, saved)

    def test_json_that_is_none(self, zoo, saved):
        (saved / CONFIG).write_text('{"format": "distsub", ')
        with pytest.raises(AdapterError, match="is not JSON"):
            load(zoo, saved)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"peft_type": "LORA", "r": 8}, "a PEFT adapter of type LORA"),
            ({"hidden_size": 8}, "not an adapter of distsub"),
            (["distsub"], "not an adapter of distsub"),
        ],
    )
    def test_foreign_json(self, zoo, saved, content, message):
        (saved / CONFIG).write_text(json.dumps(content))
        with pytest.raises(AdapterError, match=message):
            load(zoo, saved)

    @pytest.mark.parametrize("found", [1, 3, None, "2"])
    def test_another_format(self, zoo, saved, found):
        edit(saved, format_version=found)
        with pytest.raises(AdapterError, match=rf"format version {found}, distsub .* reads version 2; use the distsub"):
            load(zoo, saved)

    def test_incomplete_json(self, zoo, saved):
        config = json.loads((saved / CONFIG).read_text())
        del config["fingerprint"]
        (saved / CONFIG).write_text(json.dumps(config))
        with pytest.raises(AdapterError, match="is damaged: fingerprint is missing; save the adapter again"):
            load(zoo, saved)

    def test_another_projection(self, zoo, saved):
        edit(saved, projection_seed=1)
        with pytest.raises(AdapterError, match=r"cannot be rebuilt: its fingerprint begins \[.*written by distsub"):
            load(zoo, saved)

    def test_a_fingerprint_may_differ_in_its_last_digits(self, zoo, saved):
        marks = adapter.load_config(saved).fingerprint
        edit(saved, fingerprint=[value * (1 + 5e-6) for value in marks])
        load(zoo, saved)
        edit(saved, fingerprint=[*marks[:-1], marks[-1] * 1.01 + 1e-3])
        with pytest.raises(AdapterError, match="cannot be rebuilt"):
            load(zoo, saved)

    def test_another_span(self, zoo, saved):
        edit(saved, num_scales=5)
        with pytest.raises(AdapterError, match="num_scales = 5, here 4"):
            load(zoo, saved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"subspace": canonical(Subspace(Random("fastfod")))}, "does not fit this model: .*'fastfod' is unknown"),
            ({"d": 10**9}, "does not fit this model: d = 1000000000 exceeds"),
            ({"d": "60"}, "is damaged: d should be a valid integer, got '60'"),
            ({"subspace": canonical(Subspace()) | {"rank": 3}}, "is damaged: subspace.rank is no such field, got 3"),
            (
                {"subspace": canonical(Subspace()) | {"head": "loose"}},
                "subspace.head should be 'in_subspace'",
            ),
            ({"subspace": canonical(Full())}, "is damaged: subspace.kind should be 'subspace', got 'full'"),
        ],
    )
    def test_a_subspace_that_fits_nothing(self, zoo, saved, change, message):
        edit(saved, **change)
        with pytest.raises(AdapterError, match=message):
            load(zoo, saved)

    def test_weights_are_no_pickle(self, saved):
        with safe_open(saved / WEIGHTS, "pt") as file:
            assert set(file.keys()) == {"coordinates", "scales"}
