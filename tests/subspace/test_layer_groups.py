"""Layers found in many architectures: each is one group, embeddings are one, and what follows the layers is one.

The models are built without memory (on torch's meta device) from transformers' own default configurations, so that
their module trees are those of real checkpoints.
"""

import pytest
import torch
import transformers
from torch import nn

from distsub.errors import ConfigError
from distsub.records import Subspace
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel

LAYERS = {
    **dict.fromkeys(
        ["Bert", "BigBird", "Camembert", "ConvBert", "Data2VecText", "Deberta", "Electra", "Ernie", "FNet", "Funnel"],
        12,
    ),
    **dict.fromkeys(["GPT2", "IBert", "Longformer", "MPNet", "MarkupLM", "LayoutLMv3"], 12),
    **dict.fromkeys(["Nystromformer", "OPT", "Roberta", "RobertaPreLayerNorm", "RoFormer", "SqueezeBert", "XLM"], 12),
    **dict.fromkeys(["Flaubert", "XLMRoberta", "Xmod", "Yoso", "LayoutLM", "NomicBert", "OpenAIGPT", "Tapas"], 12),
    "Albert": 1,  # all layers share one block
    "Bart": 24,  # encoder and decoder
    "Bloom": 2,
    "Canine": 14,  # two of characters, twelve of molecules
    "CTRL": 48,
    "DebertaV2": 24,
    "DistilBert": 6,
    "Falcon": 32,
    "Gemma": 28,
    "GPTNeo": 24,
    "GPTNeoX": 44,
    "Jamba": 32,  # Mamba and attention layers in one list
    "Llama": 32,
    "Luke": 12,
    "MBart": 24,
    "MegatronBert": 24,
    "MobileBert": 24,
    "ModernBert": 22,
    "MT5": 16,
    "Mvp": 24,
    "Perceiver": 26,
    "Phi": 24,
    "PLBart": 12,
    "Qwen2": 32,
    "Qwen3": 32,
    "Reformer": 6,
    "RemBert": 32,
    "T5": 12,
    "T5Gemma": 52,
    "UMT5": 16,
    "XLNet": 24,
    "XLMRobertaXL": 36,
    "Zamba": 76,
    "Zamba2": 54,
}
BEFORE = (
    "mask_emb",
    "layer_norm_emb",
    "cls_token",
    "perceiver.encoder.cross_attention",
)
"""What runs before the layers and is no table nor named for embeddings."""


def on_meta(name: str) -> nn.Module:
    transformers.logging.set_verbosity_error()
    with torch.device("meta"):
        return getattr(transformers, f"{name}ForSequenceClassification")(getattr(transformers, f"{name}Config")())


FAST = ["Albert", "Bart", "Bert", "Bloom", "Canine", "DebertaV2", "DistilBert", "Funnel", "GPT2", "Jamba", "Llama"]
FAST += ["ModernBert", "MPNet", "Perceiver", "Reformer", "T5", "XLM", "XLNet"]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS])
def test_each_layer_is_one_group_and_what_follows_another(name):
    model = on_meta(name)
    entries = layout.entries(model)
    groups = layout.scale_groups(entries, "layer")
    assert len(groups) == LAYERS[name] + 2  # each in one stretch
    assert entries[-1].stop == groups[-1][1] == sum(p.numel() for p in model.parameters())
    first, last = entries[0].layer, entries[-1].layer
    assert (first, last) == ("embeddings", "output")
    early = [entry.name for entry in entries if entry.layer == "embeddings" and entry.part != "table"]
    assert [name for name in early if not any(known in name for known in BEFORE)] == []
    late = [entry.name for entry in entries if entry.layer == "output"]
    assert layout.head_names(model) <= set(late)
    assert not [name for name in late if "embed" in name]


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("GPT2", "transformer.ln_f.weight"),
        ("Llama", "model.norm.weight"),
        ("OPT", "model.decoder.final_layer_norm.weight"),
        ("T5", "transformer.encoder.final_layer_norm.weight"),
        ("T5Gemma", "model.decoder.norm.weight"),
        ("Bert", "bert.pooler.dense.weight"),
        ("NomicBert", "nomic_bert.pooler.dense.weight"),
        ("MBart", "model.decoder.layer_norm.weight"),
        ("Jamba", "model.final_layernorm.weight"),
    ],
)
def test_final_norms_do_not_share_the_embeddings_scale(name, after):
    assert {entry.name: entry.layer for entry in layout.entries(on_meta(name))}[after] == "output"


def test_parts_of_one_layer_in_lists_of_their_own_are_one_layer():
    layers = {entry.name: entry.layer for entry in layout.entries(on_meta("XLM"))}
    for part in ("attentions.3.q_lin.weight", "layer_norm1.3.weight", "ffns.3.lin1.bias", "layer_norm2.3.bias"):
        assert layers[f"transformer.{part}"] == "transformer.attentions.3"


def tiny(name: str) -> nn.Module:
    config = {
        "Jamba": lambda: transformers.JambaConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24,
            num_labels=3, num_key_value_heads=2,
            attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_d_state=4,
            mamba_dt_rank=4, use_mamba_kernels=False, pad_token_id=0,
        ),
        "XLM": lambda: transformers.XLMConfig(
            vocab_size=60, emb_dim=16, n_layers=3, n_heads=2, num_labels=3, dropout=0.0, attention_dropout=0.0
        ),
    }[name]()  # fmt: skip
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.mark.parametrize("name", ["Jamba", "XLM"])
@pytest.mark.parametrize(
    "spec",
    [Subspace(scales="layer"), Subspace(scope="layer", embeddings="frozen", head="frozen")],
    ids=["said", "layer"],
)
def test_unlike_and_split_layers_train_as_the_merged_model_does(zoo, name, spec):
    held, plain = zoo.move(SubspaceModel(tiny(name), 20, spec).eval()), zoo.exact_gradients(tiny(name))
    assert held.scales.numel() == ({"Jamba": 6, "XLM": 5}[name] if spec.scales else 0)
    plain.load_state_dict(held.merged_state())
    ids, labels = torch.randint(5, 60, (3, 8)), torch.tensor([0, 1, 2])
    ours, theirs = held(input_ids=ids, labels=labels).loss, plain(input_ids=ids, labels=labels).loss
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    coordinates, scales = zoo.dense_gradients(held, plain)
    assert zoo.relative(held.coordinates.grad, coordinates) < 1e-12
    assert not scales.numel() or zoo.relative(held.scales.grad, scales) < 1e-12


class Layer(nn.Module):
    """Something with parameters of its own."""

    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(size, size)


def test_layers_that_hold_little_are_refused():
    model = nn.Module()
    model.big, model.few = Layer(50), nn.ModuleList([Layer(5), Layer(5)])
    entries = layout.entries(model)
    message = r"the 2 found here hold 2% of the 2610 parameters .*one for each tensor"
    with pytest.raises(ConfigError, match=f"scales = 'layer' needs .*{message}"):
        layout.scale_groups(entries, "layer")
    with pytest.raises(ConfigError, match=f"embeddings = 'frozen' needs .*{message}"):
        layout.entries(model, embeddings="frozen")
    assert len(layout.scale_groups(entries, "tensor")) == len(entries) == 6
    assert layout.scale_groups(entries, None) == [(0, 2610, 0)]


def test_models_without_layers_are_refused():
    with pytest.raises(ConfigError, match=r"scales = 'layer' needs .*the 0 found here"):
        layout.scale_groups(layout.entries(Layer(4)), "layer")
