"""Records read back from their canonical JSON, every field checked against the type that the record gives it."""

import json
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def parse(kind: type[T], values: Any) -> T:
    """Rebuild a record from its canonical values.

    A record identified by its content has no addresses there, and gets the content in their place.

    Raises:
        ValueError: They are not all of the record's fields, or one is of another type; one line.
    """
    from pydantic import ValidationError

    try:
        return _wrapper(kind).model_validate_json(json.dumps({"record": addressed(values)})).record
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def addressed(record: Any) -> Any:
    """Give canonical JSON, which names contents and no addresses, its contents as the addresses that it lacks."""
    if isinstance(record, list):
        return [addressed(each) for each in record]
    if not isinstance(record, dict):
        return record
    lacking = {}
    if record.get("content"):
        address = f"sha256:{record['content']}"
        lacking = {"name": address} if "head_from" in record else {"source": address, "text": []}
        lacking = {"path": address} if record.get("kind") == "imported" else lacking
    return lacking | {key: addressed(value) for key, value in record.items()}


def first_error(error: Any) -> str:
    """Say the first thing that pydantic found: where, what was given, what is allowed."""
    errors = error.errors(include_url=False)
    others = [each["loc"][:-1] for each in errors if each["loc"][-1:] == ("kind",)]  # members of a sum it is not
    own = [each for each in errors if not any(each["loc"][: len(other)] == other for other in others)]
    found = (own or errors)[0]
    where = ".".join(str(part) for part in found["loc"] if part != "record")
    what = found["msg"].replace("Input should", "should").replace("Field required", "is missing")
    what = what.replace("Unexpected keyword argument", "is no such field")
    given = "" if found["type"] in ("missing", "json_invalid") else f", got {shown(found['input'])}"
    return f"{where} {what}{given}".strip()


def shown(value: Any) -> str:
    """Show a value in a message, in 40 characters at most."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@cache
def _wrapper(kind: type) -> Any:
    """Make a class whose rules hold in everything below it, as those of a plain dataclass cannot be given."""
    from pydantic import ConfigDict, create_model

    fields: dict[str, Any] = {"record": (kind, ...)}
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model(kind.__name__, __config__=rules, **fields)
