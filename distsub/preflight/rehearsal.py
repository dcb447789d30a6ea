"""One real training step of every model, task and method, on the rows most likely to fail, before anything is spent."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from distsub.data.dataset import Split, Splits
from distsub.errors import ConfigError, DataError, DistsubError, OutOfMemoryError, first_line
from distsub.finetune import batches, building, memory
from distsub.finetune.objective import objective
from distsub.finetune.precision import autocast_for
from distsub.finetune.tokens import Tokens
from distsub.models import pretrained
from distsub.models.pretrained import Prepared
from distsub.preflight.settings import SETTINGS
from distsub.records import Budget, Random, Subspace, Task, Trial, label


@dataclass(frozen=True)
class Rows:
    """A task's rows as a model reads them.

    Attributes:
        name: Of the model and the task, for messages.
        examples: Tokens of the training rows, then of the validation rows.
        labels: Of the same rows.
        places: Split and number of each row, from 1.
    """

    name: str
    examples: Tokens
    labels: list[float]
    places: list[tuple[str, int]]

    @cached_property
    def lengths(self) -> list[int]:
        """The tokens of each row."""
        return self.examples.lengths("input_ids")

    def listed(self, rows: list[int]) -> str:
        """Say how many rows are meant, and which is the first."""
        split, number = self.places[rows[0]]
        return f"{len(rows)} of {len(self.examples)} rows, first row {number} of {split}"


def probes(lengths: list[int]) -> list[int]:
    """Choose the shortest, an ordinary and the longest row, each once."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return list(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))


def rehearse(trials: Iterable[Trial], splits: Splits, device: str, say: Callable[[str], None] | None = None) -> None:
    """Train a step of each trial, at its largest d; all are of one model and task.

    What is tried: that the tokens fit the model, that the logits of a text do not depend on its batch, and for each
    trial a step (forward, backward, optimizer) in the precision of the budget, with finite logits before and after it
    and a gradient that reaches what is trained. It costs two passes of three rows, and a step per trial.

    Raises:
        DistsubError: What would fail or give a wrong number later, and how to fix it.
    """
    first, *others = trials
    prepared, tokenizer, name = opened(first)
    _check_room(tokenizer, first, name)
    rows = read(tokenizer, splits, first.budget, name, prepared.content)
    _check_tokens(rows, tokenizer, first)
    if say and (line := _joined(tokenizer, splits.train, name)):
        say(f"note: {line}")
    labels, head_from = splits.task.num_labels or 0, first.model.head_from
    model = pretrained.build(prepared, labels, first.seeds.head, head_from=head_from).to(device).eval()
    with one_line(name, "a forward pass"):
        _check_names(splits, model, head_from, name)
        _check_ids(rows, tokenizer, model, first)
        _check_batches(rows, tokenizer, model, first.budget, device)
    del model
    steps((first, *others), splits.task, prepared, name, _batch(rows, tokenizer, splits), device)


def opened(trial: Trial) -> tuple[Prepared, Any, str]:
    """Give what a rehearsal begins with: the model's files, its tokenizer, and what messages call model and task."""
    prepared = pretrained.prepare(trial.model.name, trial.model.revision, trial.model.dtype)
    return prepared, pretrained.tokenizer(prepared), f"{trial.model.name} on {trial.task.name}"


def read(tokenizer: Any, splits: Splits, budget: Budget, name: str, content: str) -> Rows:
    """Tokenize a task's rows, as the trials will find them.

    Raises:
        DataError: A row has no tokens at all.
    """
    parts = {"train": splits.train, "validation": splits.validation}
    examples = [
        objective(tokenizer, splits.task, part, budget.max_length, None, [content, splits.dataset_hash, key]).examples
        for key, part in parts.items()
    ]
    labels = [float(label) for part in parts.values() for label in part.labels]
    places = [(key, number) for key, part in parts.items() for number in range(1, len(part) + 1)]
    return Rows(name, Tokens.joined(examples), labels, places)


def _check_room(tokenizer: Any, trial: Trial, name: str) -> None:
    """Refuse a length of which the special tokens leave nothing for a text."""
    texts, length = len(trial.task.text), trial.budget.max_length
    marks = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if length < marks + texts:
        what = "a text" if texts == 1 else "each of two texts"
        raise ConfigError(
            f"[budget] max_length = {length} leaves no room for a word of {what}: {name} adds {marks} special tokens; "
            f"give at least {marks + texts}"
        )


def _check_tokens(rows: Rows, tokenizer: Any, trial: Trial) -> None:
    """Refuse rows of which nothing is left but special tokens, unless the task keeps empty texts."""
    marks = tokenizer.num_special_tokens_to_add(pair=len(trial.task.text) == 2)
    least = 1 if trial.task.empty == "keep" else marks + 1
    if blank := [row for row in range(len(rows.examples)) if rows.lengths[row] < least]:
        raise DataError(
            f"{rows.name}: the tokenizer makes no token of the text in {rows.listed(blank)}; remove such rows, or give "
            "the task the columns that hold text"
        )


def _check_ids(rows: Rows, tokenizer: Any, model: Any, trial: Trial) -> None:
    """Refuse numbers that the model's tables do not have, and texts that an encoder-decoder cannot pool."""
    with contextlib.suppress(NotImplementedError):  # CANINE has no table of tokens
        size, padding = model.get_input_embeddings().num_embeddings, tokenizer.pad_token_id
        most = max(padding, max(max(example["input_ids"]) for example in rows.examples))
        if most >= size:
            beyond = [row for row, each in enumerate(rows.examples) if max(each["input_ids"]) >= size]
            where = f"in {rows.listed(beyond)}" if beyond else f"for padding, {tokenizer.pad_token!r}"
            raise ConfigError(
                f"{rows.name}: the tokenizer gives ids up to {most} ({where}), the embedding has {size} rows; the "
                "tokenizer is not this model's, or tokens were added to it and not to the model"
            )
    kinds = getattr(model.config, "type_vocab_size", None)
    if kinds and max(max(each.get("token_type_ids") or [0]) for each in rows.examples) >= kinds:
        raise ConfigError(
            f"{rows.name}: the tokenizer gives other token types than the model's 0..{kinds - 1}; leave token_type_ids "
            "out of model_input_names in tokenizer_config.json"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        end = model.config.eos_token_id
        counts = [example["input_ids"].count(end) for example in rows.examples]
        usual = Counter(counts).most_common(1)[0][0]
        if usual == 0 or end == tokenizer.pad_token_id:
            raise ConfigError(
                f"{rows.name}: the model reads its answer at the end of sequence (id {end} in config.json), which the "
                "tokenizer does not put behind a text, or also pads with; give the tokenizer that belongs to the model"
            )
        if odd := [row for row, count in enumerate(counts) if count != usual]:
            raise DataError(
                f"{rows.name}: the text holds the end of sequence {tokenizer.convert_ids_to_tokens(end)!r} itself in "
                f"{rows.listed(odd)}; the model pools there, so remove it from the text"
            )


def _check_names(splits: Splits, model: Any, head_from: str, name: str) -> None:
    """Refuse a checkpoint's head that has the task's classes in another order."""
    if head_from == "checkpoint" and splits.task.labels:
        theirs = [str(model.config.id2label[number]).casefold() for number in range(model.config.num_labels)]
        ours = [label.casefold() for label in splits.task.labels]
        if sorted(theirs) == sorted(ours) and theirs != ours:
            raise ConfigError(
                f'{name}: head_from = "checkpoint", whose head has the classes in another order; give the task '
                f"labels = {[splits.task.labels[ours.index(label)] for label in theirs]}"
            )


def _check_batches(rows: Rows, tokenizer: Any, model: nn.Module, budget: Budget, device: str) -> None:
    """Refuse a model whose logits of a text depend on what stands beside it."""
    chosen_rows = probes(rows.lengths)

    @torch.no_grad()
    def logits(chosen: list[int]) -> torch.Tensor:
        batch = batches.collate(tokenizer, rows.examples, chosen)
        return model(**{key: value.to(device) for key, value in batch.items()}).logits.float()

    try:
        alone = torch.cat([logits([row]) for row in chosen_rows])
    except (IndexError, RuntimeError) as error:
        longest, positions = rows.lengths[chosen_rows[-1]], getattr(model.config, "max_position_embeddings", None)
        if memory.is_shortage(error) or positions is None or longest < positions - 2:
            raise
        raise ConfigError(
            f"[budget] max_length = {budget.max_length}: a row of {longest} tokens is more than {rows.name} has "
            f"positions for (max_position_embeddings = {positions}, of which some models reserve two); lower it"
        ) from None
    if not alone.isfinite().all():
        raise ConfigError(f"{rows.name}: the logits of the untrained model are not finite; its weights are damaged")
    for together in (logits(chosen_rows), logits(chosen_rows[::-1]).flip(0)):
        refuse_visible_padding(together, alone, model, rows.name, "the logits of a text differ")


def refuse_visible_padding(together: torch.Tensor, alone: torch.Tensor, model: Any, name: str, what: str) -> None:
    """Refuse a model that gives rows other numbers in a batch than alone, beyond its precision."""
    apart = (together - alone).abs().max().item()
    is_rounded = next(model.parameters()).dtype == torch.bfloat16
    relative = SETTINGS.rounded if is_rounded else SETTINGS.relative
    if apart > SETTINGS.absolute + relative * alone.abs().max().item():
        raise ConfigError(
            f"{name}: {what} by {apart:.1g} between alone and beside a longer one, so that scores would depend on "
            f"batches: {type(model).__name__} does not hide padding; use another model"
        )


def _batch(rows: Rows, tokenizer: Any, splits: Splits) -> dict[str, torch.Tensor]:
    """Make a batch of the probes, with their labels."""
    chosen = probes(rows.lengths)
    labels = torch.tensor([rows.labels[row] for row in chosen])
    labels = labels if splits.task.num_labels == 1 else labels.long()
    return batches.collate(tokenizer, rows.examples, chosen) | {"labels": labels}


def _loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def steps(
    trials: Iterable[Trial],
    task: Task,
    prepared: Prepared,
    name: str,
    batch: dict[str, torch.Tensor],
    device: str,
    loss_of: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] = _loss_of,
) -> None:
    """Train one step of each trial on a task whose labels are counted.

    Raises:
        DistsubError: One fails, or what it trains has no gradient; in one line that names it.
    """
    for trial in trials:
        with one_line(name, f"a step of {label(trial.method)}"):
            _step(without_checkpoints(trial.vary(task=task)), prepared, batch, device, loss_of)


def _step(
    trial: Trial,
    prepared: Prepared,
    batch: dict[str, torch.Tensor],
    device: str,
    loss_of: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
) -> None:
    """Train one step as the trial would, and evaluate; refuse a loss that is not finite, or has no gradient."""
    model, record = building.build_model(trial, prepared, device)
    optimizer = building.build_optimizer(trial, model, record["step_size"])
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _, autocast = autocast_for(trial.budget.precision, device, trial.model.dtype)
    batch = {key: value.to(device) for key, value in batch.items()}
    with autocast():
        loss = loss_of(model.train(), batch)
    if not loss.isfinite():
        raise ConfigError(f"the loss is {loss.item()} in {trial.budget.precision}; its weights are too large for it")
    loss.backward()
    if not any(parameter.grad is not None and parameter.grad.any() for parameter in trained):
        raise ConfigError("no gradient reaches what it trains; the model takes its answer from elsewhere")
    optimizer.step()
    with torch.no_grad(), autocast():
        loss_of(model.eval(), batch)


def _joined(tokenizer: Any, split: Split, name: str) -> str:
    """Say that a tokenizer puts two texts together so that the end of the first is lost."""
    if len(split.texts) < 2:
        return ""
    pair = tokenizer(split.texts[0][0], split.texts[1][0])
    first, second = (tokenizer(column[0], add_special_tokens=False)["input_ids"] for column in split.texts)
    ids, both = pair["input_ids"], first + second
    touching = any(ids[start : start + len(both)] == both for start in range(len(ids) - len(both) + 1))
    if not touching or len(set(pair.get("token_type_ids") or [0])) > 1:
        return ""
    return (
        f"{name}: the tokenizer joins the two texts without a separator, so that the model cannot tell where the first "
        "ends; give one column that holds both with a separator, or a tokenizer whose post-processor separates pairs"
    )


def without_checkpoints(trial: Trial) -> Trial:
    """Let a random subspace of the same layers stand for one whose checkpoints may not be there yet."""
    if not isinstance(trial.method, Subspace) or trial.span is None:
        return trial
    projection = trial.method.projection
    plain = replace(projection, match=None) if isinstance(projection, Random) else Random()
    return trial.vary(method=replace(trial.method, projection=plain))


@contextlib.contextmanager
def one_line(name: str, what: str) -> Any:
    """Turn whatever a model's own code raises into one line."""
    try:
        yield
    except DistsubError as error:
        if isinstance(error, ConfigError) and name not in str(error):
            raise ConfigError(f"{name}: {what}: {error}") from None
        raise
    except Exception as error:  # as many types as architectures
        if memory.is_shortage(error):
            raise OutOfMemoryError(
                f"{name}: {what} of three rows takes more memory than there is here: lower [budget] max_length, or "
                f"run where there is more ({first_line(error)})"
            ) from None
        lines = str(error).strip().splitlines() or ["no message"]
        raise ConfigError(f"{name}: {what} fails: {type(error).__name__}: {lines[0]}") from None
