"""The dependencies that are promised are the ones that the tests run."""

import re
import tomllib
from pathlib import Path

import pytest

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


def test_nothing_names_a_registry():
    for file in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (ROOT / file).read_text()
        assert not re.search(r"--(extra-)?index-url|--find-links|://", text), file
