"""Deterministic algorithms, by torch's own settings and warnings; no operation of CUDA runs here."""

import os
import warnings

import pytest
import torch

from distsub.finetune.determinism import SWITCH, WORKSPACE, deterministic


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(WORKSPACE, "")  # so that it is put back
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.delenv(SWITCH, raising=False)


def put():
    """An operation that torch says has no deterministic implementation, on a CPU too."""
    torch.zeros(3).put_(torch.tensor([1]), torch.tensor([2.0]))


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_it_is_on_where_training_runs_on_cuda(device):
    before = settings()
    assert before == (False, False, True)
    with deterministic(device) as found:
        assert settings() == (True, True, False)
        assert os.environ[WORKSPACE] == ":4096:8"
    assert settings() == before
    assert found.provenance() == {"deterministic": "on"}


def test_nothing_is_set_on_a_cpu():
    with deterministic("cpu") as found:
        assert settings() == (False, False, True) and WORKSPACE not in os.environ
    assert found.provenance() == {}


def test_the_environment_turns_it_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    with deterministic("cuda") as found:
        assert settings() == (False, False, True)
    assert found.provenance() == {"deterministic": "off"}


def test_what_a_person_set_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(KeyError), deterministic("cuda"):
            assert os.environ[WORKSPACE] == ":16:8"
            raise KeyError
        assert settings() == (True, False, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_one_is_said_once_in_a_line():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with deterministic("cuda") as found:
            put()
            put()
            warnings.warn("something else", stacklevel=1)
            torch.zeros(3, requires_grad=True).sum().backward()
        put()  # not asked for any more
    assert [str(each.message) for each in heard] == [
        "this training may not repeat to the last digit: put_ is not deterministic here (torch has no deterministic "
        "algorithm)",
        "something else",
    ]
    assert found.provenance() == {"deterministic": "on but for put_"}
