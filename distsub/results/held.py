"""sweep.json and sweep.toml: which sweep a results directory is of, which it was of before, where their contents lie.

sweep.json has all that is read again; sweep.toml is the same text for people, and to run from.

The sweep of a directory may grow, never change: every sweep that it has held is contained in the one that it holds now,
so whatever ran before, and still runs elsewhere, asks for trials that the present one asks for too.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from distsub.errors import OutputError
from distsub.files import Files, parse_json
from distsub.paths import IDENTITY, SWEEP
from distsub.records.places import Places
from distsub.results.growth import changes
from distsub.results.schema import SCHEMA_VERSION

_SETTLED = 5  # times that another driver may come between, where there are no locks


def entry(
    text: str, fingerprint: str, directory: str, places: Places, record: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Write what sweep.json says of a sweep that is the first of its directory; arguments as of `Store.create`."""
    held = {
        "fingerprint": fingerprint,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "distsub_version": _version(),
        "directory": directory,
        "text": text,
    }
    return {
        "fingerprint": fingerprint,
        "schema_version": SCHEMA_VERSION,
        "distsub_version": _version(),
        "directory": directory,
        "places": places.to_json(),
        "sweep": record,
        "held": [held],
    }


def encode(identity: Mapping[str, Any]) -> bytes:
    """Write sweep.json."""
    return json.dumps(identity, indent=1).encode()


def read(files: Files) -> dict[str, Any]:
    """Read what says which sweep a directory belongs to, with "places" as such and "text", "" where it has none.

    Raises:
        OutputError: It is damaged, foreign, or of a newer distsub.
    """
    try:
        found = parse_json(files.read(IDENTITY))
        kinds = ((type(found["schema_version"]), int), (type(found.get("held", [])), list))
        text = found["held"][-1]["text"] if found.get("held") else ""
        texts = [found["fingerprint"], found.get("directory", "."), found.get("distsub_version", ""), text]
        if not all(isinstance(each, str) for each in texts) or any(kind is not right for kind, right in kinds):
            raise ValueError
        found |= {"places": Places.from_json(found.get("places", {})), "text": text}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _damaged(files) from None
    if found["schema_version"] > SCHEMA_VERSION:
        raise OutputError(
            f"{files.uri} has rows of schema version {found['schema_version']}, this distsub reads up to "
            f"{SCHEMA_VERSION}; upgrade distsub to {found.get('distsub_version', 'a newer version')} or later"
        )
    return found


class Refused(OutputError):
    """A directory's sweep is another one; `of_content` tells that nothing differs but what is read."""

    of_content = False


def take_up(files: Files, mine: Mapping[str, Any]) -> str:
    """Make a sweep that of its directory, unless it asks for less than that one, or otherwise.

    Args:
        files: The directory.
        mine: From `entry`.

    Returns:
        What a reader should know: that the sweep has grown, or that the directory's is wider. Else nothing.

    Raises:
        Refused: It is another sweep.
        OSError: It cannot be read or written.
    """
    text, said = mine["held"][0]["text"], ""
    for _ in range(_SETTLED):
        found = read(files)
        if found["fingerprint"] == mine["fingerprint"]:
            held = [*found.get("held", mine["held"])]
            held[-1:] = [{**held[-1], "text": text}] if held else mine["held"]  # a lost or damaged text heals
        else:
            wider, said = _compared(files, found, mine)
            if not wider:
                return said
            held = [*found.get("held", ()), *mine["held"]]
        # The sweep may be the same and lie elsewhere: paths in the sweep file are from now on those of this run.
        now, before = {**mine, "held": held}, {**found, "places": found["places"].to_json()}
        same = ("fingerprint", "directory", "places", "sweep", "held")
        if any(now[key] != before.get(key) for key in same):
            files.put(IDENTITY, encode(now))
            if not files.is_local and read(files)["fingerprint"] != mine["fingerprint"]:
                continue  # without locks another driver may have read what this one read, and have written since
        if not files.exists(SWEEP) or files.read(SWEEP) != text.encode():
            files.put(SWEEP, text.encode())
        return said
    raise OutputError(f"{files.uri}: other drivers give it other sweeps all the time; run the same command again")


def _compared(files: Files, found: Mapping[str, Any], mine: Mapping[str, Any]) -> tuple[bool, str]:
    """Tell whether a sweep is wider than the directory's, and say how they differ.

    Raises:
        Refused: It is neither wider nor narrower.
    """
    old, new = found.get("sweep"), mine["sweep"]
    if not old or not new:
        error = Refused(
            f"{files.uri} belongs to another sweep (fingerprint {found['fingerprint']}, this sweep has "
            f"{mine['fingerprint']}); give another directory with --out, or run the sweep kept in {files.uri}/{SWEEP}"
        )
        error.of_content = True  # as far as can be told
        raise error
    try:
        differing, back = changes(old, new), changes(new, old)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise _damaged(files) from None
    refused = [change for change in differing if not change.grows]
    listed = "; ".join(dict.fromkeys(map(str, differing)))
    if not refused:
        return True, f"{files.uri} goes on with a wider sweep: {listed}" if listed else ""
    if all(change.grows for change in back):
        return False, (
            f"{files.uri} holds a wider sweep than this one ({listed}): this one runs, but status and report "
            "show the wider"
        )
    error = Refused(
        f"{files.uri} holds another sweep: {'; '.join(dict.fromkeys(map(str, refused)))}. A sweep may grow by models, "
        f"tasks, methods, seeds, dims, etas and learning rates of the baseline, not change: put back what it was "
        f"({files.uri}/{SWEEP}), or give another directory with --out"
    )
    error.of_content = all(change.key.endswith((" content", " trajectory")) for change in refused)
    raise error


def _damaged(files: Files) -> OutputError:
    return OutputError(
        f"{files.uri}/{IDENTITY} is damaged or foreign; give another directory with --out, or restore that file"
    )


def _version() -> str:
    try:
        return metadata.version("distsub")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
