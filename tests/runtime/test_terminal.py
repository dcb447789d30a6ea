"""The command under a real pseudo-terminal, as a person runs it: what the screen shows, at the end and after Ctrl-C."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from builders import with_keys
from rich.cells import cell_len

PIECE = re.compile(
    r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\].*?(?:\x07|\x1b\\)|\x1b.|[\x00-\x1f]|[^\x00-\x1f\x1b]+", re.DOTALL
)


class Screen:
    """What a terminal without end shows of a stream: cursor up, erase line, carriage return and colours, no more.

    Attributes:
        lines: Each line as it stands.
        too_wide: Lines that went beyond the width when they were written.
        cursor: Whether the cursor is visible.
        unknown: Control sequences that are none of these.
    """

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.too_wide, self.cursor, self.unknown = [], True, []

    def feed(self, text):
        for match in PIECE.finditer(text):
            piece, (arguments, command) = match[0], match.groups()
            if command == "m":
                continue
            if command == "A":
                self.row = max(0, self.row - int(arguments or 1))
            elif command == "K":
                self.lines[self.row] = ""
            elif command in ("h", "l") and arguments == "?25":
                self.cursor = command == "h"
            elif piece == "\r":
                self.column = 0
            elif piece == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif piece[0] < " ":  # a control character, or a sequence of another kind
                self.unknown.append(piece)
            else:
                self._write(piece)
        return self

    def _write(self, piece):
        line = self.lines[self.row].ljust(self.column)
        line = line[: self.column] + piece + line[self.column + len(piece) :]
        self.lines[self.row] = line
        self.column += len(piece)
        if cell_len(line.rstrip()) > self.columns:
            self.too_wide.append(line)

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)


# The first terminal that a session's leader opens controls it: Ctrl-C reaches all of its foreground. Where SIGINT is
# ignored, as in a background job, a child would ignore it too.
START = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Terminal:
    """A process whose terminal has so many columns and rows; leads a session of its own, as in a new window."""

    def __init__(self, command, environment, columns, rows=40):
        self.columns, self.seen = columns, ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        dropped = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTEST_CURRENT_TEST")
        environment = {key: value for key, value in environment.items() if key not in dropped}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, os.ttyname(slave), *command],
            env=environment | {"TERM": "xterm-256color"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._slave = slave  # held, for reading fails where nobody does
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def read(self, until=None, seconds=300.0):
        """Read to the end, or until the screen says something; give the screen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until in self.screen().text):
            if select.select([self._master], [], [], 0.2)[0]:
                self.seen += self._decode(os.read(self._master, 65536))
            elif self.process.poll() is not None:
                break
        screen = self.screen()
        assert not until or until in screen.text, f"no {until!r} in {seconds} s:\n{screen.text}"
        return screen

    def screen(self):
        return Screen(self.columns).feed(self.seen)

    def press(self, key):
        os.write(self._master, key)

    def finish(self, seconds=300.0):
        """Read to the end; give the exit code and the last screen."""
        screen = self.read(seconds=seconds)
        return self.process.wait(30), screen

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(folder, environment):
    """Run `distsub` in a terminal of so many columns; it is ended with the test."""
    made = []

    def run(columns, *arguments, rows=40, **more):
        command = [sys.executable, "-m", "distsub.cli", *map(str, arguments)]
        made.append(Terminal(command, environment | more, columns, rows))
        return made[-1]

    yield run
    for each in made:
        each.close()


def shown_rows(screen):
    """Give the rows of the live table as it was left, split at the gaps."""
    lines = screen.text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["method", "seed"])
    rows = []
    for line in lines[start + 1 :]:
        rows.append(re.split(r"  +", line))
        if "trainings" in line:
            return rows[:-1], lines[start - 1], line
    raise AssertionError(screen.text)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backend", "columns"), [("tune", 80), ("inline", 120)])
def test_a_run_goes_to_its_end_in_a_terminal(backend, columns, small_sweep, tmp_path, terminal, request):
    text = with_keys(small_sweep.read_text(), methods=["did", "said"], dims=[8, 64], steps=10, eval_every=5)
    small_sweep.write_text(text)
    more = {}
    if backend == "tune":  # whose workers need not train for what the screen shows
        request.getfixturevalue("computed")
        site = request.getfixturevalue("starts").site
        more["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    run = terminal(columns, "run", small_sweep, "--out", tmp_path / "out", "--backend", backend, **more)
    code, screen = run.finish(600)
    assert code == 0, screen.text
    assert "Traceback" not in screen.text and "exit_code" not in screen.text
    assert screen.cursor and not screen.unknown
    assert not [line for line in screen.too_wide if str(tmp_path) not in line]  # a path is shown whole
    rows, caption, bar = shown_rows(screen)
    searches = [row for row in rows if row[0] in ("did", "said")]
    assert [row[:2] for row in searches] == [["did", "0"], ["did", "1"], ["said", "0"], ["said", "1"]]
    assert caption.startswith("tiny: task tiny, model tiny-model") and "trainings with a result" in bar
    assert all(row[-1] != "waits" for row in searches)
    number = len(list((tmp_path / "out" / "observations").glob("*.parquet")))
    assert f" {number} trainings with a result" in bar
    assert f"results: {tmp_path / 'out'}" in screen.text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backend", "presses"), [("tune", 1), ("tune", 2), ("inline", 2)])  # once: tests/cli
def test_ctrl_c_leaves_a_clean_terminal(backend, presses, small_sweep, tmp_path, terminal):
    small_sweep.write_text(small_sweep.read_text().replace("steps = 40", "steps = 100000"))
    run = terminal(80, "run", small_sweep, "--out", tmp_path / "out", "--backend", backend)
    run.read(until=" step ", seconds=400)
    for _ in range(presses):
        run.press(b"\x03")
        time.sleep(1)
    code, screen = run.finish(200)
    assert code == 130, screen.text
    assert screen.cursor and not screen.unknown
    assert not [line for line in screen.too_wide if str(tmp_path) not in line]
    assert "Traceback" not in screen.text and screen.text.count("the same command resumes") == 1, screen.text
    assert " step " not in screen.text  # the table is closed: nothing in it says that something trains


def test_the_screen_is_drawn_as_a_terminal_draws_it():
    screen = Screen(20).feed("one\r\ntwo\r\n\x1b[1A\x1b[2KTWO\x1b[?25l\x1b[1;31mred\x1b[0m\r\n")
    assert screen.text == "one\nTWOred\n" and not screen.cursor and not screen.too_wide
    assert Screen(5).feed("123456").too_wide and Screen(5).feed("\x1b[3g").unknown
