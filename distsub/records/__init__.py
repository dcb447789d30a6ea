"""What is spoken of: frozen records without behaviour but their identity.

`Condition` < `Setup` < `Trial` say what is trained, `Observation` what came out of it.
"""

from distsub.records.identity import IDENTITY_VERSION, Record, canonical, digest
from distsub.records.labels import condition_labels, method_labels, model_labels
from distsub.records.method import (
    DEFAULT_FAMILY,
    PEFT_STEPS,
    ZHANG2023,
    Ablation,
    Edit,
    Freeze,
    Full,
    Imported,
    Learned,
    Method,
    Peft,
    Random,
    Role,
    Searched,
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
from distsub.records.task import Budget, Dtype, Empty, HeadFrom, Model, Seeds, Task, TrainedOn, sign
