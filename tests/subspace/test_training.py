"""Training a held model: theta_0 stays, dropout and precision are the model's own, and memory holds one unit."""

import gc
import hashlib
import json
import mmap
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distsub.records import Subspace
from distsub.subspace.model import SubspaceModel
from distsub.subspace.passes import Pass, SavedTensor
from distsub.subspace.weights import Numbers

SAID = Subspace(scales="layer")


def map_read_only(path: Path) -> dict[str, torch.Tensor]:
    """Map a safetensors file's float32 tensors on pages that cannot be written."""
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    header = 8 + int.from_bytes(view[:8], "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the array is not writable: the point of it
        raw = torch.from_numpy(np.frombuffer(view, dtype=np.uint8))
    tensors = {}
    for name, info in json.loads(view[8:header]).items():
        if name != "__metadata__" and info["dtype"] == "F32":
            start, stop = (header + offset for offset in info["data_offsets"])
            tensors[name] = raw[start:stop].view(torch.float32).view(info["shape"])
    return tensors


def pages_of(pointer: int) -> str:
    """Give the line of the process's memory map that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(edge, 16) for edge in line.split()[0].split("-"))
        if low <= pointer < high:
            return line
    return ""


def fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def watch(model: SubspaceModel) -> tuple[dict[int, int], list[int]]:
    """Record each unit's size, and how many numbers of such weights are alive whenever a unit's are made."""
    references: list[tuple[weakref.ref[torch.UntypedStorage], int]] = []
    sizes: dict[int, int] = {}
    made: list[int] = []
    original = model.hooks.unit_weights

    def watched(numbers: Numbers, number: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        flat = original(numbers, number, dtype)
        references.append((weakref.ref(flat.untyped_storage()), flat.numel()))
        sizes[number] = flat.numel()
        made.append(sum(size for reference, size in references if reference() is not None))
        return flat

    model.hooks.unit_weights = watched
    return sizes, made


class TestFrozenWeights:
    def train(self, zoo, model: SubspaceModel, steps: int = 4, clip: float | None = None) -> list[float]:
        data = zoo.batch("Bert")
        parameters = list(model.trained().values())
        optimizer, losses = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.0), []
        for _ in range(steps):
            loss = model(**data.inputs, labels=data.labels).loss
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    def test_bytes_of_theta_0_stay(self, zoo, spec):
        base = zoo.build("Bert", torch.float32)
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        model = SubspaceModel(base, 60, spec).train()
        losses = self.train(zoo, model)
        assert losses[-1] != losses[0]
        for name, tensor in base.named_parameters():
            assert torch.equal(tensor, before[name]) or name in model.head

    def test_read_only_memory_map(self, zoo, tmp_path: Path):
        """Pages without write permission: the first store into theta_0 would end the process."""
        path, base = tmp_path / "model.safetensors", zoo.build("Bert", torch.float32)
        save_file({name: tensor.contiguous() for name, tensor in base.state_dict().items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for name, tensor in map_read_only(path).items():
            owner, _, key = name.rpartition(".")
            base.get_submodule(owner)._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        model = SubspaceModel(base, 60, SAID).train()
        self.train(zoo, model)
        zoo.move(model).eval()(**zoo.batch("Bert").inputs)
        model.merged_state()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        assert " r--" in pages_of(base.get_parameter("classifier.weight").data_ptr())

    def test_clipping_sees_only_the_trained_numbers(self, zoo):
        model = zoo.held(scales="layer").train()
        self.train(zoo, model, 1)
        data = zoo.batch("Bert")
        model(**data.inputs, labels=data.labels).loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert norm > 1e-3
        clipped = torch.cat([model.coordinates.grad, model.scales.grad]).norm()
        assert clipped.item() == pytest.approx(1e-3, rel=1e-3)

    def test_training_lowers_the_loss(self, zoo):
        model = SubspaceModel(zoo.build("Bert", torch.float32), 200, SAID).eval()
        losses = self.train(zoo, model, 30, clip=1.0)
        assert losses[-1] < 0.5 * losses[0]

    def test_hooks_give_the_weights_back_after_an_error(self, zoo):
        model = zoo.move(zoo.held())
        before = fingerprint(model.model)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.tensor([[65]]))
        with pytest.raises((ValueError, RuntimeError)):
            model(torch.tensor([[1, 2]]), labels=torch.zeros(7, dtype=torch.long))
        assert fingerprint(model.model) == before
        held = [p for module in model.model.modules() for p in module._parameters.values() if p is not None]
        assert all(isinstance(p, nn.Parameter) for p in held)
        assert model.hooks.idle


class TestTrainingMode:
    def test_dropout_is_active_and_reproducible(self, zoo):
        model, data = zoo.move(zoo.held(scales="layer")).train(), zoo.batch("Bert")

        def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
            torch.manual_seed(seed)
            model.zero_grad()
            out = model(**data.inputs, labels=data.labels)
            out.loss.backward()
            return out.logits.detach(), model.coordinates.grad.clone()

        first, again, other = run(0), run(0), run(1)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])
        plain = zoo.exact_gradients(zoo.merged(model)).train()
        torch.manual_seed(0)
        out = plain(**data.inputs, labels=data.labels)
        out.loss.backward()
        torch.testing.assert_close(out.logits, first[0], rtol=0, atol=1e-12)
        assert zoo.relative(first[1], zoo.dense_gradients(model, plain)[0]) < 1e-11

    @pytest.mark.parametrize("name", ["Bert", "T5", "DebertaV2"])
    def test_bf16_autocast_is_close_to_fp32(self, zoo, name):
        model, data = zoo.move(zoo.held(name, dtype=torch.float32, scales="layer"), 0.3), zoo.batch(name)
        exact = model(**data.inputs, labels=data.labels)
        exact.loss.backward()
        gradient = model.coordinates.grad.clone()
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(**data.inputs, labels=data.labels)
        rough.loss.backward()
        # bf16 keeps 8 bits: 0.4% per operation, a few dozen of them.
        assert model.coordinates.grad.dtype == torch.float32
        torch.testing.assert_close(rough.logits.float(), exact.logits, rtol=0, atol=0.05)
        assert zoo.relative(model.coordinates.grad, gradient) < 0.1

    def test_a_model_kept_in_bf16(self, zoo):
        model, data = zoo.move(zoo.held(dtype=torch.bfloat16)), zoo.batch("Bert")
        assert model.coordinates.dtype == torch.float32
        out = model(**data.inputs, labels=data.labels)
        out.loss.backward()
        assert out.logits.dtype == torch.bfloat16
        assert model.coordinates.grad.isfinite().all()

    def test_recomputed_blocks_give_the_same_bits(self, zoo, architecture):
        """Dropout is drawn again as it was; a cache of keys and values is never written twice."""
        data, results = zoo.batch(architecture), []
        for share in (0.0, 1.0):
            model = zoo.move(SubspaceModel(zoo.build(architecture), 60, SAID, recompute=share)).train()
            torch.manual_seed(0)
            out = model(**data.inputs, labels=data.labels)
            out.loss.backward()
            results.append((out.logits, model.coordinates.grad, model.scales.grad))
            assert model.hooks.idle
        for kept, again in zip(*results, strict=True):
            assert torch.equal(kept, again)

    def test_recomputed_blocks_under_autocast(self, zoo):
        data, results = zoo.batch("Bert"), []
        for share in (0.0, 1.0):
            model = zoo.move(SubspaceModel(zoo.build("Bert", torch.float32), 60, SAID, recompute=share)).train()
            torch.manual_seed(0)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**data.inputs, labels=data.labels).loss
            loss.backward()
            results.append(model.coordinates.grad)
        assert torch.equal(*results)

    def test_buffers_are_the_models_own(self, zoo):
        model = zoo.held("Llama")
        assert dict(model.model.named_buffers()).keys() == dict(zoo.build("Llama").named_buffers()).keys()
        assert not any(buffer.requires_grad for buffer in model.buffers())


class TestMemory:
    @pytest.mark.parametrize("recompute", [0.0, 1.0])
    def test_one_units_weights_at_a_time(self, zoo, recompute):
        """Two blocks' weights never exist together: not forward, not backward, and none is kept between."""
        base = zoo.build("Bert", torch.float32, num_hidden_layers=5, intermediate_size=64)
        model, data = SubspaceModel(base, 60, SAID, recompute=recompute, keep=0).eval(), zoo.batch("Bert")
        sizes, made = watch(model)
        loss = model(**data.inputs, labels=data.labels).loss
        forward = len(made)
        loss.backward()
        block, total = max(sizes.values()), sum(sizes.values())
        assert forward == len(sizes) >= 7
        assert len(made) == 2 * forward  # each once more for the backward pass
        assert max(made) <= 1.2 * block < 0.4 * total
        assert model.hooks.idle

    @pytest.mark.parametrize("autocast", [False, True])
    def test_weights_kept_for_the_backward_pass(self, zoo, architecture, autocast, monkeypatch):
        """As many bytes as there is room for, each unit in one precision; the same gradient to the bit."""
        if autocast and architecture == "Deberta":
            pytest.skip("transformers' own Deberta masks with a number that bfloat16 cannot hold")
        data, pack, gradients, times = zoo.batch(architecture), Pass.pack, [], []
        kept: dict[int, int] = {}

        def watched(running: Pass, tensor: torch.Tensor):
            note = pack(running, tensor)
            storage = tensor.untyped_storage()
            if isinstance(note, SavedTensor) and storage.data_ptr() in running._owners and note.tensor is tensor:
                kept[storage.data_ptr()] = storage.nbytes()
            return note

        monkeypatch.setattr(Pass, "pack", watched)
        built = [zoo.build(architecture, torch.float32) for _ in range(3)]
        half = sum(p.numel() for p in built[0].parameters()) * (2 if autocast else 4) // 2
        for base, keep in zip(built, (0, half, 2**30), strict=True):
            model = zoo.move(SubspaceModel(base, 60, SAID, recompute=0.0, keep=keep)).train()
            sizes, made = watch(model)
            torch.manual_seed(0)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = model(**data.inputs, labels=data.labels).loss
            forward, bytes_kept = len(made), sum(kept.values())
            kept.clear()
            assert bytes_kept <= keep
            loss.backward()
            gradients.append(torch.cat([model.coordinates.grad, model.scales.grad]))
            times.append((len(made) - forward, bytes_kept))
            assert model.hooks.idle
        assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
        (none, no_bytes), (some, half_bytes), (_, all_bytes) = times
        assert none > len(sizes) / 2 and no_bytes == 0
        assert some < none and half_bytes < all_bytes
        if not autocast:  # where autocast leaves a product in float32, its unit is made again
            assert times[2][0] == 0

    @pytest.mark.parametrize("name", ["DebertaV2", "T5", "Bert"])
    def test_a_training_step_makes_every_unit_twice(self, zoo, name):
        """Also where blocks read a table of their own accord: DeBERTa's relative positions."""
        model, data = (
            zoo.move(SubspaceModel(zoo.build(name, num_hidden_layers=5), 60, SAID, recompute=0.0, keep=0)),
            zoo.batch(name),
        )
        sizes, made = watch(model)
        model(**data.inputs, labels=data.labels).loss.backward()
        assert len(made) <= 2 * len(sizes)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_weights_are_kept_between_passes_without_gradient(self, zoo, architecture, autocast):
        """The same bits, each unit made once; what is written to theta or to theta_0 in between is seen."""
        if autocast and architecture == "Deberta":
            pytest.skip("transformers' own Deberta masks with a number that bfloat16 cannot hold")
        model, data = (
            zoo.move(zoo.held(architecture, dtype=torch.float32, scales="layer")).eval(),
            zoo.batch(architecture),
        )

        @torch.no_grad()
        def run() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return model(**data.inputs).logits

        sizes, made = watch(model)
        alone = run()
        once = len(made)
        with model.hooks.keeping(2**30):
            assert all(torch.equal(run(), alone) for _ in range(3))
            assert len(made) == once + len(sizes)
            zoo.move(model, 0.2)
            moved = run()
            model.entries[-1].frozen.data.add_(1)
            model.entries[-1].frozen.add_(0)
            shifted = run()
        assert torch.equal(run(), shifted)
        assert not torch.equal(moved, alone) and not torch.equal(shifted, moved)
        made.clear()
        with model.hooks.keeping(0):
            run(), run()
        assert len(made) == 2 * once

    def test_kept_weights_take_no_part_in_training(self, zoo):
        data, gradients = zoo.batch("Bert"), []
        for most in (0, 2**30):
            model = zoo.move(zoo.held(scales="layer")).eval()
            with model.hooks.keeping(most):
                with torch.no_grad():
                    model(**data.inputs)
                model(**data.inputs, labels=data.labels).loss.backward()
            gradients.append(torch.cat([model.coordinates.grad, model.scales.grad]))
        assert torch.equal(*gradients)

    def test_nothing_grows_over_fifty_steps(self, zoo):
        model, data = SubspaceModel(zoo.build("DebertaV2", torch.float32), 60, SAID).train(), zoo.batch("DebertaV2")
        optimizer = torch.optim.AdamW(model.trained().values(), lr=0.01)

        def step() -> None:
            model(**data.inputs, labels=data.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def tensors() -> int:
            return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

        for _ in range(3):
            step()
        gc.collect()
        before = tensors()
        for _ in range(50):
            step()
        gc.collect()
        assert tensors() <= before
        assert model.hooks.idle

    def test_recomputed_blocks_keep_nothing(self, zoo, monkeypatch):
        def kept(share: float) -> int:
            base = zoo.build("Bert", num_hidden_layers=6)
            model, data, sizes = SubspaceModel(base, 60, recompute=share, keep=0), zoo.batch("Bert"), {}
            pack = Pass.pack

            def watched(running: Pass, tensor: torch.Tensor):
                note = pack(running, tensor)
                if isinstance(note, SavedTensor):
                    kept = note.tensor.untyped_storage()
                    sizes[kept.data_ptr()] = kept.nbytes()
                return note

            monkeypatch.setattr(Pass, "pack", watched)
            model(**data.inputs, labels=data.labels)
            monkeypatch.undo()
            return sum(sizes.values())

        none, one, all_six = kept(0.0), kept(1 / 6), kept(1.0)
        assert 0.75 * none < one < 0.92 * none
        assert all_six < 0.35 * none

    def test_a_table_is_made_by_rows(self, zoo):
        model, data = zoo.held(), zoo.batch("Bert")
        table = next(entry for entry in model.entries if "word_embeddings" in entry.name)
        spans = []
        apply = model.projection.apply

        def watched(theta: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
            spans.append((start, stop))
            return apply(theta, start, stop)

        model.projection.apply = watched
        model(**data.inputs, labels=data.labels).loss.backward()
        assert spans
        assert all(stop <= table.start or start >= table.stop for start, stop in spans)
