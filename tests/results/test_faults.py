"""Storage that fails now and then: everything is written all the same, once; what will not pass is told at once."""

import errno
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from distsub import files as module
from distsub.errors import OutputError
from distsub.results.compact import compact
from distsub.results.store import Store


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.0005)


@pytest.fixture
def flaky(monkeypatch, quick):
    """Fail one write in five: before anything is done, or after everything is (acknowledged too late)."""
    put, draw, counts = module._put_local, random.Random(0), {"failed": 0, "late": 0}

    def sometimes(path, data, replace):
        if draw.random() < 0.1:
            counts["failed"] += 1
            raise OSError(errno.EIO, "Input/output error")
        written = put(path, data, replace)
        if draw.random() < 0.1:
            counts["late"] += 1
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return written

    monkeypatch.setattr(module, "_put_local", sometimes)
    return counts


def test_one_write_in_five_fails_and_no_row_is_lost_or_twice(tmp_path, observation, flaky):
    store = Store.create(tmp_path / "out", "title = 'x'\n", "f00d")
    seen = [observation(number) for number in range(60)]
    failures = [observation(number, status="error") for number in range(0, 60, 3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.write, [*failures, *seen]))
    assert min(flaky.values()) >= 1 and sum(flaky.values()) >= 5
    assert sorted(store.read(), key=lambda row: row.trial.d) == seen
    compact(store, rows_per_part=7)
    assert sorted(store.read(), key=lambda row: row.trial.d) == seen and store.damaged == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
def test_what_will_not_pass_is_told_at_once(tmp_path, observation, monkeypatch, number):
    store = Store.create(tmp_path / "out", "title = 'x'\n", "f00d")
    calls = []

    def fails(*_):
        calls.append(1)
        raise OSError(number, "it will not pass")

    monkeypatch.setattr(module, "_put_local", fails)
    with pytest.raises(
        OutputError, match=r"cannot write trial .* it will not pass.*finished trials are kept"
    ) as caught:
        store.write(observation())
    assert len(calls) == 1 and "\n" not in str(caught.value)


def test_what_does_not_pass_is_given_up_after_a_bounded_time(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def fails():
        raise OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.")

    with pytest.raises(OSError, match="SLOW_DOWN"):
        module.patiently(fails)
    assert len(waits) == module.ATTEMPTS - 1 and 5 < sum(waits) < 20
    assert len({round(wait / 2**i, 6) for i, wait in enumerate(waits)}) > 3  # of random length


@pytest.mark.parametrize("text", ["AWS Error ACCESS_DENIED during PutObject", "AWS Error NO_SUCH_BUCKET during"])
def test_an_object_stores_final_answer_is_not_asked_for_again(monkeypatch, text):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))

    def fails():
        raise OSError(text)

    with pytest.raises(OSError, match="AWS"):
        module.patiently(fails)


def test_nothing_here_goes_by_the_clock_on_the_wall(tmp_path, observation, monkeypatch):
    store = Store.create(tmp_path / "out", "title = 'x'\n", "f00d")
    real = time.time
    for number, jump in enumerate((0.0, -86400.0, 86400.0, -1e9)):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        store.write(observation(number, status="error"))
        store.write(observation(number))
        compact(store, rows_per_part=2)
        assert len(store.read()) == number + 1
    assert {row.status for row in store.read()} == {"finished"}
