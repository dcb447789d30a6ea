"""Arrow without what it would bring along."""

import sys


class _Absent:
    """An import finder for which there is no pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def without_pandas() -> None:
    """Have pyarrow find no pandas when it first looks; whoever converts to pandas later finds it all the same.

    It looks before it makes its first array, to tell a list from a Series: a fifth of a second for nothing.
    """
    import pyarrow as pa

    finder = _Absent()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
