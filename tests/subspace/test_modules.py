"""Which parameters `modules` spans, over architectures; and that a subspace of some of them is the dense one."""

import re
import warnings

import pytest
import torch
import transformers
import zoo as models
from torch import nn

from distsub.errors import ConfigError
from distsub.records import Budget, Learned, Random, Source, Span, Subspace, label, modules_pattern
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel
from distsub.subspace.modules import kinds
from distsub.subspace.trajectory import MadeOf, Snapshots

QKVO = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
OUT = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
CROSS = "encoder_attn.q_proj encoder_attn.k_proj encoder_attn.v_proj encoder_attn.out_proj"
SELF = "attention.self.query attention.self.key attention.self.value"
ENDS = "attention.output.dense attention.output.LayerNorm"
FFN = "intermediate.dense output.dense output.LayerNorm"
WIDE = "mlp.dense_h_to_4h mlp.dense_4h_to_h"
T5 = " ".join(f"SelfAttention.{each} EncDecAttention.{each}" for each in "qkvo")

MODULES = {
    **dict.fromkeys(["Bert", "Roberta", "Electra", "RoFormer"], (f"{SELF} {ENDS}", FFN)),
    "Albert": ("attention.query attention.key attention.value attention.dense attention.LayerNorm", "ffn ffn_output"),
    "DistilBert": ("attention.q_lin attention.k_lin attention.v_lin attention.out_lin", "ffn.lin1 ffn.lin2"),
    "MPNet": (
        "attention.attn.q attention.attn.k attention.attn.v attention.attn.o attention.LayerNorm "
        "encoder.relative_attention_bias",
        FFN,
    ),
    "DebertaV2": (
        f"attention.self.query_proj attention.self.key_proj attention.self.value_proj {ENDS}",
        FFN,
    ),
    "ModernBert": ("attn.Wqkv attn.Wo", "mlp.Wi mlp.Wo"),
    "GPT2": ("attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    "OPT": (OUT, "fc1 fc2"),
    **dict.fromkeys(["Llama", "Mistral", "Qwen2", "Gemma"], (QKVO, GATED)),
    "Qwen3": (f"{QKVO} self_attn.q_norm self_attn.k_norm", GATED),
    "GPTNeoX": ("attention.query_key_value attention.dense", WIDE),
    "Bloom": ("self_attention.query_key_value self_attention.dense", WIDE),
    "T5": (f"{T5} SelfAttention.relative_attention_bias", "DenseReluDense.wi DenseReluDense.wo"),
    "Bart": (f"{OUT} {CROSS}", "fc1 fc2"),
    "XLM": ("attentions.q_lin attentions.k_lin attentions.v_lin attentions.out_lin", "ffns.lin1 ffns.lin2"),
    "CTRL": (
        "multi_head_attention.Wq multi_head_attention.Wk multi_head_attention.Wv multi_head_attention.dense",
        "ffn",
    ),
}
"""Modules with parameters of their own: how their names end, without the numbers of layers."""

WHOLE = [
    *MODULES,
    *("BigBird", "Camembert", "Canine", "ConvBert", "Data2VecText", "Deberta", "Ernie", "Falcon", "Flaubert", "Funnel"),
    *("GPTJ", "GPTNeo", "Gemma2", "Gemma3Text", "IBert", "LED", "Longformer", "Luke", "M2M100", "MBart", "MT5"),
    *("Mixtral", "MegatronBert", "Nystromformer", "Olmo2", "OpenAIGPT", "Pegasus", "Phi", "Phi3", "Qwen3Moe"),
    *(
        "RemBert",
        "RobertaPreLayerNorm",
        "SqueezeBert",
        "SwitchTransformers",
        "T5Gemma",
        "UMT5",
        "XLMRobertaXL",
        "XLNet",
    ),
]
"""Models whose blocks consist of attention, feed-forward modules and norms."""


def on_meta(name: str) -> nn.Module:
    """Make a model as transformers ships it, without memory."""
    transformers.logging.set_verbosity_error()
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())


@pytest.mark.parametrize("name", MODULES)
def test_attention_and_mlp_are_the_modules_of_the_architecture(name):
    owners: dict[str | None, set[str]] = {None: set(), "attention": set(), "mlp": set()}
    for parameter, kind in kinds(on_meta(name)).items():
        path = [part for part in parameter.split(".")[:-1] if not part.isdigit()]
        owners[kind].add("." + ".".join(path))
    for kind, text in zip(("attention", "mlp"), MODULES[name], strict=True):
        ends = tuple(f".{end}" for end in text.split())
        assert all(owner.endswith(ends) for owner in owners[kind])
        assert all(any(owner.endswith(end) for owner in owners[kind]) for end in ends)
        assert not any(owner.endswith(ends) for owner in owners[None])


@pytest.mark.parametrize(
    "name", [n if n in MODULES else pytest.param(n, marks=pytest.mark.slow) for n in dict.fromkeys(WHOLE)]
)
def test_what_is_left_of_a_block_are_norms(name):
    model = on_meta(name)
    found, blocks = kinds(model), layout.blocks(model)
    assert {"attention", "mlp"} <= set(found.values())
    left = {each for each, kind in found.items() if kind is None and any(each.startswith(f"{b}.") for b in blocks)}
    assert all(re.search(r"norm|(^|[._])ln", each.lower()) for each in left), left
    sizes = {each: parameter.dim() for each, parameter in model.named_parameters()}
    assert all(sizes[each] == 1 for each in left)


SPAN = Span((Source(),), 0.001, Budget(steps=4), every=1)
LAYER = {"scope": "layer", "head": "trained", "embeddings": "frozen"}
FIELDS = {
    "did": {},
    "fastfood": {"projection": Random("fastfood")},
    "per tensor": {"projection": Random("fastfood_per_tensor", "per_tensor")},
    "scales of layers": {"scales": "layer"},
    "scales of tensors": {"scales": "tensor"},
    "head trained": {"head": "trained"},
    "head frozen": {"head": "frozen"},
    "embeddings trained": {"embeddings": "trained"},
    "each layer": LAYER,
    "learned": {"projection": Learned(SPAN), **LAYER},
    "learned over all": {"projection": Learned(SPAN), "embeddings": "frozen"},
    "matched": {"projection": Random("dense", match=SPAN), **LAYER},
}


def held(zoo, name, modules, d=24, **fields) -> SubspaceModel:
    base, generator = zoo.build(name), torch.Generator().manual_seed(0)
    walk = [
        {key: torch.randn(p.shape, generator=generator, dtype=torch.float64) for key, p in base.named_parameters()}
        for _ in range(4)
    ]
    spec = Subspace(modules=modules, **fields)
    snapshots = Snapshots(tuple(walk), MadeOf(("walk",), "4")) if spec.span else None
    return SubspaceModel(base, 3 if spec.span else d, spec, snapshots=snapshots).eval()


SPANNED = ["attention", "mlp", r"regex:query|(^|\.)embeddings\."]


@pytest.mark.parametrize(
    ("fields", "modules"),
    [
        pytest.param(fields, modules, marks=[pytest.mark.slow] if (number + place) % 3 else [])  # each once is fast
        for number, fields in enumerate(FIELDS)
        for place, modules in enumerate(SPANNED)
    ],
)
def test_values_and_gradients_are_those_of_the_dense_weights(zoo, fields, modules):
    check(zoo, "Bert", modules, **FIELDS[fields])


@pytest.mark.parametrize(
    ("modules", "head"),
    [
        ("attention", "in_subspace"),
        ("mlp", "trained"),
        pytest.param("attention", "trained", marks=pytest.mark.slow),
        pytest.param("mlp", "in_subspace", marks=pytest.mark.slow),
    ],
)
def test_every_architecture(zoo, architecture, modules, head):
    if head == "trained" and architecture == "GPT2LMHeadModel":
        head = "in_subspace"  # its head is its embeddings
    check(zoo, architecture, modules, head=head)


def check(zoo, name, modules, **fields):
    model = held(zoo, name, modules, **fields)
    spanned = {entry.name for entry in model.entries}
    policies = layout.outside(zoo.build(name), model.spec.head, model.spec.embeddings)
    heads, kind_of = layout.head_names(model.model), kinds(zoo.build(name))
    pattern = modules_pattern(modules)
    wanted = {each for each in kind_of if (pattern.search(each) if pattern else kind_of[each] == modules)}
    assert spanned == {each for each in kind_of if each not in policies and (each in heads or each in wanted)}
    sizes = {key: p.numel() for key, p in zoo.build(name).named_parameters()}
    assert model.num_params == sum(sizes[each] for each in spanned) < model.num_params_model == sum(sizes.values())
    assert model.num_trained_head == sum(sizes[each] for each, policy in policies.items() if policy == "trained")
    zoo.move(model, 0.1)
    plain = zoo.exact_gradients(zoo.merged(model, name))
    before = dict(zoo.build(name).named_parameters())
    for each, parameter in plain.named_parameters():
        assert torch.equal(parameter, before[each]) == (each not in spanned), each
    batch = zoo.batch(name)
    ours, theirs = (each(**batch.inputs, labels=batch.labels) for each in (model, plain))
    assert zoo.relative(ours.logits, theirs.logits) < 1e-12
    ours.loss.backward()
    theirs.loss.backward()
    if model.spec.scope == "model":
        coordinates, scales = zoo.dense_gradients(model, plain)
        assert zoo.relative(model.coordinates.grad, coordinates) < 1e-9
        assert not model.scales.numel() or zoo.relative(model.scales.grad, scales) < 1e-9
    else:
        flat = torch.cat([dict(plain.named_parameters())[e.name].grad.reshape(-1) for e in model.entries])
        assert zoo.relative(model.coordinates.grad, model.projection.adjoint(flat)) < 1e-9
    for key, parameter in model.head.items():
        assert zoo.relative(parameter.grad, dict(plain.named_parameters())[key].grad) < 1e-9


def test_an_adapter_keeps_its_modules(zoo, tmp_path):
    model = zoo.move(held(zoo, "Bert", "attention"))
    model.save_pretrained(tmp_path, base_model="somewhere")
    again = SubspaceModel.from_pretrained(tmp_path, zoo.build("Bert"))
    batch = zoo.batch("Bert")
    assert again.spec.modules == "attention" and again.num_params == model.num_params
    assert torch.equal(again(**batch.inputs).logits, model(**batch.inputs).logits)


def test_a_tied_parameter_is_found_by_any_of_its_names(zoo):
    model = zoo.build("GPT2LMHeadModel")
    [entry] = layout.entries(model, modules="regex:^lm_head")
    assert entry.name == "transformer.wte.weight"


def test_the_head_follows_its_own_policy(zoo):
    model = zoo.build("Bert")
    heads = layout.head_names(model)
    for modules in ("attention", "mlp", "regex:query", "regex:classifier"):
        assert heads <= {entry.name for entry in layout.entries(model, modules=modules)}
        if modules != "regex:classifier":
            assert not heads & {entry.name for entry in layout.entries(model, head="trained", modules=modules)}


@pytest.mark.parametrize(
    ("name", "modules", "fields", "message"),
    [
        ("FNet", "attention", {}, "modules = 'attention' matches none .* it has 'mlp'; .*fourier.output.LayerNorm"),
        ("Bert", "regex:q_proj", {}, r"layer\.N\.attention\.self\.query\.weight"),
        ("Bert", "regex:classifier", {"head": "trained"}, "matches none"),
        ("Bert", "regex:embeddings", {"embeddings": "frozen"}, "matches none"),
        ("Bert", "atention", {}, "'atention' is unknown; use one of all, attention, mlp"),
        ("Bert", "regex:", {}, "has no pattern"),
        ("Bert", "regex:(", {}, "no regular expression"),
        ("Bert", "regex:a{99999999999999999999}", {}, "no regular expression"),
        ("Bert", "Attention", {}, "is unknown"),
        ("Bert", "", {}, "is unknown"),
        ("Bert", ["attention"], {}, "modules"),
    ],
)
def test_what_is_refused_in_one_line(zoo, name, modules, fields, message):
    if name == "FNet":
        base: nn.Module = transformers.FNetModel(transformers.FNetConfig(**models.ALL["FNet"]))
    else:
        base = zoo.build(name)
    with pytest.raises(ConfigError, match=message) as caught:
        SubspaceModel(base, 10, Subspace(modules=modules, **fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_it_is_part_of_the_name():
    assert label(Subspace(modules="attention")) == "did attention"
    assert label(Subspace(modules="mlp", scales="layer")) == "said mlp"
    assert label(Subspace(Learned(SPAN), modules="mlp", **LAYER)) == "intrinsic mlp"
