"""The bytes of tensors that are mapped from files, read without making their pages part of this process's memory."""

from bisect import bisect
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_PIECE_BYTES = 4 * 2**20
_MAPS = Path("/proc/self/maps")


class Mappings:
    """The files that this process has mapped now, by address; none where the system does not say."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int, int, str]] = []
        lines = _MAPS.read_text(errors="surrogateescape").splitlines() if _MAPS.is_file() else []
        for line in lines:
            range_, _, offset, _, _, *name = line.split(maxsplit=5)
            if name and name[0].endswith(".safetensors"):
                start, stop = (int(end, 16) for end in range_.split("-"))
                self._found.append((start, stop, int(offset, 16), name[0]))
        self._found.sort()

    def read(self, tensor: Tensor) -> Iterator[bytes | memoryview]:
        """Give a tensor's bytes in pieces: out of its file where it is mapped from one, else out of memory."""
        address, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        at = bisect(self._found, (address, 2**64, 0, "")) - 1
        if at < 0 or not tensor.is_contiguous() or address + size > self._found[at][1]:
            yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            return
        start, _, offset, name = self._found[at]
        with open(name, "rb", buffering=0) as file:
            file.seek(offset + address - start)
            while size and (piece := file.read(min(size, _PIECE_BYTES))):
                size -= len(piece)
                yield piece
