"""Whatever is done with a held model is right, by the merged model and its dense gradient, or refused at once."""

import copy
import io
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distsub.errors import ConfigError
from distsub.records import Random, Subspace
from distsub.subspace import selftest
from distsub.subspace.families import Partition
from distsub.subspace.model import SubspaceModel

SAID = Subspace(scales="layer")
APART = Subspace(scope="layer", embeddings="frozen", head="trained")
NO_DROPOUT = {
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def held(zoo, name: str = "Bert", spec: Subspace = SAID, **changes: Any) -> SubspaceModel:
    """A held model away from theta_0."""
    return zoo.move(SubspaceModel(zoo.build(name, **changes), 60, spec).eval())


def agrees(zoo, model: SubspaceModel, name: str = "Bert", plain: nn.Module | None = None, scale: float = 1.0) -> None:
    """Compare the gradients that a model has with those of the merged model, from one batch."""
    data = zoo.batch(name)
    plain = zoo.exact_gradients(plain or zoo.merged(model, name))
    plain(**data.inputs, labels=data.labels).loss.backward()
    coordinates, scales = zoo.dense_gradients(model, plain)
    assert zoo.relative(model.coordinates.grad, coordinates * scale) < 1e-10
    assert zoo.relative(model.scales.grad, scales * scale) < 1e-10


class TestEntrances:
    """One answer, by whichever module the model is entered."""

    @pytest.mark.parametrize("name", ["Bert", "GPT2", "T5", "DebertaV2", "Albert"])
    def test_the_model_inside(self, zoo, name):
        model, data = held(zoo, name), zoo.batch(name)
        plain = zoo.merged(model, name)
        torch.testing.assert_close(model.model(**data.inputs).logits, plain(**data.inputs).logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            model.model.forward(**data.inputs).logits, plain(**data.inputs).logits, rtol=0, atol=1e-12
        )
        model.model(**data.inputs, labels=data.labels).loss.backward()
        agrees(zoo, model, name)

    def test_parts_alone(self, zoo):
        model, ids = held(zoo), zoo.batch("Bert").inputs["input_ids"]
        plain, hidden = zoo.merged(model), torch.randn(2, 4, 16, dtype=torch.float64)
        for part, args in (
            ("bert", (ids,)),
            ("bert.embeddings", (ids,)),
            ("bert.embeddings.word_embeddings", (ids,)),
            ("bert.encoder", (hidden,)),
            ("bert.encoder.layer.1", (hidden,)),
            ("bert.encoder.layer.1.attention.self.key", (hidden,)),
            ("bert.pooler", (hidden,)),
            ("classifier", (hidden,)),
        ):
            found, expected = model.model.get_submodule(part)(*args), plain.get_submodule(part)(*args)
            found, expected = (x if isinstance(x, torch.Tensor) else x[0] for x in (found, expected))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            model.zero_grad()
            plain.zero_grad()
            found.square().sum().backward()
            zoo.exact_gradients(plain).get_submodule(part)(*args)
            again = plain.get_submodule(part)(*args)
            (again if isinstance(again, torch.Tensor) else again[0]).square().sum().backward()
            assert zoo.relative(model.coordinates.grad, zoo.dense_gradients(model, plain)[0]) < 1e-10, part

    def test_generate(self, zoo):
        model, ids = held(zoo, "GPT2LMHeadModel"), torch.tensor([[5, 6, 7]])
        plain = zoo.merged(model, "GPT2LMHeadModel")
        settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "pad_token_id": 0}
        found = model.model.generate(ids, do_sample=False, **settings)
        assert torch.equal(found, plain.generate(ids, do_sample=False, **settings))
        base = zoo.build("GPT2LMHeadModel").generate(ids, do_sample=False, **settings)
        assert found.shape != base.shape or not torch.equal(found, base)

    def test_hooks_of_the_user_and_signatures(self, zoo):
        import inspect

        model, seen = held(zoo), []
        assert inspect.signature(model.model.forward) == inspect.signature(zoo.build("Bert").forward)
        model.model.bert.encoder.layer[0].output.register_forward_hook(lambda m, a, out: seen.append(out))
        model(**zoo.batch("Bert").inputs)
        plain, mine = zoo.merged(model), seen.pop()
        plain.bert.encoder.layer[0].output.register_forward_hook(lambda m, a, out: seen.append(out))
        plain(**zoo.batch("Bert").inputs)
        torch.testing.assert_close(mine, seen[0], rtol=0, atol=1e-12)

    def test_weights_that_a_module_keeps_elsewhere(self, zoo):
        """An LSTM hands its own list of weights to the kernel; `.T` is not a look at the shape."""

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.LSTM(6, 6, batch_first=True) for _ in range(2)])
                self.out = nn.Linear(6, 6)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for block in self.blocks:
                    x = block(x)[0]
                return x @ self.out.weight.T + self.out.weight.data.sum()

        base = Model().double()
        plain, x = copy.deepcopy(base), torch.randn(2, 3, 6, dtype=torch.float64)
        model = zoo.move(SubspaceModel(base, 30, Subspace(Random("dense"))), 2.0)
        plain.load_state_dict(model.merged_state())
        model(x).square().sum().backward()
        plain(x).square().sum().backward()
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
        assert zoo.relative(model.coordinates.grad, zoo.dense_gradients(model, plain)[0]) < 1e-10

    def test_threads_take_turns(self, zoo):
        model, data, found = held(zoo), zoo.batch("Bert"), []

        def run() -> None:
            out = model(**data.inputs, labels=data.labels)
            found.append(torch.autograd.grad(out.loss, model.coordinates)[0])

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run()
        assert len(found) == 5
        assert all(torch.equal(each, found[-1]) for each in found)


class TestCheckpointing:
    @pytest.mark.parametrize("name", ["Bert", "GPT2", "T5", "Llama"])
    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("before", [True, False])
    def test_transformers_checkpointing(self, zoo, name, reentrant, before):
        base, data = zoo.build(name, **NO_DROPOUT), zoo.batch(name)
        plain = copy.deepcopy(base).train()
        if before:
            base._set_gradient_checkpointing(True, _checkpoint(reentrant))
        model = zoo.move(SubspaceModel(base, 60, SAID, recompute=1 / 2)).train()
        if not before:
            base._set_gradient_checkpointing(True, _checkpoint(reentrant))
        plain.load_state_dict(model.merged_state())
        out = model(**data.inputs, labels=data.labels)
        out.loss.backward()
        agrees(zoo, model, name, plain)
        assert all(isinstance(p, nn.Parameter) for p in base.parameters())

    def test_a_reentrant_checkpoint_that_would_lose_the_blocks(self, zoo):
        base, data = zoo.build("GPT2"), zoo.batch("GPT2")
        base._set_gradient_checkpointing(True, _checkpoint(True))
        model = zoo.move(SubspaceModel(base, 60, APART)).train()
        with warnings.catch_warnings(), pytest.raises(ConfigError, match=r'"use_reentrant": False'):
            warnings.simplefilter("ignore")  # torch warns of it
            model(**data.inputs, labels=data.labels)
        base._set_gradient_checkpointing(True, _checkpoint(False))
        model(**data.inputs, labels=data.labels).loss.backward()
        assert model.coordinates.grad.abs().max() > 0

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_a_checkpoint_of_the_users(self, zoo, reentrant):
        model, data = held(zoo), zoo.batch("Bert")
        block = model.model.bert.encoder.layer[1]
        forward = block.forward
        block.forward = lambda *args, **kwargs: checkpoint(
            lambda *a: forward(*a, **kwargs), *args, use_reentrant=reentrant
        )
        model(**data.inputs, labels=data.labels).loss.backward()
        agrees(zoo, model)


class TestCopies:
    def independent(self, zoo, model: SubspaceModel, twin: SubspaceModel) -> None:
        data, before = zoo.batch("Bert"), model.merged_state()
        assert torch.equal(twin(**data.inputs).logits, model(**data.inputs).logits)
        model.zero_grad()
        twin.zero_grad()
        twin(**data.inputs, labels=data.labels).loss.backward()
        assert model.coordinates.grad is None
        agrees(zoo, twin)
        with torch.no_grad():
            twin.coordinates.add_(1.0)
        plain = zoo.merged(twin)
        torch.testing.assert_close(twin(**data.inputs).logits, plain(**data.inputs).logits, rtol=0, atol=1e-12)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.merged_state().items())
        assert twin.model is not model.model
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}

    def test_deepcopy(self, zoo):
        model = held(zoo)
        model(**zoo.batch("Bert").inputs)
        self.independent(zoo, model, copy.deepcopy(model))

    def test_pickle_and_torch_save(self, zoo):
        model, file = held(zoo), io.BytesIO()
        self.independent(zoo, model, pickle.loads(pickle.dumps(model)))
        torch.save(model, file)
        file.seek(0)
        self.independent(zoo, held(zoo), torch.load(file, weights_only=False))

    def test_a_copy_of_the_model_inside_is_held_too(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        twin, expected = copy.deepcopy(model.model), zoo.merged(model)(**data.inputs).logits
        with torch.no_grad():
            model.coordinates.zero_()
        torch.testing.assert_close(twin(**data.inputs).logits, expected, rtol=0, atol=1e-12)

    def test_averaged_model(self, zoo):
        from torch.optim.swa_utils import AveragedModel

        model, data = held(zoo), zoo.batch("Bert")
        mean = AveragedModel(model)
        first = model.coordinates.detach().clone()
        for step in range(2):
            mean.update_parameters(model)
            with torch.no_grad():
                model.coordinates.add_(1.0 + step)
        with torch.no_grad():
            model.coordinates.copy_(first + 0.5)
        expected = zoo.merged(model)(**data.inputs).logits
        torch.testing.assert_close(mean.eval()(**data.inputs).logits, expected, rtol=0, atol=1e-10)


class TestBetweenForwardAndBackward:
    def test_changed_coordinates(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        for name in ("coordinates", "scales"):
            loss = model(**data.inputs, labels=data.labels).loss
            with torch.no_grad():
                getattr(model, name).add_(0.1)
            with pytest.raises(RuntimeError, match=f"modified by an inplace operation: {name}"):
                loss.backward()

    @pytest.mark.parametrize("reentrant", [None, True, False])
    def test_changed_behind_autograds_back(self, zoo, reentrant):
        """`.data` leaves no trace; the gradient is then the one at the coordinates of the forward pass."""
        model, data = held(zoo, **NO_DROPOUT), zoo.batch("Bert")
        plain = zoo.merged(model)
        if reentrant is not None:
            model.train().model._set_gradient_checkpointing(True, _checkpoint(reentrant))
        loss = model(**data.inputs, labels=data.labels).loss
        model.coordinates.data.add_(1.0)
        loss.backward()
        found = model.coordinates.grad
        model.coordinates.data.sub_(1.0)
        zoo.exact_gradients(plain)(**data.inputs, labels=data.labels).loss.backward()
        assert zoo.relative(found, zoo.dense_gradients(model, plain)[0]) < 1e-10

    def test_changed_theta_0_or_activation(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        loss = model(**data.inputs, labels=data.labels).loss
        with torch.no_grad():
            model.model.bert.encoder.layer[1].output.dense.weight.add_(1)
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation: bert.encoder.layer.1.output"):
            loss.backward()
        out = model(**data.inputs, labels=data.labels, output_hidden_states=True)
        with torch.no_grad():
            out.hidden_states[1].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation: a tensor of shape"):
            out.loss.backward()

    def test_two_forwards_then_two_backwards(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        losses = [model(**data.inputs, labels=data.labels).loss for _ in range(2)]
        sum(losses).backward()
        agrees(zoo, model, scale=2.0)

    def test_without_gradients(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        expected = zoo.merged(model)(**data.inputs).logits
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(model(**data.inputs).logits, expected, rtol=0, atol=1e-12)
        model(**data.inputs, labels=data.labels).loss.backward()
        agrees(zoo, model)

    @pytest.mark.parametrize("scales", [None, "layer"])
    def test_second_derivatives(self, zoo, scales):
        """A gradient penalty on the inputs, and the Hessian times a vector."""
        model = held(zoo, spec=Subspace(scales=scales))
        model.model.config._attn_implementation = "eager"
        embeds = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)

        def penalty(network: nn.Module) -> torch.Tensor:
            loss = network(inputs_embeds=embeds).logits.square().sum()
            (slope,) = torch.autograd.grad(loss, embeds, create_graph=True)
            return slope.square().sum()

        plain = zoo.merged(model)
        plain.config._attn_implementation = "eager"
        penalty(zoo.exact_gradients(plain)).backward()
        penalty(model).backward()
        coordinates, scales = zoo.dense_gradients(model, plain)
        assert zoo.relative(model.coordinates.grad, coordinates) < 1e-9
        assert zoo.relative(model.scales.grad, scales) < 1e-9
        trained, vectors = [model.coordinates, model.scales][: 2 if model.spec.scales else 1], {}
        for _ in range(2):
            loss = model(inputs_embeds=embeds).logits.square().sum()
            slopes = torch.autograd.grad(loss, trained, create_graph=True)
            vectors = vectors or [torch.randn_like(slope) for slope in slopes]
        products = torch.autograd.grad(sum((s * v).sum() for s, v in zip(slopes, vectors, strict=True)), trained)

        def at(step: float) -> torch.Tensor:
            with torch.no_grad():
                for parameter, vector in zip(trained, vectors, strict=True):
                    parameter.add_(vector, alpha=step)
            found = torch.autograd.grad(model(inputs_embeds=embeds).logits.square().sum(), trained)
            with torch.no_grad():
                for parameter, vector in zip(trained, vectors, strict=True):
                    parameter.sub_(vector, alpha=step)
            return torch.cat(found)

        assert zoo.relative(torch.cat(products), (at(1e-5) - at(-1e-5)) / 2e-5) < 1e-6


class TestMoves:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_cast_after_wrapping(self, zoo, dtype):
        model, data = zoo.move(SubspaceModel(zoo.build("Bert", torch.float32), 60, SAID)).eval(), zoo.batch("Bert")
        coordinates = model.coordinates.detach().clone()
        model.to(dtype)
        assert torch.equal(model.coordinates, coordinates.to(model.coordinates.dtype))
        assert model.coordinates.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        other = zoo.move(SubspaceModel(zoo.build("Bert", torch.float32).to(dtype), 60, SAID)).eval()
        other.coordinates.data.copy_(coordinates)
        other.scales.data.copy_(model.scales)
        assert torch.equal(model(**data.inputs).logits, other(**data.inputs).logits)
        model(**data.inputs, labels=data.labels).loss.backward()
        other(**data.inputs, labels=data.labels).loss.backward()
        assert torch.equal(model.coordinates.grad, other.coordinates.grad)

    def test_an_optimizer_keeps_its_parameters(self, zoo):
        model = held(zoo)
        parameters = [id(p) for p in model.parameters()]
        assert [id(p) for p in model.double().half().float().parameters()] == parameters

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_moved_to_a_device(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        expected = model(**data.inputs).logits
        found = model.cuda()(**{key: value.cuda() for key, value in data.inputs.items()}).logits
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-10)


class TestAutocast:
    @pytest.mark.parametrize("name", ["Bert", "GPT2", "T5", "DebertaV2", "Llama"])
    def test_the_merged_model_under_autocast(self, zoo, name):
        model = zoo.move(SubspaceModel(zoo.build(name, torch.float32), 60, SAID), 0.3).eval()
        data, plain = zoo.batch(name), zoo.merged(model, name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, expected = model(**data.inputs).logits, plain(**data.inputs).logits
        assert torch.equal(found, expected)

    def test_parameters_that_autocast_leaves_alone(self, zoo):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.decay, self.out = nn.Parameter(torch.rand(4, 8)), nn.Linear(8, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.out((-torch.exp(self.decay.float()) * x.unsqueeze(1)).sum(1))

        model, x = zoo.move(SubspaceModel(Model(), 10, Subspace(Random("dense")))), torch.randn(2, 8)
        plain = Model()
        plain.load_state_dict(model.merged_state())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(x), plain(x))


class TestRefused:
    def test_the_parameters_were_replaced(self, zoo):
        def parametrize(model: nn.Module) -> None:
            nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)

        def assign(model: nn.Module) -> None:
            model.classifier.weight = nn.Parameter(torch.zeros(3, 16, dtype=torch.float64))

        for change in (parametrize, assign, lambda model: model.resize_token_embeddings(70)):
            model = held(zoo)
            change(model.model)
            with pytest.raises(ConfigError, match="is not what was wrapped"):
                model(**zoo.batch("Bert").inputs)

    def test_frozen_weights_that_shall_be_trained(self, zoo):
        model = held(zoo).requires_grad_(True)
        with pytest.raises(ConfigError, match=r"word_embeddings.weight requires gradients"):
            model(**zoo.batch("Bert").inputs)

    def test_a_state_for_theta_0(self, zoo):
        model = held(zoo)
        for target in (model, model.model, model.model.bert):
            state = zoo.build("Bert").state_dict() if target is model.model else target.state_dict()
            if target is model:
                state = {f"model.{key}": value for key, value in zoo.build("Bert").state_dict().items()}
            with pytest.raises(ConfigError, match="frozen inside a SubspaceModel"):
                target.load_state_dict(state, strict=False)

    def test_tracing_and_transforms(self, zoo):
        model, ids = held(zoo), torch.tensor([[5, 6, 7]])
        with warnings.catch_warnings(), pytest.raises(ConfigError, match="traced"):
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(lambda x: model(x).logits, ids)
        with pytest.raises(ConfigError, match=r"torch\.func"):
            torch.func.grad(lambda x: model(inputs_embeds=x).logits.sum())(torch.randn(1, 3, 16, dtype=torch.float64))
        with pytest.raises(ConfigError, match="DistributedDataParallel"):
            model._replicate_for_data_parallel()

    def test_coordinates_by_functional_call(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        other = (model.coordinates.detach() + 1).requires_grad_()
        out = torch.func.functional_call(model, {"coordinates": other}, (), data.inputs)
        (found,) = torch.autograd.grad(out.logits.sum(), other)
        with torch.no_grad():
            model.coordinates.add_(1)
        (expected,) = torch.autograd.grad(model(**data.inputs).logits.sum(), model.coordinates)
        assert torch.equal(found, expected)


class TestStates:
    def test_numbers_alone_and_back(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        state = model.state_dict()
        assert state.keys() == {"coordinates", "scales", "_extra_state"}
        fresh = SubspaceModel(zoo.build("Bert"), 60, SAID).eval()
        fresh.load_state_dict(state)
        assert torch.equal(fresh(**data.inputs).logits, model(**data.inputs).logits)
        assert nn.Sequential(model).load_state_dict(nn.Sequential(model).state_dict()).missing_keys == []

    def test_a_trained_head_is_in_it(self, zoo):
        model = SubspaceModel(zoo.build("Bert"), 60, Subspace(head="trained"))
        assert {"model.classifier.weight", "model.classifier.bias"} < model.state_dict().keys()
        model.load_state_dict(model.state_dict())

    def test_another_home_is_refused(self, zoo):
        state, base = held(zoo).state_dict(), zoo.build("Bert")
        with torch.no_grad():
            base.classifier.weight.add_(0.1)
        with pytest.raises(ConfigError, match="another theta_0"):
            SubspaceModel(base, 60, SAID).load_state_dict(state)
        with pytest.raises(ConfigError, match="projection_seed = 0, here 1"):
            SubspaceModel(zoo.build("Bert"), 60, SAID, 1).load_state_dict(state)
        with pytest.raises(RuntimeError, match="coordinates"):
            SubspaceModel(zoo.build("Bert"), 60, SAID).load_state_dict({})

    def test_of_the_model_inside_it_is_merged(self, zoo, tmp_path):
        import transformers

        model, data = held(zoo), zoo.batch("Bert")
        expected = model(**data.inputs).logits
        plain = zoo.build("Bert")
        plain.load_state_dict(model.model.state_dict())
        torch.testing.assert_close(plain(**data.inputs).logits, expected, rtol=0, atol=1e-12)
        model.model.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
        torch.testing.assert_close(loaded(**data.inputs).logits, expected, rtol=0, atol=1e-12)


class TestCompile:
    @pytest.mark.slow
    def test_it_runs_as_if_not_compiled(self, zoo):
        model, data = held(zoo), zoo.batch("Bert")
        for compiled in (torch.compile(model, backend="eager"), torch.compile(model.model, backend="eager")):
            model.zero_grad()
            compiled(**data.inputs, labels=data.labels).loss.backward()
            agrees(zoo, model)


def _checkpoint(reentrant: bool) -> Any:
    from functools import partial

    return partial(checkpoint, use_reentrant=reentrant)


class TestSelfTest:
    class Stray(nn.Module):
        """Reads a weight where nobody sees it: by its memory."""

        def __init__(self, config) -> None:
            super().__init__()
            self.config, self.main_input_name = config, "input_ids"
            self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)
            self.hidden = {"out": self.out.weight.data}

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
            hidden = self.table(input_ids)
            return (self.out(hidden) + nn.functional.linear(hidden, self.hidden["out"]),)

        def right(self) -> "TestSelfTest.Stray":
            self.hidden = {"out": torch.eye(3, 8)}
            return self

    def config(self) -> Any:
        from transformers import PretrainedConfig

        return PretrainedConfig(vocab_size=20)

    def test_a_model_that_cannot_be_held(self, zoo):
        class Detached(self.Stray):
            def forward(self, input_ids, attention_mask):
                weight = self.out._parameters["weight"]
                hidden = self.table(input_ids)
                with torch._C.DisableTorchFunction():
                    extra = nn.functional.linear(hidden, weight)
                return (self.out(hidden) + extra,)

        with pytest.raises(ConfigError, match=r"cannot be held in a subspace as it is.*the gradient is off by"):
            SubspaceModel(Detached(self.config()), 20)
        SubspaceModel(Detached(self.config()), 20, check=False)
        SubspaceModel(self.Stray(self.config()).right(), 20)

    def test_a_table_that_is_read_unseen(self, zoo):
        """Its gradient is of some rows where it is looked up as a module, and of all where it is read otherwise."""

        class Detached(self.Stray):
            def forward(self, input_ids, attention_mask):
                with torch._C.DisableTorchFunction():
                    extra = nn.functional.embedding(input_ids, self.table._parameters["weight"])
                return (self.out(self.table(input_ids) + extra),)

        with pytest.raises(ConfigError, match=r"cannot be held in a subspace as it is.*the gradient is off by"):
            SubspaceModel(Detached(self.config()), 20)

    def test_it_makes_no_gradient_of_a_whole_table(self, zoo, monkeypatch):
        """Which would be more than a step needs."""
        base, sizes, real = zoo.build("Bert", vocab_size=3000), [], Partition.adjoint
        table = base.bert.embeddings.word_embeddings
        monkeypatch.setattr(Partition, "adjoint", lambda p, g, *more: sizes.append(g.numel()) or real(p, g, *more))
        selftest.passed.clear()
        SubspaceModel(base, 60)
        assert selftest.passed and not table.sparse
        assert table.embedding_dim in sizes and max(sizes) < table.weight.numel() / 10

    def test_it_leaves_no_trace(self, zoo):
        base = zoo.build("Bert").train()
        before = {name: tensor.clone() for name, tensor in base.named_buffers()}
        selftest.passed.clear()
        state = torch.get_rng_state()
        model = SubspaceModel(base, 60, Subspace(head="trained"))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_buffers())
        assert all(p.grad is None for p in model.parameters())
        assert model.model.bert.embeddings.word_embeddings.padding_idx == 0

    @pytest.mark.parametrize("eos", [None, 2, [2, 3], [], -1, 1000])
    def test_ids_as_configs_have_them(self, zoo, eos):
        """Chat models end in one of several tokens."""
        selftest.passed.clear()
        SubspaceModel(zoo.build("Llama", eos_token_id=eos), 60)

    def test_once_for_each_kind_of_model(self, zoo):
        selftest.passed.clear()
        for d in (20, 30, 40):
            SubspaceModel(zoo.build("Bert"), d)
        assert len(selftest.passed) == 1
        SubspaceModel(zoo.build("Bert", num_hidden_layers=1), 20)
        SubspaceModel(zoo.build("Bert"), 20, SAID)
        assert len(selftest.passed) == 3
