"""What a row that is read back must be like: everything of its record, of the type that the record says.

Rows lie where others can write too, and a d that is a text, or a number of 30 digits, would only fail much later, or be
computed with. The classes that pydantic checks against are made of the records themselves: a new field is checked too.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from distsub.records import IDENTITY_VERSION, Observation, Setup
from distsub.records.reading import first_error, parse, shown

_LARGEST = 2**63 - 1


def setup_record(text: str) -> Setup:
    """Parse a setup's canonical JSON and check all of it.

    Raises:
        ValueError: It is no setup; the message is one line.
    """
    try:
        record = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    version = record.pop("version")
    if version != IDENTITY_VERSION:
        raise ValueError(f"identity version {version}, this distsub makes version {IDENTITY_VERSION}")
    setup = parse(Setup, record)
    if not 0 < setup.learning_rate < math.inf:
        raise ValueError(f"learning_rate is {setup.learning_rate}, not a number above 0")
    return setup


def check_d_and_eta(d: Any, eta: Any) -> None:
    """Check the two numbers in which the trials of a search differ.

    Raises:
        ValueError: One of them is none that a trial can have.
    """
    if not (d is None or (type(d) is int and 0 <= d <= _LARGEST)):
        raise ValueError(f"d is {shown(d)}, not a whole number from 0 on")
    if not (eta is None or (type(eta) in (int, float) and 0 < eta < math.inf)):
        raise ValueError(f"eta is {shown(eta)}, not a number above 0")


def check_observation(values: Mapping[str, Any]) -> None:
    """Check what a row says of its trial; `values` are the fields of an observation but the trial.

    Raises:
        ValueError: A value is missing or of another type, or a trial with a result has no score; one line.
    """
    from pydantic import ValidationError

    try:
        _observation().model_validate(values)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    score = values["score"]
    if values["status"] == "finished" and (score is None or not math.isfinite(score)):
        raise ValueError(f"a finished trial with score {score}")


@cache
def _observation() -> Any:
    """Make a class that refuses what an observation does not have, and anything of another type."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(Observation)
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items() if name != "trial"}
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=True)
    return create_model("Observation", __config__=rules, **fields)


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > _LARGEST:
        raise ValueError(f"{shown(digits)} is more than a column of whole numbers holds")
    return int(digits)
