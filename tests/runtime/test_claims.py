"""One of several processes without a common lock does what is to be done once."""

import threading

import pytest

from distsub.files import Files
from distsub.runtime import claims
from distsub.runtime.claims import Claim


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SETTLE_S", 0.05)
    return Files.at(tmp_path)


def test_one_holds_it_and_the_next_may_when_it_is_given_up(files):
    first, second = Claim(files, "it"), Claim(files, "it")
    assert first.take()
    with first:
        assert not second.take() and not second.take()
    assert files.names("") == [] and second.take()


def test_of_many_that_claim_at_once_one_holds_it(files, monkeypatch):
    monkeypatch.setattr(claims, "SETTLE_S", 0.5)
    held, ready = [], threading.Barrier(8)

    def claim():
        mine = Claim(files, "it")
        ready.wait()
        held.append(mine.take())

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert held.count(True) == 1


def test_what_a_killed_process_held_is_taken_over_and_what_is_renewed_is_not(files, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    killed, renewed = Claim(files, "killed"), Claim(files, "renewed")
    assert killed.take() and renewed.take()
    others = Claim(files, "killed"), Claim(files, "renewed")
    for _ in range(20):
        assert [each.take() for each in others] == [False, False]
        clock[0] += claims.STALE_S / 21
        renewed._write()
    clock[0] += claims.STALE_S / 10
    renewed._write()
    assert [each.take() for each in others] == [True, False]
    killed.give_up()  # not killed after all: what another holds by now stays
    assert files.exists("killed")


def test_it_is_renewed_while_it_is_held(files, monkeypatch):
    monkeypatch.setattr(claims, "EVERY_S", 0.01)
    claim, changed = Claim(files, "it"), threading.Event()
    write = claim._write
    assert claim.take()
    monkeypatch.setattr(claim, "_write", lambda: (write(), claim._count > 3 and changed.set()))
    with claim:
        assert changed.wait(60)
