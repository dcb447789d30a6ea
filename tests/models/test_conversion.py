"""A checkpoint in the precision that a model is held in: linked, widened or rounded, in no more memory than a shard."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from distsub.models import conversion, pretrained, tensor_files, weight_files


@pytest.mark.parametrize(
    ("suffix", "stored"), [(".safetensors", "float32"), (".safetensors", "bfloat16"), (".bin", "float32")]
)
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_what_is_written_is_what_transformers_would_round(tmp_path, suffix, stored, held, monkeypatch):
    monkeypatch.setattr(tensor_files, "_PIECE", 7)
    generator = torch.Generator().manual_seed(0)
    given = {f"t{i}": torch.randn(size, generator=generator) for i, size in enumerate(((5, 9), (13,), ()))}
    given = {name: each.to(getattr(torch, stored)) for name, each in given.items()}
    given |= {"odd": torch.arange(4), "a.position_ids": torch.arange(6)[None], "t.T": given["t0"].T.contiguous()}
    file = tmp_path / f"model{suffix}"
    torch.save(given, file) if suffix == ".bin" else save_file(given, file, metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    conversion.write([file], tmp_path / "out", held)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(given) - {"odd"}  # an integer that is no known table may be a quantised weight
    for name, tensor in found.items():
        wanted = given[name].to(getattr(torch, held)) if given[name].is_floating_point() else given[name]
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)
    assert conversion.is_ready([tmp_path / "out" / "model.safetensors"], held)
    assert not conversion.is_ready(
        [tmp_path / "out" / "model.safetensors"], "bfloat16" if held == "float32" else "float32"
    )


def test_a_file_of_one_type_has_the_bytes_of_safetensors(tmp_path):
    given = {"b": torch.randn(3, 4), "a": torch.randn(5), "ü": torch.randn(())}
    shapes = {name: (each.dtype, tuple(each.shape)) for name, each in given.items()}
    size, sha256 = tensor_files.write(tmp_path / "x", shapes, [given[name] for name in tensor_files.order(shapes)])
    assert (tmp_path / "x").read_bytes() == save(given, {"format": "pt"}) and size == (tmp_path / "x").stat().st_size
    assert sha256 == weight_files.content_hash(tmp_path / "x")


def test_the_precision_of_a_checkpoint_is_that_in_which_it_loses_nothing(tmp_path):
    half, whole = torch.randn(4).bfloat16(), torch.randn(4)
    for number, (tensors, dtype) in enumerate(
        [({"a": half}, "bfloat16"), ({"a": half, "b": whole}, "float32"), ({"a": half.half()}, "float32")]
    ):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        assert conversion.dtype_of([tmp_path / f"{number}.safetensors"]) == dtype


def test_a_base_in_bfloat16_is_mapped_and_has_an_identity_of_its_own(tiny_model):
    whole, half = pretrained.prepare(tiny_model), pretrained.prepare(tiny_model, dtype="bfloat16")
    assert (whole.dtype, half.dtype) == ("float32", "bfloat16")
    assert whole.content != half.content and whole.sha256 != half.sha256
    with safe_open(half.path / "model.safetensors", framework="pt") as opened:
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    built = dict(pretrained.build(half, 2, 0).named_parameters())
    theirs = dict(pretrained.build(whole, 2, 0).named_parameters())
    assert {p.dtype for p in built.values()} == {torch.bfloat16}
    for name, tensor in stored.items():
        assert torch.equal(built[f"bert.{name}"], tensor)
        assert torch.equal(tensor, theirs[f"bert.{name}"].bfloat16())
