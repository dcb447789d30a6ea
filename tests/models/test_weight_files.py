"""theta_0 is what transformers loads, to the bit, for every layout of a checkpoint; what it cannot load is one line."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distsub.errors import UnavailableError
from distsub.models import contents, conversion, pretrained, weight_files
from distsub.subspace import layout

SMALL = {"vocab_size": 46, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"max_position_embeddings": 24, "pad_token_id": 0}
DECODER = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
ZOO = {
    "bert": lambda: tf.BertConfig(**SMALL),
    "gpt2": lambda: tf.GPT2Config(vocab_size=46, n_embd=16, n_layer=2, n_head=2, n_positions=24, pad_token_id=0),
    "t5": lambda: tf.T5Config(vocab_size=46, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
    "deberta-v2": lambda: tf.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
}
MORE = {
    "roberta": lambda: tf.RobertaConfig(**SMALL),
    "distilbert": lambda: tf.DistilBertConfig(vocab_size=46, dim=16, hidden_dim=24, n_layers=2, n_heads=2),
    "albert": lambda: tf.AlbertConfig(**SMALL, embedding_size=8),
    "electra": lambda: tf.ElectraConfig(**SMALL, embedding_size=8),
    "mpnet": lambda: tf.MPNetConfig(**SMALL),
    "xlnet": lambda: tf.XLNetConfig(vocab_size=46, d_model=16, n_layer=2, n_head=2, d_inner=24),
    "funnel": lambda: tf.FunnelConfig(
        vocab_size=46,
        d_model=16,
        block_sizes=[1, 1],
        n_head=2,
        d_head=8,
        d_inner=24,
        pad_token_id=0,
        architectures=["FunnelBaseModel"],
    ),
    "longformer": lambda: tf.LongformerConfig(**SMALL, attention_window=4),
    "modernbert": lambda: tf.ModernBertConfig(**SMALL),
    "bart": lambda: tf.BartConfig(
        vocab_size=46,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=24,
    ),
    "opt": lambda: tf.OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16),
    "llama": lambda: tf.LlamaConfig(**DECODER),
    "qwen2": lambda: tf.Qwen2Config(**DECODER),
    "gemma": lambda: tf.GemmaConfig(**DECODER),
    "mixtral": lambda: tf.MixtralConfig(**DECODER, num_local_experts=3),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SMALL),
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))


def save(folder: Path, config, cls=tf.AutoModel, round_to=True, **how) -> dict[str, torch.Tensor]:
    """Save a random model whose weights fp16 and bf16 can both hold, and give them."""
    torch.manual_seed(0)
    model = cls.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noisy = parameter + 0.05 * torch.randn_like(parameter)
            parameter.copy_(noisy.bfloat16().half().float() if round_to else noisy)
    model.save_pretrained(folder, **how)
    found = sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in found for name, tensor in load_file(file).items()}


def write(folder: Path, state, name="model.safetensors", **how) -> None:
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]:
        file.unlink()
    if name.endswith("safetensors"):
        save_file(state, folder / name, **({"metadata": {"format": "pt"}} | how))
    else:
        torch.save(state, folder / name, **how)


def in_shards(folder: Path, state, suffix: str, dtypes=(torch.float32,)) -> None:
    names = sorted(state)
    parts = {f"{i}-of-3{suffix}": names[i::3] for i in range(3)}
    write(folder, {"unused": torch.zeros(1)}, "old.safetensors")
    for i, (part, mine) in enumerate(parts.items()):
        held = {name: state[name].to(dtypes[i % len(dtypes)]) for name in mine}
        if suffix == ".bin":
            torch.save(held, folder / part)
        else:
            save_file(held, folder / part, metadata={"format": "pt"})
    table = {name: part for part, mine in parts.items() for name in mine}
    index = weight_files.NAMES[3 if suffix == ".bin" else 1]
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))


def strays(folder: Path, state) -> None:
    """Put zeros under the same names beside the model, in all the files that people have there."""
    write(folder, state)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for name in ("adapter_model", "consolidated", "model_old", "model.fp16", "optimizer", "zz-00001-of-00002"):
        save_file(zeros, folder / f"{name}.safetensors", metadata={"format": "pt"})
    for name in ("pytorch_model.bin", "optimizer.bin", "pytorch_model.fp16.bin", "training_args.bin"):
        torch.save(zeros, folder / name)
    (folder / weight_files.NAMES[1]).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "absent"}}))


def cast(state, *dtypes):
    return {name: state[name].to(dtypes[i % len(dtypes)]) for i, name in enumerate(sorted(state))}


LAYOUTS = {
    "one file": write,
    "no metadata": lambda folder, state: write(folder, state, metadata={}),
    "zip .bin": lambda folder, state: write(folder, state, "pytorch_model.bin"),
    "legacy .bin": lambda folder, state: write(
        folder, state, "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "shards": lambda folder, state: in_shards(folder, state, ".safetensors"),
    "shards of unlike types": lambda folder, state: in_shards(
        folder, state, ".safetensors", (torch.float16, torch.float32, torch.bfloat16)
    ),
    ".bin shards": lambda folder, state: in_shards(folder, state, ".bin"),
    "fp16": lambda folder, state: write(folder, cast(state, torch.float16)),
    "bf16": lambda folder, state: write(folder, cast(state, torch.bfloat16)),
    "fp64": lambda folder, state: write(folder, cast(state, torch.float64)),
    "mixed": lambda folder, state: write(folder, cast(state, torch.float16, torch.float32, torch.bfloat16)),
    "bf16 .bin": lambda folder, state: write(folder, cast(state, torch.bfloat16), "pytorch_model.bin"),
    "strays": strays,
    "strays, bf16": lambda folder, state: strays(folder, cast(state, torch.bfloat16)),
    "old tables": lambda folder, state: write(folder, state | {"embeddings.position_ids": torch.arange(24)[None]}),
    "tables and junk": lambda folder, state: write(
        folder, state | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "epoch": torch.tensor([3])}
    ),
}


def reference(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers gives, less what it makes up."""
    model, info = tf.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    return {name: value for name, value in model.state_dict().items() if name not in info["missing_keys"]}


def check(folder: Path) -> str:
    """Compare theta_0 with the reference, but for the head, which is the task's own, and give its hash."""
    prepared = pretrained.prepare(str(folder))
    model = pretrained.build(prepared, tf.AutoConfig.from_pretrained(folder).num_labels, head_seed=0)
    mine, right = model.state_dict(), reference(folder)
    assert right
    for name in right.keys() - layout.head_names(model):
        value = right[name]
        assert mine[name].dtype == value.dtype and torch.equal(mine[name], value), name
    return prepared.sha256


def every_layout(config, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    state = save(folder, config)
    hashes = {}
    for what, put in LAYOUTS.items():
        put(folder, state)
        hashes[what] = check(folder)
    prefix = tf.AutoModel.from_config(config).base_model_prefix
    write(folder, {f"{prefix}.{name}": tensor for name, tensor in state.items()})
    hashes["with the prefix"] = check(folder)
    assert len(set(hashes.values())) == 1, hashes
    write(folder, {name: tensor + (name == min(state)) for name, tensor in state.items()})
    assert check(folder) not in hashes.values()


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "deberta-v2"))]
)
def test_every_layout_gives_the_tensors_and_the_hash_of_transformers(name, tmp_path):
    every_layout(ZOO[name](), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_layout_of_more_architectures(name, tmp_path):
    every_layout(MORE[name](), tmp_path)


def untied(config):
    config.tie_word_embeddings = False
    return config


WHOLE = {
    "bert masked": (tf.AutoModelForMaskedLM, ZOO["bert"]),
    "bert pretraining": (tf.AutoModelForPreTraining, ZOO["bert"]),
    "gpt2 causal": (tf.AutoModelForCausalLM, ZOO["gpt2"]),
    "bert classifier": (tf.AutoModelForSequenceClassification, lambda: tf.BertConfig(**SMALL, num_labels=3)),
    "t5 whole": (tf.AutoModelForSeq2SeqLM, ZOO["t5"]),
    "gpt2 untied": (tf.AutoModelForCausalLM, lambda: untied(ZOO["gpt2"]())),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("put", ["one file", "fp16", "legacy .bin"])
def test_models_saved_with_another_head(name, put, tmp_path):
    cls, config = WHOLE[name]
    state = save(tmp_path / "model", config(), cls)
    LAYOUTS[put](tmp_path / "model", state)
    check(tmp_path / "model")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_tied_weights_stored_once_or_twice(suffix, tmp_path):
    folder = tmp_path / "model"
    state = save(folder, ZOO["t5"]())
    name = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    once = check(folder)
    copy = state["shared.weight"] if suffix == ".bin" else state["shared.weight"].clone()
    write(folder, state | {"encoder.embed_tokens.weight": copy}, name)
    assert check(folder) == once


def test_old_names_of_layer_norms(tmp_path):
    folder = tmp_path / "model"
    state = save(folder, ZOO["bert"]())
    now = check(folder)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }
    assert old.keys() != state.keys()
    write(folder, cast(old, torch.float16), "pytorch_model.bin")
    assert check(folder) == now


def test_the_config_may_name_the_file(tmp_path):
    folder = tmp_path / "model"
    state = save(folder, ZOO["bert"]())
    strays(folder, state)
    save_file(cast({k: v + 1 for k, v in state.items()}, torch.bfloat16), folder / "other.safetensors")
    change_config(folder, transformers_weights="other.safetensors")
    check(folder)


def test_a_large_model_is_converted_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 4000)
    folder = tmp_path / "model"
    state = save(folder, ZOO["bert"]())
    write(folder, cast(state, torch.bfloat16))
    check(folder)
    found = list(pretrained.prepare(str(folder)).path.glob("model-*.safetensors"))
    assert len(found) > 3
    for file in found:
        with safe_open(file, framework="pt") as opened:
            assert len(list(opened.keys())) == 1 or sum(opened.get_tensor(k).nbytes for k in opened.keys()) < 10_000  # noqa: SIM118


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.fixture
def bert(tmp_path):
    """A folder that loads, to be damaged."""
    save(tmp_path / "bert", ZOO["bert"]())
    return tmp_path / "bert"


def float8(folder, state):
    new = {}
    for name, tensor in state.items():
        if tensor.dim() == 2 and "encoder" in name:
            scale = tensor.abs().max() / 448
            new |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
        else:
            new[name] = tensor
    write(folder, new)


def integers(kind):
    def put(folder, state):
        new = {k: (v * 100).to(kind) if v.dim() == 2 and "encoder" in k else v for k, v in state.items()}
        write(folder, new)

    return put


def cut(folder, state):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def cut_bin(**how):
    def put(folder, state):
        write(folder, state, "pytorch_model.bin", **how)
        data = (folder / "pytorch_model.bin").read_bytes()
        (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])

    return put


def renamed(change):
    return lambda folder, state: write(folder, {change(name): tensor for name, tensor in state.items()})


def only(name):
    def put(folder, state):
        write(folder, state, "old.safetensors")
        (folder / "old.safetensors").rename(folder / name)

    return put


def without_a_shard(folder, state):
    in_shards(folder, state, ".safetensors")
    (folder / "1-of-3.safetensors").unlink()


def text(name, body):
    return lambda folder, state: (folder / name).write_text(body)


def quantised(**config):
    return lambda folder, state: change_config(folder, **config)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
REFUSED = {
    "float8": (float8, r"quantised \(.* is float8_e4m3fn\)"),
    "int8": (integers(torch.int8), "lack .*first bert.encoder"),
    "uint8": (integers(torch.uint8), "lack .*first bert.encoder"),
    "int32": (integers(torch.int32), "lack .*first bert.encoder"),
    "gptq": (quantised(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised .*gptq"),
    "unknown method": (quantised(quantization_config={"quant_method": "mine"}), "quantised .*mine"),
    "nested": (quantised(text_config={"quantization_config": {"quant_method": "fp8"}}), "quantised .*fp8"),
    "compiled": (renamed(lambda name: f"_orig_mod.{name}"), r'begin with "_orig_mod\."'),
    "compiled inside": (renamed(lambda name: f"bert._orig_mod.{name}"), r'"_orig_mod\."'),
    "parallel": (renamed(lambda name: f"module.{name}"), r'begin with "module\."'),
    "other prefix": (renamed(lambda name: f"student.{name}"), "its first is student.embeddings"),
    "shard": (without_a_shard, "names 1-of-3.safetensors, which is missing"),
    "index": (
        lambda f, s: (in_shards(f, s, ".bin"), text(weight_files.NAMES[3], "{")(f, s)),
        "index.json cannot be read",
    ),
    "empty index": (lambda f, s: (in_shards(f, s, ".bin"), text(weight_files.NAMES[3], "{}")(f, s)), "names no files"),
    "cut": (cut, "model.safetensors cannot be read"),
    "cut bin": (cut_bin(), "pytorch_model.bin"),
    "cut legacy bin": (cut_bin(_use_new_zipfile_serialization=False), "pytorch_model.bin"),
    "empty": (text("model.safetensors", ""), "model.safetensors is empty"),
    "pointer": (text("model.safetensors", LFS), "Git LFS pointer"),
    "pointer config": (text("config.json", LFS), "config.json is a Git LFS pointer"),
    "config": (text("config.json", "{"), "config.json cannot be read as JSON"),
    "config list": (text("config.json", "[1]"), "config.json is no JSON object"),
    "no type": (quantised(model_type=...), "model_type"),
    "unknown type": (quantised(model_type="berd"), "berd"),
    "other sizes": (quantised(hidden_size=32), "other shapes"),
    "more layers": (quantised(num_hidden_layers=3), "lack 16 tensors of the base model"),
    "impossible": (quantised(num_attention_heads=3), "no sequence classifier"),
    "no classifier": (quantised(model_type="vit"), "no sequence classifier"),
    "gguf": (only("model-Q4_K_M.gguf"), "GGUF"),
    "tensorflow": (only("tf_model.h5"), "TensorFlow"),
    "flax": (only("flax_model.msgpack"), "Flax"),
    "onnx": (only("model.onnx"), "ONNX"),
    "adapter": (only("adapter_model.safetensors"), "merge_and_unload"),
    "method": (only("model.fp16.safetensors"), "copy it to model.safetensors"),
    "consolidated": (only("consolidated.safetensors"), "rename it to model.safetensors"),
    "nothing": (lambda folder, state: (folder / "model.safetensors").unlink(), "no weights in it"),
    "nested bin": (lambda f, s: write(f, {"state_dict": s}, "pytorch_model.bin"), "state_dict.*save_pretrained"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_one_line(name, bert):
    damage, message = REFUSED[name]
    damage(bert, load_file(bert / "model.safetensors"))
    with pytest.raises(UnavailableError, match=message) as caught:
        pretrained.build(pretrained.prepare(str(bert)), 2, 0)
    line = str(caught.value)
    assert "\n" not in line and str(bert) in line and "cache" not in line and len(line) < 600
    cache = pretrained.cache_directory()
    assert not cache.exists() or not [each for each in cache.iterdir() if each.is_dir()]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["somebody/kernel", "flash_attention_2", "paged|flash_attention_3", {"": "a/b"}])
def test_a_config_cannot_bring_kernels(key, value, bert):
    before = check(bert)
    change_config(bert, **{key: value}, experts_implementation="somebody/kernel")
    prepared = pretrained.prepare(str(bert))
    model = pretrained.build(prepared, 2, 0)
    assert prepared.sha256 == before and model.config._attn_implementation == "sdpa"


def test_an_adapter_beside_the_model_changes_nothing(bert):
    before = check(bert)
    (bert / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')
    prepared = pretrained.prepare(str(bert))
    assert prepared.sha256 == before and not list(prepared.path.glob("adapter*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_an_edit_in_place_is_seen_whatever_its_time_says(dtype, file, bert):
    write(bert, cast(load_file(bert / "model.safetensors"), dtype))
    change_config(bert, layer_norm_eps=1e-12)
    before = pretrained.prepare(str(bert))
    path, about = bert / file, (bert / file).stat()
    data = bytearray(path.read_bytes())
    if file == "config.json":
        data = data.replace(b"1e-12", b"2e-12")
    else:
        data[-1] ^= 1
    with path.open("r+b") as opened:
        opened.write(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    after = pretrained.prepare(str(bert))
    assert (after.sha256 != before.sha256) == (file != "config.json") and after.path != before.path
    check(bert)
    assert pretrained.build(after, 2, 0).config.layer_norm_eps == (2e-12 if file == "config.json" else 1e-12)


def test_a_copy_outlives_the_original(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "copy")
    assert check(bert) == check(tmp_path / "copy")
    shutil.rmtree(bert)
    check(tmp_path / "copy")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_others_may_read_what_the_umask_lets_them(umask, dtype, bert):
    write(bert, cast(load_file(bert / "model.safetensors"), dtype))
    old = os.umask(umask)
    try:
        prepared = pretrained.prepare(str(bert))
    finally:
        os.umask(old)
    for path in [prepared.path.parent, prepared.path, *prepared.path.iterdir()]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_crashed_conversion_is_not_taken_for_whole(bert, monkeypatch):
    write(bert, cast(load_file(bert / "model.safetensors"), torch.bfloat16))

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(contents, "of_tensors", crash)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if killed
        with pytest.raises(KeyboardInterrupt):
            pretrained.prepare(str(bert))
    assert len([each for each in pretrained.cache_directory().iterdir() if each.is_dir()]) == 1
    check(bert)
    assert len([each for each in pretrained.cache_directory().iterdir() if each.is_dir()]) == 1  # and cleared away


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_cannot_be_written_is_named(dtype, bert, monkeypatch, tmp_path):
    write(bert, cast(load_file(bert / "model.safetensors"), dtype))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        monkeypatch.setenv("DISTSUB_CACHE", str(place))
        with pytest.raises(UnavailableError, match=r"cache .* cannot be written .*set DISTSUB_CACHE") as caught:
            pretrained.prepare(str(bert))
        assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_home_that_is_said(monkeypatch):
    for name in ("DISTSUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(UnavailableError, match="DISTSUB_CACHE"):
        pretrained.cache_directory()


def test_a_file_is_hashed_once_per_machine_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_files, "_WORTHWHILE", 1)
    monkeypatch.setattr(weight_files, "_SETTLED_NS", -(10**12))  # files of this test are as new as can be
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = weight_files.content_hash(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    weight_files._sha256.cache_clear()  # as in another process
    monkeypatch.setattr(weight_files.hashlib, "file_digest", None)
    assert weight_files.content_hash(file) == first
    monkeypatch.undo()
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    [kept] = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text("damaged")
    weight_files._sha256.cache_clear()
    assert weight_files.content_hash(file) == first
    file.write_bytes(b"two")
    assert weight_files.content_hash(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_files, "_WORTHWHILE", 1)
    (tmp_path / "a").write_bytes(b"one")
    weight_files.content_hash(tmp_path / "a")
    assert not (tmp_path / "cache" / "hashes").exists()
