"""Arrow without what it would bring along."""

import sys


class _Absent:
    """An import finder for which there is no pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def without_pandas() -> None:
    """Keep pyarrow from importing pandas, which is slow; a later conversion to pandas still works.

    It looks before it makes its first array, to tell a list from a Series: a fifth of a second for nothing.
    """
    import pyarrow as pa

    finder = _Absent()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
