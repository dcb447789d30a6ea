"""distsub: how few numbers does it take to fine-tune this pretrained model on this task?

The public names are loaded when they are first used, so that importing distsub stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distsub.adapters.loading import load_adapter
    from distsub.adapters.predictor import Predictor, load
    from distsub.api import Results, measure, open
    from distsub.config import load_sweep
    from distsub.errors import DistsubError
    from distsub.estimate.arrays import d90
    from distsub.estimate.interval import Estimate
    from distsub.finetune.train import train
    from distsub.records import (
        Budget,
        Freeze,
        Full,
        Learned,
        Model,
        Observation,
        Peft,
        Random,
        Seeds,
        Setup,
        Subspace,
        Task,
        Trial,
    )
    from distsub.results import Store
    from distsub.subspace.model import SubspaceModel

__version__ = "0.1.0"

_HOME = {
    "Budget": "distsub.records",
    "DistsubError": "distsub.errors",
    "Estimate": "distsub.estimate.interval",
    "Freeze": "distsub.records",
    "Full": "distsub.records",
    "Learned": "distsub.records",
    "Model": "distsub.records",
    "Observation": "distsub.records",
    "Peft": "distsub.records",
    "Predictor": "distsub.adapters.predictor",
    "Random": "distsub.records",
    "Results": "distsub.api",
    "Seeds": "distsub.records",
    "Setup": "distsub.records",
    "Store": "distsub.results",
    "Subspace": "distsub.records",
    "SubspaceModel": "distsub.subspace.model",
    "Task": "distsub.records",
    "Trial": "distsub.records",
    "d90": "distsub.estimate.arrays",
    "load": "distsub.adapters.predictor",
    "load_adapter": "distsub.adapters.loading",
    "load_sweep": "distsub.config",
    "measure": "distsub.api",
    "open": "distsub.api",
    "train": "distsub.finetune.train",
}

__all__ = [  # noqa: RUF022 (the version last)
    "Budget",
    "DistsubError",
    "Estimate",
    "Freeze",
    "Full",
    "Learned",
    "Model",
    "Observation",
    "Peft",
    "Predictor",
    "Random",
    "Results",
    "Seeds",
    "Setup",
    "Store",
    "Subspace",
    "SubspaceModel",
    "Task",
    "Trial",
    "d90",
    "load",
    "load_adapter",
    "load_sweep",
    "measure",
    "open",
    "train",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOME:
        raise AttributeError(f"module 'distsub' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
