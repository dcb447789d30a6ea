"""Who runs a sweep: said while it runs, taken back at the end, and not believed of one that was killed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from distsub.files import Files
from distsub.paths import DRIVERS
from distsub.results.drivers import STALE_S, Heartbeat, drivers

HOLD = """
import sys, time
from distsub.files import Files
from distsub.results.drivers import Heartbeat
with Heartbeat(Files.at(sys.argv[1]), lambda: ["mrpc did d=8"]):
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def files(tmp_path):
    return Files.at(str(tmp_path))


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield process
        process.kill()


def test_a_driver_is_there_as_long_as_its_block(files):
    assert drivers(files) == []
    with Heartbeat(files, lambda: ["one", "two"]):
        [driver] = drivers(files)
        assert driver.alive and driver.training == ("one", "two")
        with Heartbeat(files):  # a second driver with the same results
            assert len(drivers(files)) == 2
    assert drivers(files) == [] and files.names(DRIVERS) == []


def test_an_error_ends_it_too(files):
    with pytest.raises(KeyboardInterrupt), Heartbeat(files):
        raise KeyboardInterrupt
    assert drivers(files) == []


def test_a_killed_driver_is_known_to_be_gone_at_once_and_its_file_goes_with_the_next_run(files, holder):
    [driver] = drivers(files)
    assert driver.alive and driver.pid == holder.pid and driver.training == ("mrpc did d=8",)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    [driver] = drivers(files)
    assert not driver.alive
    with Heartbeat(files):
        assert [each.alive for each in drivers(files)] == [True]


def edited(files, **changes):
    [name] = files.names(DRIVERS)
    record = json.loads(files.read(f"{DRIVERS}/{name}"))
    files.put(f"{DRIVERS}/{name}", json.dumps(record | changes).encode())
    return drivers(files)[0]


def test_a_driver_elsewhere_is_judged_by_its_last_beat(files):
    with Heartbeat(files):
        assert edited(files, machine="another", pid=1, beat=time.time()).alive
        assert not edited(files, machine="another", pid=1, beat=time.time() - STALE_S - 1).alive


def test_another_process_with_the_same_id_is_not_the_driver(files):
    with Heartbeat(files):
        assert not edited(files, process="12").alive


def test_a_beat_renews_the_file(files, monkeypatch):
    monkeypatch.setattr("distsub.results.drivers.EVERY_S", 0.02)
    with Heartbeat(files):
        first = drivers(files)[0].beat
        while drivers(files)[0].beat == first:
            time.sleep(0.01)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"machine": 1}', '{"pid": null}'])
def test_a_file_that_is_none_says_nothing(files, text):
    files.make(DRIVERS)
    files.put(f"{DRIVERS}/x.json", text.encode())
    assert drivers(files) == []


def test_results_that_cannot_be_written_do_not_stop_a_run(files):
    with open(files.path(DRIVERS), "w"):
        pass  # a file where the folder belongs
    with Heartbeat(files):
        pass
