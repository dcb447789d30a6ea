"""The interval of every d90 while a sweep runs, from the rows that are in so far.

A fit takes a few hundredths of a second and a cluster ends many trials a second, so a fit is made again only when a
twentieth of the time allows it: what is shown may lag. The driver does not hear what was predicted for each example;
at the end the tables' estimates, which are made of that too, take their place.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from distsub.errors import DistsubError
from distsub.estimate.d90 import estimate
from distsub.records import Observation
from distsub.search import Search
from distsub.search.spec import key as key_of

SHARE = 20
"""A fit may follow another after this many times what that one took."""


class Intervals:
    """Keeps the rows of searches that differ in seeds only together, and says what they estimate."""

    def __init__(self, searches: Sequence[Search], rows: Iterable[Observation] = ()) -> None:
        self._members: dict[str, list[Search]] = {}
        self._baseline: dict[str, list[str]] = {}
        self._first: dict[str, int] = {}
        for index, search in enumerate(searches):
            key = search.condition.id
            self._members.setdefault(key, []).append(search)
            self._first.setdefault(key, index)
            for each in (key_of(trial.setup) for trial in search.references):
                users = self._baseline.setdefault(each, [])
                if key not in users:
                    users.append(key)
        self._rows: dict[str, dict[str, Observation]] = {key: {} for key in self._members}
        self._stale: dict[str, None] = {}
        self._texts: dict[str, str] = {}
        self._again = 0.0
        for row in rows:
            self.add(row)

    def add(self, row: Observation) -> None:
        """Note a result; an error is none."""
        keys = self._baseline.get(key_of(row.trial.setup), ()) if row.trial.is_reference else (row.trial.condition.id,)
        for key in keys:
            if row.status != "error" and key in self._members:
                self._rows[key][row.trial.id] = row
                self._stale[key] = None

    def refresh(self, fresh: bool = False) -> list[tuple[int, str]]:
        """Fit again what has new rows, as far as the time allows, or all of it if `fresh`.

        Returns:
            What changed: the position of the first search that has part in it, and the estimate in words.
        """
        changed = []
        while self._stale and (fresh or time.monotonic() >= self._again):
            key = next(iter(self._stale))
            del self._stale[key]
            began = time.monotonic()
            text = self._fit(key)
            self._again = time.monotonic() + SHARE * (time.monotonic() - began)
            if text != self._texts.get(key, ""):
                self._texts[key] = text
                changed.append((self._first[key], text))
        return changed

    def settle(self, final: Mapping[Search, str]) -> list[tuple[int, str]]:
        """Take the final estimates that each search has part in, made of all rows and predictions; as `refresh`."""
        self._stale.clear()
        changed = []
        for key, members in self._members.items():
            text = final.get(members[0], "")
            if text != self._texts.get(key, ""):
                self._texts[key] = text
                changed.append((self._first[key], text or "none"))
        return changed

    @property
    def texts(self) -> dict[int, str]:
        """The estimates in words, by the position of the first search that has part in each."""
        return {self._first[key]: text for key, text in self._texts.copy().items()}

    def text(self, search: Search) -> str:
        """Return the estimate that a search has part in, in words; empty while nothing can be said."""
        return self._texts.get(search.condition.id, "")

    def _fit(self, key: str) -> str:
        try:
            found = estimate(self._members[key], list(self._rows[key].values()))
        except DistsubError:
            return ""  # rows that allow no fit are reported at the end, where a person can act on it
        return found.text if found.width != float("inf") else ""
