"""What two sweeps have in common: whether one asks for all that the other asks, and which keys of the file differ.

Works on the plain values of `Sweep.record`, which a results directory keeps: so it works for any sweep that a
directory has held, in the sweep file's own words.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]

SHOWN = 8
"""Entries of a list that are shown whole."""

_USUAL = {"steps": ("budget", "steps"), "learning_rate": ("search", "learning_rate")}
"""Where [trajectory] takes from what it does not say."""


class Change(NamedTuple):
    """A key that two sweeps do not have in common.

    Attributes:
        key: As in the sweep file, with its table.
        old: What was asked.
        new: What is asked now.
        grows: Whether all that was asked is asked still, and in the same way.
        hint: What a reader could not know.
    """

    key: str
    old: Any
    new: Any
    grows: bool = False
    hint: str = ""

    def __str__(self) -> str:
        """Write it in one line."""
        old, new = _shown(self.old), _shown(self.new)
        if isinstance(self.old, list) and isinstance(self.new, list) and max(len(self.old), len(self.new)) > SHOWN:
            gone = [each for each in self.old if each not in self.new]
            apart = gone or [each for each in self.new if each not in self.old]
            detail = f", {'without' if gone else 'with'} {', '.join(map(_shown, apart[:SHOWN]))}" if apart else ""
            more = f" and {len(apart) - SHOWN} more" if len(apart) > SHOWN else ""
            old, new = f"{len(self.old)} values", f"{len(self.new)} values{detail}{more}"
        return f"{self.key}: {old} -> {new}" + (f" ({self.hint})" if self.hint else "")


def changes(old: Record, new: Record) -> list[Change]:
    """List the keys in which `Sweep.record` of a sweep differs from that of an earlier one."""
    old, new = _complete(old), _complete(new)
    search = [key for key in old["search"] if key not in ("etas", "tries")]
    # The rows that a budget draws are other rows under another one: the budget's key alone says so.
    drawn = all(old["budget"][key] == new["budget"][key] for key in ("train_examples", "eval_examples"))
    return [
        *_entries("models", old, new, _model, lambda entry: entry["name"], drawn=True),
        *_entries("tasks", old, new, _task, lambda entry: entry["name"], drawn),
        *_methods(old, new),
        *_seeds(old, new),
        *_dims("dims", old["dims"], new["dims"], any(_is_range(e) for dims, e in _arms(old) if not dims)),
        *_plain("", old, new, ("policy",)),
        *_plain("[threshold] ", old["threshold"], new["threshold"], old["threshold"]),
        *_steps("[search] etas", old["search"]["etas"], new["search"]["etas"]),
        *_tries(old["search"], new["search"]),
        *_plain("[search] ", old["search"], new["search"], search),
        *_steps("[baseline] learning_rates", *(each["baseline"]["learning_rates"] for each in (old, new))),
        *_plain("[budget] ", old["budget"], new["budget"], old["budget"]),
        *_trajectory(old, new),
    ]


def _complete(record: Record) -> Record:
    """Add the keys that a record from before there were such does not have: off."""
    return {**record, "tasks": [{"standardise": False, **task} for task in record["tasks"]]}


def _model(entry: Record) -> Any:
    return [entry["content"] or [entry["name"], entry["revision"]], entry["head_from"], entry.get("dtype")]


def _task(entry: Record) -> Any:
    asked = {key: value for key, value in entry.items() if key != "content"}
    decisive = ("name", "num_labels", "metric", "max_new_tokens", "stop", "answer", "standardise")
    return [entry["content"], *(entry.get(key) for key in decisive)] if entry["content"] else asked


def _method(entry: Record) -> Any:
    return {key: value for key, value in entry.items() if key not in ("dims", "etas")}


def _entries(
    table: str,
    old: Record,
    new: Record,
    identity: Callable[[Record], Any],
    called: Callable[[Record], str],
    drawn: bool,
) -> list[Change]:
    """Compare lists of tables: entry by entry where both have one of a name, else the names.

    `identity` tells an entry from others, `called` is its name; where `drawn`, another content is one that has changed.
    """
    was, now = ({_text(identity(entry)): entry for entry in each[table]} for each in (old, new))
    come, found, gone = [now[key] for key in now if key not in was], [], 0
    for entry in (was[key] for key in was if key not in now):
        other = next((each for each in come if called(each) == called(entry)), None)
        if other is None:
            gone += 1
            continue
        come.remove(other)
        name = f"[[{table}]] {called(entry)} "
        differing = _plain(name, entry, other, [key for key in entry if key not in ("content", "dims", "etas")])
        if not differing and drawn:
            before, after = (str(each["content"])[:12] for each in (entry, other))
            differing = [Change(f"{name}content", before, after)]
        found += [_hinted(change, entry, new) for change in differing]
    if gone or come:
        found.append(Change(table, *([called(entry) for entry in each[table]] for each in (old, new)), grows=not gone))
    return found


def _hinted(change: Change, entry: Record, new: Record) -> Change:
    """Say of what follows from other keys what keeps it as it was."""
    key = change.key.rpartition(" ")[2]
    if key == "sources" and change.old:
        return change._replace(hint=f"sources = {json.dumps(change.old)} keeps it")
    if key != "block_length" or not (change.old and change.new):
        return change
    if change.old >= max(entry["dims"] or new["dims"]):
        return change._replace(hint=f"it follows from the largest of dims; block_length = {change.old} keeps it")
    hint = f"it follows from the largest of dims; dims up to {change.old} keep it, larger ones are other trainings"
    return change._replace(hint=hint)


def _methods(old: Record, new: Record) -> list[Change]:
    """Compare methods, and the dims and etas of those that are in both."""
    found = _entries("methods", old, new, _method, lambda entry: entry["name"], drawn=False)
    now = {_text(_method(entry)): entry for entry in new["methods"]}
    for entry in old["methods"]:
        other = now.get(_text(_method(entry)))
        for key in ("dims", "etas") if other else ():
            usual = [each["dims"] if key == "dims" else each["search"]["etas"] for each in (old, new)]
            if other is not None and (entry[key], other[key]) != (None, None):
                name, values = f"[[methods]] {entry['name']} {key}", (entry[key] or usual[0], other[key] or usual[1])
                is_tried = _is_range(entry["etas"] or old["search"]["etas"])
                differing = _steps(name, *values) if key == "etas" else _dims(name, *values, is_tried)
                if key == "etas" and "peft" in entry and isinstance(values[0], list):
                    # Those of a method of PEFT are by default as many as [search] has, around a rate of its own.
                    hint = f"by default as many as [search] etas; etas = {json.dumps(values[0])} here keeps them"
                    differing = [each if each.grows else each._replace(hint=hint) for each in differing]
                found += differing
    return found


def _arms(record: Record) -> list[tuple[Any, Any]]:
    """List the methods' own dims, and the etas that count for them."""
    return [(each["dims"], each["etas"] or record["search"]["etas"]) for each in record["methods"]]


def _is_range(steps: Any) -> bool:
    return isinstance(steps, Mapping)


def _plain(table: str, old: Record, new: Record, keys: Iterable[str]) -> list[Change]:
    """Compare keys that have one value."""
    return [
        Change(f"{table}{key}", old.get(key), new.get(key))
        for key in keys
        if _text(old.get(key)) != _text(new.get(key))
    ]


def _values(key: str, old: Sequence[Any], new: Sequence[Any]) -> list[Change]:
    """Compare lists of which the order does not count: more is growth."""
    was, now = set(map(_text, old)), set(map(_text, new))
    return [Change(key, list(old), list(new), was <= now)] if was != now else []


def _steps(key: str, old: Any, new: Any) -> list[Change]:
    """Compare etas or learning rates: lists, or ranges, of which another one has other tries."""
    if not (_is_range(old) or _is_range(new)):
        return _values(key, old, new)
    hint = "what is tried in a range follows from all of it: give another --out"
    return [] if old == new else [Change(key, old, new, hint=hint)]


def _dims(key: str, old: Sequence[int], new: Sequence[int], is_tried: bool) -> list[Change]:
    """Compare grids; where the etas of a range are tried in the middle of one, that has to stay the middle."""
    found = _values(key, old, new)
    middles = [sorted(each)[len(each) // 2] for each in (old, new)]
    if is_tried and middles[0] != middles[1]:
        hint = f"etas are tried at the middle of dims, which was {middles[0]} and would be {middles[1]}"
        found = [each._replace(grows=False, hint=hint) for each in found]
    return found


def _seeds(old: Record, new: Record) -> list[Change]:
    """Compare seeds, written as a file does; where a range is tried, the first one has to stay the first."""
    # One number where all three are the same.
    was, now = (
        [each["projection"] if len(set(each.values())) == 1 else each for each in record["seeds"]]
        for record in (old, new)
    )
    ranges = [old["baseline"]["learning_rates"], *(etas for _, etas in _arms(old))]
    if any(map(_is_range, ranges)) and was[0] != now[0]:
        return [Change("seeds", was, now, hint=f"ranges are tried under the first seed: keep {_shown(was[0])} first")]
    return _values("seeds", was, now)


def _tries(old: Record, new: Record) -> list[Change]:
    """Compare how many etas a d is given: all of them, however many there are, or a number."""
    if _is_range(old["etas"]) or _is_range(new["etas"]):
        return []
    numbers = [each["tries"] or len(each["etas"]) for each in (old, new)]
    same = old["tries"] == new["tries"] or numbers[0] == numbers[1]
    return [] if same else [Change("[search] tries", old["tries"] or "all", new["tries"] or "all")]


def _trajectory(old: Record, new: Record) -> list[Change]:
    """Compare what is recorded, but for what [trajectory] takes from other tables, which is listed there."""
    was, now = old["trajectory"], new["trajectory"]
    asked = [bool(each and each["asked"]) for each in (was, now)]
    given = ["given" if each else "none" for each in asked]
    found = [Change("[trajectory]", given[0], given[1], grows=asked[1])] if asked[0] != asked[1] else []
    if was is None or now is None:  # nothing recorded before, or, with the methods that asked for it, no longer
        return found
    for change in _plain("[trajectory] ", was, now, [key for key in was if key != "asked"]):
        table, name = _USUAL.get(change.key.rpartition(" ")[2], ("", ""))
        if not table or (change.old, change.new) != (old[table][name], new[table][name]):
            found.append(change)
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping) and "tries" in value:  # a range, as a sweep file has it
        return f"{{ {', '.join(f'{key} = {each:g}' for key, each in value.items())} }}"
    return value if isinstance(value, str) else json.dumps(value)
