"""Every listing as people and programs meet it: under a terminal, in a pipe that closes, on a full disk, as JSON."""

import csv
import fcntl
import io
import json
import os
import pty
import shlex
import struct
import subprocess
import termios
from dataclasses import replace

import pytest
from rich.cells import cell_len

from distsub import cli
from distsub.config import parse_sweep
from distsub.results import Store
from distsub.search import TrialQueue, make_policy
from distsub.search.synthetic import Curve


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_text):
    """The results of a sweep whose scores are made up, under names as bad as a file's may be."""
    folder = tmp_path_factory.mktemp("listings")
    text = tiny_text.replace('name = "tiny"', 'name = "t\\u001b[2J $x_1$ \\u6f22"')
    sweep = parse_sweep(text, folder, "tiny.toml")
    store = Store.create(folder / "out dir", text, sweep.fingerprint, str(folder))
    queue, curve = (
        TrialQueue(sweep.searches(), make_policy(sweep.policy)),
        Curve(middle=3.0, eta_best=1.0, rate_best=3e-3),
    )
    while (trial := queue.next(set(), 1)) is not None:
        row = replace(curve.observe(trial), peak_bytes=3 * 2**30)
        queue.observe(row)
        store.write(row)
        if trial.d is not None:
            store.files.make(f"adapters/{trial.id}")
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                store.files.put(f"adapters/{trial.id}/{name}", b"{}")
    return folder / "out dir"


QUERY = "select trial_id, task, model, status, d, score, peak_bytes from observations"
LISTINGS = {
    "status": lambda out: ("status", out),
    "query": lambda out: ("query", out, QUERY),
    "query all": lambda out: ("query", out, "from observations"),
    "views": lambda out: ("query", out),
    "report": lambda out: ("report", out),
}
FORMATTED = [name for name in LISTINGS if name != "report"]


def called(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return (end.value.code, *capsys.readouterr())


def under_a_terminal(command, columns):
    """Run a command under a pseudo-terminal of so many columns; give (exit code, what it showed)."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [*map(str, command)], stdin=secondary, stdout=secondary, stderr=secondary, env=environment
    ) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                piece = os.read(primary, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(primary)
    return process.returncode, shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_fits_the_terminal(out, warm, name, columns):
    code, shown = under_a_terminal([*warm.command, *LISTINGS[name](out)], columns)
    assert code == 0 and "\x1b" not in shown and "Traceback" not in shown, shown
    wide = [line for line in shown.splitlines() if cell_len(line) > columns]
    # An address and a command for a shell are one word and one line, whatever their length, so that they can be copied.
    assert all(line.lstrip().startswith((str(out), "report:", "figure:", "distsub query")) for line in wide), wide
    assert r"t\x1b[2J $x_1$ 漢" in shown or name == "views"


@pytest.mark.parametrize("name", FORMATTED)
def test_json_and_csv_are_all_that_is_printed(out, name, capsys):
    code, text, said = called(capsys, *LISTINGS[name](out), "--format", "json")
    rows = json.loads(text)
    assert code == 0 and not said and rows and all(isinstance(row, dict) for row in rows)
    code, text, said = called(capsys, *LISTINGS[name](out), "--format", "csv")
    header, *lines = csv.reader(io.StringIO(text))
    assert code == 0 and not said and header == list(rows[0]) and len(lines) == len(rows)


def test_status_names_the_smallest_adapter_that_passes(out, capsys):
    _, text, _ = called(capsys, "status", out)
    path = text.splitlines()[-1].strip()
    assert os.path.isdir(path) and path.startswith(str(out / "adapters"))
    assert "smallest adapter that passes" in text
    called(capsys, "report", out)
    assert path in (out / "report" / "report.html").read_text()


def test_the_questions_run_as_printed(out, capsys):
    _, text, _ = called(capsys, "query", out)
    commands = text[text.index("  distsub query") :].split("\n  distsub query")
    assert len(commands) == 3
    for command in commands:
        what = command.split('"\n')[0].removeprefix("  distsub query").strip()
        words = shlex.split("query " + what + ('"' if what.count('"') % 2 else ""))
        code, answer, said = called(capsys, *[word.strip("\n") for word in words if word.strip()], "--format", "json")
        assert code == 0 and json.loads(answer) and not said


def shell(line, **environment):
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=os.environ | environment, cwd=os.getcwd()
    )


@pytest.fixture
def quoted(warm):
    """Write a command for a shell; test_environment starts `status` from nothing in all of these places."""
    return lambda arguments: shlex.join([*warm.command, *map(str, arguments)])


@pytest.mark.parametrize("name", LISTINGS)
def test_a_reader_that_leaves_is_no_error(out, quoted, name):
    done = shell(f"{quoted(LISTINGS[name](out))} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("name", LISTINGS)
def test_a_full_disk_is_told_in_one_line(out, quoted, name):
    done = shell(f"{quoted(LISTINGS[name](out))} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("distsub: cannot write to standard output (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", LISTINGS)
def test_an_ascii_terminal_gets_ascii(out, quoted, name):
    done = shell(quoted(LISTINGS[name](out)), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and not done.stderr and done.stdout.isascii()
    assert r"\u6f22" in done.stdout or name == "views"


def test_a_closed_output_is_no_error(out, quoted):
    done = shell(f"{quoted(('status', out))} >&-")
    assert done.returncode == 0 and not done.stderr


STEERING = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029]))
STEERING += "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0xE0001, 0xE0041]))
"""Controls of C0 and C1, breaks of lines, directions of writing, and what takes no room."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, tiny_text):
    """The results of a sweep whose every name steers a terminal, with damaged files, and a driver, so named."""
    folder = tmp_path_factory.mktemp("hostile")
    name = '"' + "".join(f"\\U{ord(char):08x}" for char in STEERING) + '"'
    text = tiny_text.replace('name = "tiny"', f"name = {name}")
    sweep = parse_sweep(text, folder, "tiny.toml")
    assert STEERING in sweep.name and STEERING in sweep.tasks[0].name
    store = Store.create(folder / "out\x1b[2Jdir\u202e", text, sweep.fingerprint, str(folder))
    queue, curve = (
        TrialQueue(sweep.searches(), make_policy(sweep.policy)),
        Curve(middle=3.0, eta_best=1.0, rate_best=3e-3),
    )
    while (trial := queue.next(set(), 1)) is not None:
        row = replace(curve.observe(trial), labels=(STEERING, "b"), provenance=((STEERING, STEERING),))
        queue.observe(row)
        store.write(row)
    store.files.put("observations/a\x1b[31mb\u202e.parquet", b"x")
    store.files.make("drivers")
    driver = {"host": STEERING, "machine": "m", "pid": 1, "process": "p", "since": 0, "beat": 0}
    store.files.put("drivers/x.json", json.dumps(driver | {"training": [STEERING]}).encode())
    return store.files.root


ERRORS = {
    "unknown column": lambda out: ("query", out, f'select "{STEERING[1:]}" from observations'),
    "named by a query": lambda out: ("query", out, f"select 1 as \"{STEERING[1:]}\", '{STEERING[1:]}' as b"),
    "value": lambda out: ("query", out, f"select '{STEERING[1:]}'::int"),
    "no directory": lambda out: ("status", f"{out}/{STEERING[1:]}"),
    "no file": lambda out: ("plan", f"{out}/{STEERING[1:]}.toml"),
    "no model": lambda out: ("inspect", f"/nowhere/{STEERING[1:]}"),
    "init": lambda out: ("init", f"{out}/i.toml", "--data", f"{out}/{STEERING[1:]}.csv"),
    "shard": lambda out: ("run", f"{out}/sweep.toml", "--out", "x", "--shard", STEERING[1:]),
    "run": lambda out: ("run", f"{out}/sweep.toml", "--out", f"{out}/{STEERING[1:]}", "--backend", "inline", "--plain"),
}


FORMATS = [(), ("--format", "json"), ("--format", "csv")]
CASES = [(name, format) for name in LISTINGS for format in FORMATS if not format or name not in ("report", "init")]
CASES += [(name, FORMATS[number % 3] if name != "init" else ()) for number, name in enumerate(ERRORS)]  # as any says it


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), CASES, ids=str)
def test_no_name_steers_a_terminal(hostile, warm, name, format):
    """Under a terminal of 80 columns; what comes out has no control but the line's end, and says no name as it is."""
    arguments = (LISTINGS | ERRORS)[name](hostile)
    code, text = under_a_terminal([*warm.command, *arguments, *format], 80)
    assert "Traceback" not in text and code in (0, 2), text
    steering = set(text) & (set(STEERING) - {"\n"})
    assert not steering, repr(text)
