"""What is spoken of: frozen records without behaviour but their identity.

`Condition` < `Setup` < `Trial` say what is trained, `Observation` what came out of it.
"""

from distsub.records.identity import IDENTITY_VERSION, Record, canonical, digest
from distsub.records.labels import condition_labels, method_labels, model_labels
from distsub.records.method import (
    DEFAULT_FAMILY,
    ZHANG2023,
    Ablation,
    Edit,
    Freeze,
    Full,
    Imported,
    Learned,
    Method,
    Random,
    Role,
    Source,
    Span,
    Subspace,
    Theta0,
    imported,
    label,
    modules_pattern,
    on,
)
from distsub.records.observation import TRUST, Observation, Status, is_final
from distsub.records.setup import Condition, InSetup, Recording, Setup, Trial, id_of, theta_0_of
from distsub.records.task import Budget, Empty, HeadFrom, Model, Seeds, Task

__all__ = [
    "DEFAULT_FAMILY",
    "IDENTITY_VERSION",
    "TRUST",
    "ZHANG2023",
    "Ablation",
    "Budget",
    "Condition",
    "Edit",
    "Empty",
    "Freeze",
    "Full",
    "HeadFrom",
    "Imported",
    "InSetup",
    "Learned",
    "Method",
    "Model",
    "Observation",
    "Random",
    "Record",
    "Recording",
    "Role",
    "Seeds",
    "Setup",
    "Source",
    "Span",
    "Status",
    "Subspace",
    "Task",
    "Theta0",
    "Trial",
    "canonical",
    "condition_labels",
    "digest",
    "id_of",
    "imported",
    "is_final",
    "label",
    "method_labels",
    "model_labels",
    "modules_pattern",
    "on",
    "theta_0_of",
]
