"""Names for people that tell records apart: as short as will do."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from distsub.records.identity import canonical
from distsub.records.method import Method, label
from distsub.records.setup import Condition
from distsub.records.task import Model

Named = TypeVar("Named", bound=Hashable)


def method_labels(methods: Iterable[Method]) -> dict[Method, str]:
    """Name methods, each by its own name: those of one label by settings in which they differ.

    >>> from distsub.records import Random, Subspace
    >>> list(method_labels([Subspace(), Subspace(Random("dense")), Subspace(scales="layer")]).values())
    ['did partition', 'did dense', 'said']
    """
    return apart({method: label(method) for method in methods}, _options)


def model_labels(models: Iterable[Model]) -> dict[Model, str]:
    """Name models by the end of their address, or all of it; those at one address by revision and head."""
    short = {model: model.short_name for model in models}
    addresses: dict[str, set[str]] = {}
    for model, name in short.items():
        addresses.setdefault(name, set()).add(model.name)
    names = {model: name if len(addresses[name]) == 1 else model.name for model, name in short.items()}

    def options(model: Model) -> tuple[str, ...]:
        return (*([f"@{model.revision}"] if model.revision else []), model.head_from, model.dtype)

    return apart(names, options)


def condition_labels(conditions: Iterable[Condition]) -> dict[Condition, str]:
    """Name the conditions of one task by their methods, and their models where those have one address."""
    every = list(dict.fromkeys(conditions))
    methods, models = method_labels(each.method for each in every), model_labels(each.model for each in every)
    shared: dict[str, set[Model]] = {}
    for each in every:
        shared.setdefault(each.model.name, set()).add(each.model)
    return {
        each: methods[each.method] + (f", {models[each.model]}" if len(shared[each.model.name]) > 1 else "")
        for each in every
    }


def apart(names: Mapping[Named, str], options: Callable[[Named], tuple[str, ...]] = lambda key: ()) -> dict[Named, str]:
    """Add to names that are alike options in which they differ, as few as will do, or else a number."""
    groups: dict[str, list[Named]] = {}
    for key, name in names.items():
        groups.setdefault(name, []).append(key)
    made: dict[Named, str] = {}
    for name, keys in groups.items():
        given = [options(key) for key in keys]
        common = set(given[0]).intersection(*given)
        own = [[each for each in one if each not in common] for one in given]
        texts, number = [name] * len(keys), 0
        while len(set(texts)) < len(keys) and number < max(map(len, own)):
            number += 1
            texts = [" ".join([name, *each[:number]]) for each in own]
        for index, (key, text) in enumerate(zip(keys, texts, strict=True)):
            made[key] = text if texts.index(text) == index else f"{text} #{texts[: index + 1].count(text)}"
    return {key: made[key] for key in names}


def _options(method: Method) -> tuple[str, ...]:
    """List a method's own settings, those that are words first."""
    given = list(_leaves("", canonical(method)))
    words = [value for _, value in given if isinstance(value, str)]
    return (*words, *(f"{name}={value:g}" for name, value in given if isinstance(value, int | float)))


def _leaves(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """List the plain values of a record with their keys; a setting of full fine-tuning behind a span too."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(key, each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(name, each)
    elif value is not None:
        yield name, value
