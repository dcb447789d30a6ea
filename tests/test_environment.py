"""The command line on machines that are not as expected: one line that names the thing, or it simply works."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from builders import with_keys
from warm import LESS_THAN_ROOT, Warm


@pytest.fixture
def sweep(tiny_text, tiny_model, tiny_data, tmp_path):
    """The tiny sweep on a model and data of its own, whose permissions a test may change."""
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "out").mkdir()
    path = tmp_path / "sweep.toml"
    path.write_text(tiny_text.replace(tiny_model, str(tmp_path / "model")).replace(tiny_data, str(tmp_path / "data")))
    return path


def environment_of(changes):
    """This process's environment with other settings, or without those that are None."""
    return {key: value for key, value in {**os.environ, **changes}.items() if value is not None}


@pytest.fixture
def command(tmp_path, warm):
    """Run the command line as somebody to whom permissions apply; with another environment, from its very start."""
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and setpriv is not here to become less")
        prefix = LESS_THAN_ROOT

    def run(*arguments, redirect="", cwd=tmp_path, program=None, **environment):
        given = environment_of(environment)
        is_warm = environment.keys() <= {"DISTSUB_CACHE"}  # which is looked at when it is wanted
        program = program or (warm.command if is_warm else [*prefix, sys.executable, "-m", "distsub.cli"])
        line = f"set -o pipefail; {shlex.join([*program, *map(str, arguments)])} {redirect}"
        return subprocess.run(["bash", "-c", line], env=given, capture_output=True, text=True, cwd=cwd)

    run.prefix = prefix
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


IN_ONE_PROCESS = """
import sys
from distsub.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split("|"))
    except SystemExit as end:
        assert not end.code, (line, end.code)
    print(f"ended {line}", file=sys.stderr, flush=True)
"""
"""The command line several times, in an interpreter that starts and imports once."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/nonexistent", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None, "HF_HOME": None},
        {"HOME": "/proc"},  # there, and cannot be written
    ],
    ids=str,
)
def test_a_run_and_its_report_need_no_home_and_no_unicode(environment, sweep, command, tmp_path):
    text = with_keys(sweep.read_text(), methods=["did"], seeds=1, dims=[8, 16], steps=4, eval_every=None)
    sweep.write_text(text)
    out = tmp_path / "out"
    lines = [f"run|{sweep}|--out|{out}|--backend|inline|--plain", f"status|{out}", f"report|{out}"]
    lines.append(f"query|{out}|select task, method, score from observations")
    program = [*command.prefix, sys.executable, "-c", IN_ONE_PROCESS]
    done = command(*lines, program=program, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == f"ended {lines[0]}" and [line for line in said if line.startswith("ended ")][-1][6:] == lines[-1]


STREAMS = {
    "a full disk": "> /dev/full",
    "an error on a full disk": "2> /dev/full",
    "a reader that leaves": "| head -n 1",
    "a reader that never was": "| true",
    "no stdin": "<&-",
    "no stdout": ">&-",
    "no stderr": "2>&-",
    "nothing open": "<&- >&- 2>&-",
}
SETTINGS = {
    "nobody at home": {"HOME": None, "XDG_CACHE_HOME": None, "DISTSUB_CACHE": "{tmp}/cache"},
    "a cache that is a file": {"DISTSUB_CACHE": "{tmp}/sweep.toml"},
    "a cache that is read only": {"DISTSUB_CACHE": "{tmp}/closed"},
    "a long TMPDIR": {"TMPDIR": "{tmp}/" + "x" * 120},
    "no TMPDIR": {"TMPDIR": "/nonexistent"},
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
PLACES = {name: (redirect, {}) for name, redirect in STREAMS.items()}
PLACES |= {name: ("", environment) for name, environment in SETTINGS.items()}
TOGETHER = {
    "an account of a service": ("nobody at home", "a long TMPDIR", "ascii"),
    "a container": ("no TMPDIR", "C"),
}
"""Settings under which every command works: what works under several at once works under each."""
ALL = {
    **{name: PLACES[name] for name in (*STREAMS, "a cache that is a file", "a cache that is read only")},
    **{
        name: ("", {key: value for part in parts for key, value in SETTINGS[part].items()})
        for name, parts in TOGETHER.items()
    },
}
EVERY = ("a full disk", "a reader that leaves", "nothing open", "a cache that is a file", *TOGETHER)
SOME = ("run", "status json", "report", "doctor", "wrong")
"""Where one place is another in part, or nearly, these commands stand for all."""
COMMANDS = {
    "run": "run sweep.toml --out again --backend inline --plain",
    "status": "status out",
    "status json": "status out --format json",
    "query": "query out",
    "query csv": "query out 'select task, score from observations' --format csv",
    "report": "report out --to page",
    "plan": "plan sweep.toml",
    "compact": "compact out",
    "doctor": "doctor",
    "inspect": "inspect model",
    "init": "init new.toml --data data --text sentence --label label --model ./model",
    "version": "--version",
    "wrong": "status nowhere",
}


@pytest.fixture(scope="module")
def results(tiny_text, tiny_model, tiny_data, warm, tmp_path_factory):
    """A finished small sweep of a task whose name has no ASCII; its model's weights have to be converted."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_data, folder / "data")
    weights = folder / "model" / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    text = tiny_text.replace(tiny_model, str(folder / "model")).replace(tiny_data, str(folder / "data"))
    text = with_keys(text, methods=["did"], seeds=1, dims=[8, 16], steps=4, eval_every=None)
    (folder / "sweep.toml").write_text(text.replace('name = "tiny"', 'name = "t\u00e4\u221a"'), encoding="utf-8")
    (folder / "closed").mkdir(mode=0o500)
    (folder / ("x" * 120)).mkdir()
    done = warm.run("run", "sweep.toml", "--out", "out", "--backend", "inline", "--plain", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def outcome(place, name):
    """What a command ends with, and what it names."""
    if name == "wrong":
        return 2, "is no results directory"
    if "cache that is" in place and name in ("run", "plan", "inspect", "init"):
        return 2, "DISTSUB_CACHE"
    if "cache that is" in place and name == "doctor":
        return 1, "DISTSUB_CACHE"
    return (2, "No space left on device") if place == "a full disk" else (0, "")


def fill(environment, results):
    return {key: value and value.format(tmp=results) for key, value in environment.items()}


def works(name, place, redirect, environment, results, command, program=None):
    """Try a command in a place: it works, or says in one line why not."""
    filled = fill(environment, results)
    (results / "new.toml").unlink(missing_ok=True)
    shutil.rmtree(results / "again", ignore_errors=True)
    done = command(*shlex.split(COMMANDS[name]), redirect=redirect, cwd=results, program=program, **filled)
    said, (code, named) = done.stderr.strip().splitlines(), outcome(place, name)
    about = f"{name}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code and "Traceback" not in about and "Exception ignored" not in about, about
    if "2>" not in redirect and ">&-" not in redirect:
        assert named in done.stdout + done.stderr, about
        assert code != 2 or (len(said) == 1 and said[0].startswith("distsub: ")), about


FAST = ("a full disk", "a reader that leaves", "nothing open", "nobody at home", "C")


@pytest.mark.parametrize("place", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in PLACES])
def test_status_works_anywhere_or_says_why_not_in_one_line(place, results, command):
    """In a process of its own, from the start of the interpreter to its end."""
    redirect, environment = PLACES[place]
    works("status", place, redirect, environment or {"LC_ALL": os.environ.get("LC_ALL")}, results, command)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ALL)
def test_every_command_works_anywhere_or_says_why_not_in_one_line(place, results, command, tmp_path):
    """Those in settings of their own from one that has started and imported there; what is wrong, from its start."""
    redirect, environment = ALL[place]
    names = COMMANDS if place in EVERY else SOME
    with contextlib.ExitStack() as stack:
        program = None
        if place in TOGETHER:
            server = Warm(tmp_path, environment_of(fill(environment, results)))
            stack.callback(server.end)
            program = server.command
        for name in sorted(names):
            works(name, place, redirect, environment, results, command, None if name == "wrong" else program)
