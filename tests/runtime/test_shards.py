"""Several drivers on one results directory, by mistake or as shards: the table of one."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.config import load_sweep
from distsub.errors import ConfigError
from distsub.results import Store
from distsub.runtime import launch

JUMPING = """
import sys, time
real, start = time.time, time.time()
time.time = lambda: real() - (86400.0 if real() - start > 2 else 0.0)  # a day back, two seconds after the start
from distsub.cli import main
main(sys.argv[1:])
"""


@given(st.integers(1, 60), st.integers(1, 20))
def test_shards_cover_every_search_exactly_once(searches, drivers):
    items = list(range(searches))
    shares = [items[i::n] for i, n in (launch.parse_shard(f"{index}/{drivers}") for index in range(drivers))]
    assert sorted(item for share in shares for item in share) == items


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "a/b", "0/1/2", "0.5/2", "1 of 2"])
def test_what_is_no_shard_is_one_clear_line(text):
    with pytest.raises(ConfigError, match="is not i/n") as caught:
        launch.parse_shard(text)
    assert "\n" not in str(caught.value)


def test_a_queue_takes_its_share_and_an_empty_one_is_refused(tiny_sweep):
    sweep = load_sweep(tiny_sweep)
    taken = [search for index in range(3) for search in launch.queue_of(sweep, shard=(index, 3)).searches]
    assert sorted(search.id for search in taken) == sorted(search.id for search in sweep.searches())
    with pytest.raises(ConfigError, match="none is left"):
        launch.queue_of(sweep, shard=(4, 5))


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_text, warm):
    """A sweep of a few very short trainings, and its table when one driver runs it."""
    folder = tmp_path_factory.mktemp("shards")
    text = tiny_text.replace("steps = 40", "steps = 4").replace("dims = [8, 16, 64, 256]", "dims = [8, 16]")
    (folder / "small.toml").write_text(text.replace("etas = [1.0, 3.0]", "etas = [1.0]"))
    assert start(folder, "one", program=warm.command).wait(600) == 0
    return folder


def start(folder, out, *options, program):
    command = [*program, "run", str(folder / "small.toml"), "--out", str(folder / out)]
    with (folder / f"{out}.log").open("a") as log:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([*command, "--backend", "inline", *options], stdout=log, stderr=log, env=environment)


def table(folder, out):
    """Give what a directory says, times aside, and make sure that no trial is there twice."""
    store = Store.open(folder / out)
    rows = store.read()
    assert store.damaged == [] and len(rows) == len({row.trial.id for row in rows})
    return {row.trial.id: (row.status, row.score, row.predicted, row.curve) for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_drivers_by_mistake_and_a_clock_that_jumps_back_do_no_harm(small, warm):
    programs = [warm.command, (sys.executable, "-c", JUMPING)]
    drivers = [start(small, "two", program=program) for program in programs]
    assert [driver.wait(900) for driver in drivers] == [0, 0], (small / "two.log").read_text()
    assert table(small, "two") == table(small, "one")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shards_together_make_the_table_of_one_driver(small, warm):
    drivers = [start(small, "shards", "--shard", f"{index}/2", program=warm.command) for index in range(2)]
    assert [driver.wait(900) for driver in drivers] == [0, 0], (small / "shards.log").read_text()
    assert table(small, "shards") == table(small, "one")
