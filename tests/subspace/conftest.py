"""Tiny models with random weights, one per architecture, and the reference that a held model is compared with."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsub.records import Random, Subspace
from distsub.subspace.model import SubspaceModel

EOS, PAD, VOCAB = 2, 0, 60
_COMMON: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS}
_BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    **_COMMON,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_BART: dict[str, Any] = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
}
_XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD}
_FUNNEL = {"d_model": 16, "block_sizes": [1, 1], "n_head": 2, "d_head": 8, "d_inner": 24}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "Bert": _BERT,
    "Roberta": _BERT,
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    "Albert": _BERT | {"embedding_size": 8},
    "Electra": _BERT | {"embedding_size": 8},
    "MPNet": _BERT,
    "Deberta": _BERT | _RELATIVE,
    "DebertaV2": _BERT | _RELATIVE | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "XLNet": _XLNET,
    "Funnel": _FUNNEL,
    "ModernBert": _BERT | {"cls_token_id": 1, "sep_token_id": EOS},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "Llama": _BERT | {"num_key_value_heads": 1},
    "Qwen3": _BERT | {"num_key_value_heads": 1, "head_dim": 8},
    "T5": _T5,
    "Bart": {"d_model": 16, "max_position_embeddings": 40, **_BART},
}
OTHERS = {"BertForMaskedLM": _BERT, "GPT2LMHeadModel": CLASSIFIERS["GPT2"]}
ARCHITECTURES = [*CLASSIFIERS, *OTHERS]

SPECS = {
    "did": Subspace(Random("fastfood")),
    "said": Subspace(Random("fastfood"), scales="layer"),
    "said-tensor-partition": Subspace(scales="tensor"),
    "said-per-tensor": Subspace(Random("fastfood_per_tensor", "per_tensor"), scales="layer"),
    "did-sparse-trained": Subspace(Random("sparse"), head="trained"),
    "said-dense-frozen": Subspace(Random("dense"), scales="layer", head="frozen"),
}


@dataclass(frozen=True)
class Batch:
    """Inputs with one padded row, and labels."""

    inputs: dict[str, Tensor]
    labels: Tensor


class Zoo:
    """Builds tiny models, plain and held in a subspace."""

    def build(self, name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
        """Make a tiny model, in evaluation mode, with every weight random so that none hides behind a zero."""
        import transformers

        transformers.logging.set_verbosity_error()
        options = CLASSIFIERS.get(name) or OTHERS[name]
        family = name if name in CLASSIFIERS else name.split("For")[0].split("LM")[0]
        kind = f"{name}ForSequenceClassification" if name in CLASSIFIERS else name
        labels = {"num_labels": 3} if name in CLASSIFIERS else {}
        settings = {"vocab_size": VOCAB, **_COMMON, **options, **labels, **changes}
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**settings)).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def batch(self, name: str, rows: int = 3, length: int = 9) -> Batch:
        """Make a batch whose last token is the end of sequence (T5 and BART classify there)."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
        ids[:, -1] = EOS
        mask = torch.ones_like(ids)
        if name not in ("T5", "Bart"):  # these need the same number of end-of-sequence tokens in every row, at the end
            ids[1, 6:], mask[1, 6:] = PAD, 0
        labels = torch.randint(0, 3, (rows,), generator=generator) if name in CLASSIFIERS else ids.clone()
        return Batch({"input_ids": ids, "attention_mask": mask}, labels)

    def held(self, name: str = "Bert", d: int = 60, dtype: torch.dtype = torch.float64, **fields) -> SubspaceModel:
        return SubspaceModel(self.build(name, dtype), d, Subspace(**fields)).eval()

    def move(self, model: SubspaceModel, size: float = 0.5) -> SubspaceModel:
        """Leave theta_0: every coordinate and scale takes another value."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            model.coordinates.copy_(torch.randn(model.coordinates.shape, generator=generator) * size)
            model.scales.copy_(torch.rand(model.scales.shape, generator=generator) + 0.5)
        return model

    def merged(self, model: SubspaceModel, name: str = "Bert") -> nn.Module:
        """A plain model with the same weights."""
        plain = self.build(name, model.coordinates.dtype)
        plain.load_state_dict(model.merged_state())
        return plain.eval()

    def dense_gradients(self, model: SubspaceModel, plain: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce a plain model's gradient of all D parameters to that of the coordinates and scales, in one piece."""
        grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in plain.named_parameters()}
        flat = torch.cat([grads[entry.name].reshape(-1) for entry in model.entries])
        if not model.scales.numel():
            return model.projection.adjoint(flat), flat.new_zeros(0)
        update = model.projection.apply(model.coordinates.detach())
        scale, by_scale = torch.empty_like(flat), torch.zeros_like(model.scales)
        for start, stop, group in model.groups:
            scale[start:stop] = model.scales.detach()[group]
            by_scale[group] += torch.dot(flat[start:stop], update[start:stop])
        return model.projection.adjoint(flat * scale), by_scale

    def exact_gradients(self, model: nn.Module) -> nn.Module:
        """Make a plain model give the true gradient of padding rows.

        `nn.Embedding(padding_idx=...)` leaves the gradient of that row out, although the row is read. A subspace moves
        it with all others, so the gradient of its coordinates has to count it.
        """
        model.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
        return model

    def relative(self, a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).norm() / b.norm()).item() if b.numel() else 0.0


@pytest.fixture
def zoo() -> Zoo:
    return Zoo()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Subspace:
    """What a held model is held in: every family, head policy and kind of scale."""
    return SPECS[request.param]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two cores are shared with other tests."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
