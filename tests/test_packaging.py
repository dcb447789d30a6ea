"""The dependencies that are promised are the ones that the tests run."""

import contextlib
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


def _name(text):
    return re.sub(r"[-_.]+", "-", text).lower()


PINS = {
    _name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]


@pytest.mark.parametrize("requirement", ASKED)
def test_a_lower_bound_is_what_the_tests_run(requirement):
    name, bound = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(?:[>=]=([\d.]+))?", requirement).groups()
    assert _name(name) in PINS and bound, requirement
    pinned = PINS[_name(name)].split(".")
    assert bound.split(".") == pinned[: len(bound.split("."))], (requirement, PINS[_name(name)])


def test_every_pin_installs_on_the_oldest_python_that_is_promised():
    """Such as Debian 12's 3.11.2, where a pin that asks for 3.11.5 ends `make quickstart` in a conflict."""
    lowest = re.match(r">=([\d.]+)", PROJECT["requires-python"])[1]
    asked = {}
    for name in PINS:
        with contextlib.suppress(metadata.PackageNotFoundError):  # of another platform or Python
            asked[name] = metadata.metadata(name).get("Requires-Python") or ""
    assert len(asked) > 0.9 * len(PINS)
    assert not {name: each for name, each in asked.items() if f"{lowest}.0" not in SpecifierSet(each)}


def test_nothing_names_a_registry():
    for file in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (ROOT / file).read_text()
        assert not re.search(r"--(extra-)?index-url|--find-links|://", text), file
