"""What is fine-tuned, on what, and what one training may spend."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distsub.records.identity import Record

Empty = Literal["refuse", "drop", "keep"]
HeadFrom = Literal["seed", "checkpoint"]
Dtype = Literal["float32", "bfloat16", "auto"]


def sign(metric: str) -> float:
    """Return 1, or -1 for a metric that is better when lower.

    Searches and estimates compute with sign * score, so that higher is always better; rows, tables and messages have
    the score as it is.
    """
    return -1.0 if metric == "nll" else 1.0


@dataclass(frozen=True, eq=False)
class Model(Record):
    """A pretrained model.

    Attributes:
        name: "package:NAME", an absolute local directory, or a hub id.
        revision: Hub revision, or None.
        head_from: Where the head of theta_0 comes from: its seed, or the checkpoint, which may solve the task already.
        dtype: Precision that theta_0 is held in; "auto" (the checkpoint's) becomes one of the others
            when the checkpoint is read.
        content: Hash of its weights, configuration and tokenizer (`Prepared.content`); None before they are read.
    """

    ADDRESS = frozenset({"name", "revision"})

    name: str
    revision: str | None = None
    head_from: HeadFrom = "seed"
    dtype: Dtype = "float32"
    content: str | None = None

    @property
    def left_out(self) -> frozenset[str]:
        """The fields that are no part of the identity; float32 goes without saying, as it did before there was more."""
        return super().left_out | ({"dtype"} if self.dtype == "float32" else set())

    @property
    def short_name(self) -> str:
        """The end of the address."""
        return self.name.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class Task(Record):
    """A labelled dataset, or prompts with completions, and its metric: where the rows are and which columns count.

    Attributes:
        name: The name that rows carry.
        source: A hub dataset id, a local directory or file, or "package:NAME/GLOB" for a file that an
            installed distribution carries.
        config: The hub configuration ("mrpc" of "nyu-mll/glue"), or None.
        revision: The hub revision, or None for the default branch.
        text: One column, or two for sentence pairs; of a completion task the prompts, or the messages of chats.
        label: The label column; of a completion task the completions, or the same column as `text` for messages.
        num_labels: Number of classes; 1 means regression, None that they are counted in the rows, 0 that there are
            none: a language model completes prompts.
        metric: accuracy, macro_f1, matthews, pearson or f1; nll or exact_match of completions; the score that d90 is
            about.
        train: Split (hub) or file stem (directory) to train on.
        validation: Split or file stem to evaluate on.
        where: Rows to keep, as (column, value) pairs; empty keeps all.
        holdout: Rows to split off `train` for evaluation when there is no validation split, or their share of all
            rows where it is a float; else None.
        labels: The classes in their order, as the label column spells them; empty sorts them by name.
        empty: What becomes of rows whose text is empty: "refuse", "drop" (and those without a label) or "keep".
        separator: What stands between the cells of CSV or TSV, or None to find it.
        quote: "double" if cells may stand in quotation marks, "none" if those are part of the text, or None to find it.
        encoding: Of text files: a codec of Python; None for the byte order mark's, else UTF-8.
        max_new_tokens: Most tokens that are generated for exact_match; None where nothing is generated.
        stop: Text before which a generated answer ends, or None.
        answer: Regular expression that finds the answer in a completion, generated or given: its first group, or all of
            it; None compares the whole.
        standardise: Whether a regression learns its targets less their mean, in units of their standard deviation, both
            of the rows that are trained on; predictions and scores are of the targets as they are.
        content: Hash of the rows that the budget draws from it (`Splits.dataset_hash`); None before they are read.
    """

    ADDRESS = frozenset(
        {"source", "config", "revision", "text", "label", "train", "validation", "where", "holdout"}
        | {"labels", "empty", "separator", "quote", "encoding"}
    )

    name: str
    source: str
    text: tuple[str, ...]
    label: str = "label"
    num_labels: int | None = 2
    metric: str = "accuracy"
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    validation: str | None = "validation"
    where: tuple[tuple[str, str], ...] = ()
    holdout: int | float | None = None
    labels: tuple[str, ...] = ()
    empty: Empty = "refuse"
    separator: str | None = None
    quote: Literal["double", "none"] | None = None
    encoding: str | None = None
    max_new_tokens: int | None = None
    stop: str | None = None
    answer: str | None = None
    standardise: bool = False
    content: str | None = None

    @property
    def left_out(self) -> frozenset[str]:
        """The fields that are no part of the identity; targets as they are go without saying, as in earlier rows."""
        return super().left_out | (set() if self.standardise else {"standardise"})

    @property
    def is_completion(self) -> bool:
        """Whether a language model completes prompts, rather than a head telling classes or values."""
        return self.num_labels == 0

    @property
    def is_chat(self) -> bool:
        """Whether prompts and completions are made of messages by the tokenizer's chat template."""
        return self.is_completion and self.text == (self.label,)


@dataclass(frozen=True)
class Budget:
    """What one training may spend, the same for every trial of a sweep.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples per step.
        max_length: Tokens per example, longer ones are cut.
        train_examples: Training rows, a fixed draw that is the same for every seed; None takes all.
        eval_examples: Evaluation rows, a fixed draw; None takes all.
        warmup: Fraction of the steps over which the learning rate rises; it then falls linearly towards 0.
        eval_every: Steps between evaluations; None evaluates at the end only.
        weight_decay: AdamW weight decay of full fine-tuning and of a trained head, never of coordinates.
        max_grad_norm: Gradient clipping; None is off.
        precision: "fp32", "bf16" (autocast) or "auto" (bf16 where the hardware has it).
    """

    steps: int
    batch_size: int = 32
    max_length: int = 128
    train_examples: int | None = None
    eval_examples: int | None = None
    warmup: float = 0.06
    eval_every: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    precision: Literal["fp32", "bf16", "auto"] = "auto"


@dataclass(frozen=True)
class TrainedOn:
    """What an adapter's model reads and writes: of the task and the budget of its training what its use depends on.

    Attributes:
        text: The columns that it reads, as in `Task`.
        label: The column that it learned.
        metric: Its score.
        labels: The classes as that column spells them; empty where they are the class numbers, or there are none.
        empty: What became of rows whose text is empty.
        max_length: Tokens per example.
        precision: "fp32" or "bf16", in which it was scored.
        max_new_tokens: Most tokens of a generated answer, or None.
        stop: Text before which one ends, or None.
        answer: Regular expression that finds the answer in it, or None.
        scale: Mean and standard deviation of the targets, where the model gives standardised values; else None.
    """

    _SAME: ClassVar = ("text", "label", "metric", "labels", "empty", "max_new_tokens", "stop", "answer")

    text: tuple[str, ...]
    label: str
    metric: str
    labels: tuple[str, ...]
    empty: Empty
    max_length: int
    precision: Literal["fp32", "bf16"]
    max_new_tokens: int | None = None
    stop: str | None = None
    answer: str | None = None
    scale: tuple[float, float] | None = None

    @classmethod
    def of(cls, task: Task, budget: Budget, precision: str, scale: tuple[float, float] | None = None) -> "TrainedOn":
        """Take it from a task whose labels are counted, and the precision and scale that were found for it."""
        found: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
        same = {name: getattr(task, name) for name in cls._SAME}
        return cls(max_length=budget.max_length, precision=found, scale=scale, **same)

    def task(self, name: str, num_labels: int) -> Task:
        """Give the task back, without the place of its rows."""
        return Task(name, source="", num_labels=num_labels, **{each: getattr(self, each) for each in self._SAME})


@dataclass(frozen=True)
class Seeds:
    """The three independent sources of noise, never one `seed`."""

    projection: int = 0
    head: int = 0
    data: int = 0

    @property
    def text(self) -> str:
        """One number where all three are the same, else all, as in 1.2.3."""
        every = (self.projection, self.head, self.data)
        return str(every[0]) if len(set(every)) == 1 else ".".join(map(str, every))
