"""The command line on machines that are not as expected: one line that names the thing, or it simply works."""

import os
import shutil
import subprocess
import sys

import pytest

WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
WITHOUT_ROOTS_RIGHTS += ["--inh-caps=-dac_override,-dac_read_search"]


@pytest.fixture
def sweep(tiny_text, tiny_model, tiny_data, tmp_path):
    """The tiny sweep on a model and data of its own, whose permissions a test may change."""
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "out").mkdir()
    path = tmp_path / "sweep.toml"
    path.write_text(tiny_text.replace(tiny_model, str(tmp_path / "model")).replace(tiny_data, str(tmp_path / "data")))
    return path


@pytest.fixture
def command(tmp_path):
    """Run the command line as somebody to whom permissions apply."""
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and setpriv is not here to become less")
        prefix = WITHOUT_ROOTS_RIGHTS

    def run(*arguments, **environment):
        given = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
        words = [*prefix, sys.executable, "-m", "distsub.cli", *map(str, arguments)]
        return subprocess.run(words, env=given, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.mark.parametrize("closed", ["sweep.toml", "data", "data/train.csv", "model", "model/config.json", "out"])
def test_what_cannot_be_read_is_named_in_one_line(closed, sweep, command, tmp_path):
    target = tmp_path / closed
    mode = target.stat().st_mode
    target.chmod(0)
    try:
        done = command("run", sweep, "--out", tmp_path / "out", "--backend", "inline", "--plain")
    finally:
        target.chmod(mode)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("distsub: ") and str(target.parent) in line and target.name in line
    assert "ermission denied" in line


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None},
        {"HOME": "/nonexistent"},
        {"HOME": "/proc"},  # there, and cannot be written
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None, "HF_HOME": None},
    ],
    ids=str,
)
def test_a_run_and_its_report_need_no_home_and_no_unicode(environment, sweep, command, tmp_path):
    small = sweep.read_text().replace('["said", "did"]', '["did"]').replace("seeds = 2", "seeds = 1")
    sweep.write_text(small.replace("steps = 40", "steps = 4").replace("[8, 16, 64, 256]", "[8, 16]"))
    out = tmp_path / "out"
    done = command("run", sweep, "--out", out, "--backend", "inline", "--plain", **environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for words in (("status", out), ("report", out), ("query", out, "select task, method, score from observations")):
        done = command(*words, **environment)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
