"""A tensor's bytes, out of its file where it is mapped from one."""

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from distsub.models import mapped


def content(tensor, mappings):
    return b"".join(bytes(piece) for piece in mappings.read(tensor))


def test_the_bytes_are_the_tensors_and_come_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_PIECE_BYTES", 100)
    given = {"a": torch.randn(7, 11), "b": torch.randn(300).bfloat16(), "c": torch.arange(5), "d": torch.zeros(())}
    save_file(given, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        read = {name: opened.get_tensor(name) for name in given}
        mappings = mapped.Mappings()
        for name, tensor in read.items():
            assert content(tensor, mappings) == bytes(given[name].reshape(-1).view(torch.uint8).numpy())
        part = read["a"][2:5]
        assert content(part, mappings) == bytes(given["a"][2:5].reshape(-1).view(torch.uint8).numpy())
        assert content(read["a"].T, mappings) == bytes(given["a"].T.contiguous().view(torch.uint8).numpy())
        # Of the mapped file and not of this memory: pieces as short as those that are read.
        assert max(len(piece) for piece in mappings.read(read["b"])) == 100


def test_what_is_not_mapped_comes_out_of_memory(tmp_path, monkeypatch):
    tensor = torch.randn(50)
    assert content(tensor, mapped.Mappings()) == bytes(tensor.view(torch.uint8).numpy())
    monkeypatch.setattr(mapped, "_MAPS", tmp_path / "nothing")
    assert content(tensor, mapped.Mappings()) == bytes(tensor.view(torch.uint8).numpy())
