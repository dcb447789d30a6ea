"""What a reader of a score should know of its rows: nothing that is refused, and one line each."""

from collections import defaultdict

from distsub.data.dataset import Split, Splits

MANY = 12
"""Classes up to which all are named."""


def notes(splits: Splits) -> list[str]:
    """Say which class has which number, which have no rows, and which texts come more than once.

    Two texts (or pairs) are the same here if they differ in case and white space only.
    """
    found = [_classes(splits), _empty(splits), _repeats(splits)]
    return [f"{splits.task.name}: {line}" for line in found if line]


def repeated(split: Split) -> tuple[int, int]:
    """Count rows whose text an earlier row has, and different texts that have more than one label."""
    labels = defaultdict(set)
    for text, label in zip(_texts(split), split.labels, strict=True):
        labels[text].add(label)
    return len(split) - len(labels), sum(len(each) > 1 for each in labels.values())


def _texts(split: Split) -> list[tuple[str, ...]]:
    return [tuple(" ".join(text.casefold().split()) for text in row) for row in zip(*split.texts, strict=True)]


def _classes(splits: Splits) -> str:
    names = splits.task.labels
    if not names:
        return ""
    shown = ", ".join(f'{number} = "{name}"' for number, name in enumerate(names[:MANY]))
    folded = [name.casefold() for name in names]
    twins = [name for name in names if folded.count(name.casefold()) > 1]
    return f"{len(names)} classes, {shown}{', ...' if len(names) > MANY else ''}" + (
        f"; {' and '.join(twins[:2])} differ in case only" if twins else ""
    )


def _empty(splits: Splits) -> str:
    task = splits.task
    if task.num_labels in (0, 1):
        return ""
    missing = sorted(set(range(task.num_labels or 0)) - {int(label) for label in splits.train.labels})
    if not missing:
        return ""
    names = [task.labels[number] if task.labels else str(number) for number in missing]
    return f"of {task.num_labels} classes {len(missing)} have no training row: {', '.join(names[:MANY])}"


def _repeats(splits: Splits) -> str:
    train, contradictory = repeated(splits.train)
    known = set(_texts(splits.train))
    what = "several completions" if splits.task.is_completion else "contradictory labels"
    shared = sum(text in known for text in _texts(splits.validation))
    parts = [
        f"{shared} of {len(splits.validation)} texts to evaluate on are training texts too" if shared else "",
        f"{train} of {len(splits.train)} training texts repeat another" if train else "",
        f"{contradictory} training texts have {what}" if contradictory else "",
    ]
    text = "; ".join(part for part in parts if part)
    return f"{text} (case and white space aside)" if text else ""
