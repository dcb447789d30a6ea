"""Every path in a results directory, as names below its root."""

SWEEP = "sweep.toml"
"""The sweep file as it was when it ran last."""

IDENTITY = "sweep.json"
"""Which sweep the directory is of, and where the contents of its models and tasks lie."""

ROWS, PARTS = "observations", "parts"
"""One Parquet file per trial, named after it; and files of many rows that were merged."""

LOCK = f"{ROWS}/.lock"

INPUTS = "inputs"
"""Copies of small data, by content."""

RESUME = "checkpoints"
"""Where unfinished trainings go on."""

TRAJECTORIES, ADAPTERS, MASKS, FIGURES, DRIVERS = "trajectories", "adapters", "masks", "figures", "drivers"


FITTED, FIT = "fitted", "fit.json"
"""The adapters that `distsub fit` chose to be taken away, and beside each how it was chosen."""


def adapter(trial_id: str) -> str:
    """Return the folder of a trial's adapter."""
    return f"{ADAPTERS}/{trial_id}"


def fit(trial_id: str) -> str:
    """Return the file that says how `distsub fit` chose a trial's adapter, and what it scored on unseen rows."""
    return f"{FITTED}/{trial_id}/{FIT}"


def asked(trial_id: str) -> str:
    """Return the file that says which trainings a `distsub fit` asked for that has not ended, by the first of them."""
    return f"{FITTED}/asked-{trial_id}/{FIT}"


def mask(name: str) -> str:
    """Return the file of a mask: the positions of the weights that an ablation edits."""
    return f"{MASKS}/{name}.safetensors"


def trajectory(recording_id: str) -> str:
    """Return the folder of a recorded full fine-tuning."""
    return f"{TRAJECTORIES}/{recording_id}"
