"""What a row that is read back must be like: everything of its record, of the type that the record says.

Rows lie where others can write too, and a d that is a text, or a number of 30 digits, would only fail much later, or be
computed with. The classes that pydantic checks against are made of the records themselves: a new field is checked too.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_type_hints

from distsub.places import addressed
from distsub.trial import Observation, Trial

_SCORED = ("finished",)
_LARGEST = 2**63 - 1


def trial_record(text: str) -> dict[str, Any]:
    """Parse a trial's canonical JSON and check all of it but the version.

    Raises:
        ValueError: It is no trial; the message is one line.
    """
    from pydantic import ValidationError

    try:
        record = addressed(json.loads(text, parse_int=_whole))
        _trial().model_validate_json(json.dumps(record))
        return record
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_d_and_eta(d: Any, eta: Any) -> None:
    """Check the two numbers in which the trials of a search differ.

    Raises:
        ValueError: One of them is none that a trial can have.
    """
    if not (d is None or (type(d) is int and 0 < d <= _LARGEST)):
        raise ValueError(f"d is {_shown(d)}, not a whole number from 1 on")
    if not (eta is None or (type(eta) in (int, float) and 0 < eta < math.inf)):
        raise ValueError(f"eta is {_shown(eta)}, not a number above 0")


def check_observation(values: Mapping[str, Any]) -> None:
    """Check what a row says of its trial; `values` are the fields of an observation but the trial.

    Raises:
        ValueError: A value is missing or of another type, or a trial with a result has no score; one line.
    """
    from pydantic import ValidationError

    try:
        _observation().model_validate(values)
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    score = values["score"]
    if values["status"] in _SCORED and (score is None or not math.isfinite(score)):
        raise ValueError(f"a {values['status']} trial with score {score}")


@cache
def _trial() -> Any:
    from pydantic import Field

    positive: Any = Annotated[float, Field(gt=0)]
    dimension: Any = Annotated[int, Field(gt=0)]
    own = {"d": dimension | None, "eta": positive | None, "learning_rate": positive}
    return _class_of(Trial, False, {"version": int, **own})


@cache
def _observation() -> Any:
    hints = get_type_hints(Observation)
    return _class_of(Observation, True, {name: hint for name, hint in hints.items() if name != "trial"})


def _class_of(record: type, is_nan_allowed: bool, required: Mapping[str, Any]) -> Any:
    """Make a class that refuses what a record does not have, and anything of another type; some fields are required."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(record)
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in required.items()}
    for field in dataclasses.fields(record):
        default = ... if field.default is dataclasses.MISSING else field.default
        fields.setdefault(field.name, (hints[field.name], default))
    if record is Observation:
        del fields["trial"]
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=is_nan_allowed)
    return create_model(record.__name__, __config__=rules, **fields)


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > _LARGEST:
        raise ValueError(f"{_shown(digits)} is more than a column of whole numbers holds")
    return int(digits)


def _first(error: Any) -> str:
    """Say the first thing that pydantic found: where, what was given, what is allowed."""
    found = error.errors(include_url=False)[0]
    where = ".".join(map(str, found["loc"]))
    what = found["msg"].replace("Input should", "should").replace("Field required", "is missing")
    given = "" if found["type"] in ("missing", "json_invalid") else f", got {_shown(found['input'])}"
    return f"{where} {what}{given}".strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
