"""The scripts, the image and the job's environment: what can be known of them without running them."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_bash_reads_it(name):
    done = subprocess.run(["bash", "-n", str(CLUSTER / name)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert os.access(CLUSTER / "local.sh", os.X_OK)


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_ray_start_knows_every_option(name):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    text = re.sub(r"\\\n", " ", (CLUSTER / name).read_text())
    lines = [
        line for line in text.splitlines() if re.search(r"ray start|common=|--num-cpus=|--min-worker|^start ", line)
    ]
    theirs = {"--nodes", "--ntasks", "--ntasks-per-node", "--nodelist", "--cpus-per-task", "--overlap"}  # srun's
    used = {option for line in lines for option in re.findall(r"--[\w-]+(?==)|--head|--block|--disable[\w-]+", line)}
    assert {"--head", "--block", "--node-ip-address"} <= used and used <= known | theirs


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_it_switches_authentication_on_and_never_stops_others(name):
    text = (CLUSTER / name).read_text()
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    assert not re.search(r"^[^#]*\b(ray stop|pkill|killall)\b", text, re.MULTILINE)


def refused(*command, **environment):
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=variables, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--worker", "2"], "unknown option --worker; known: --workers"),
        (["--workers", "two"], '--workers needs a number, got "two"'),
        (["--port"], "--port needs a number"),
        (["--dir", "/tmp/" + "x" * 60], "too long for Ray's sockets"),
    ],
)
def test_local_says_in_one_line_what_is_wrong(options, message):
    assert message in refused(CLUSTER / "local.sh", *options)


def test_local_leaves_a_taken_port_alone():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refused(CLUSTER / "local.sh", "--port", port)


def test_slurm_wants_an_address_that_outlives_the_job():
    assert "usage: sbatch" in refused("bash", CLUSTER / "slurm.sbatch", "sweep.toml")
    assert "give an absolute path or a URI" in refused("bash", CLUSTER / "slurm.sbatch", "sweep.toml", "results/x")


def test_slurm_options_are_slurms():
    known = {
        "job-name",
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "time",
        "signal",
        "requeue",
        "open-mode",
        "output",
    }
    text = (CLUSTER / "slurm.sbatch").read_text()
    assert set(re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)) == known
    assert not re.search(r"^#SBATCH(?! --)", text, re.MULTILINE)


def instructions(text):
    """Split a Dockerfile into (instruction, rest)."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_the_image_is_made_of_known_instructions_and_files_that_are_there():
    found = instructions(DOCKERFILE)
    assert {name for name, _ in found} == INSTRUCTIONS
    assert {name for name, _ in instructions(DOCKERFILE.replace("WORKDIR", "WORKDR"))} - INSTRUCTIONS == {"WORKDR"}
    for name, rest in found:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        if name == "RUN":
            done = subprocess.run(["bash", "-n", "-c", rest], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_everything_in_the_image_is_pinned_and_it_runs_without_privileges():
    installs = re.findall(r"pip install[^;&\n]*", DOCKERFILE)
    assert len(installs) == 3 and all("-c constraints.txt" in line for line in installs)
    assert re.search(r"^FROM python:3\.1[123]-slim-\w+$", DOCKERFILE, re.MULTILINE)
    users = [rest for name, rest in instructions(DOCKERFILE) if name == "USER"]
    assert users == ["ray"]
    assert "RAY_AUTH_MODE=token" in DOCKERFILE


def test_the_devices_are_told_apart(tmp_path):
    [choice] = [rest for name, rest in instructions(DOCKERFILE) if name == "RUN" and "DEVICE" in rest]
    fake = tmp_path / "pip"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)

    def run(device):
        return subprocess.run(
            ["sh", "-c", choice],
            env={"DEVICE": device, "PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )

    assert "whl/cpu torch" in run("cpu").stdout and run("gpu").stdout == "install -c constraints.txt torch\n"
    wrong = run("tpu")
    assert wrong.returncode == 1 and "give cpu or gpu" in wrong.stderr


def test_ray_knows_the_fields_of_the_runtime_environment():
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    def unknown(given):
        return (set(given) - RuntimeEnv.known_fields) | (set(given.get("config", {})) - RuntimeEnvConfig.known_fields)

    given = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    assert unknown(given) == set()
    assert unknown({**given, "env_var": {}}) == {"env_var"}
    RuntimeEnv(**given)
    assert not any(re.search("TOKEN$|KEY|SECRET", name) for name in given["env_vars"])


def test_ray_reads_every_variable_that_is_set_for_it():
    """A misspelt variable is ignored in silence, and with it perhaps the authentication."""
    import ray

    used = {
        name
        for path in CLUSTER.iterdir()
        for name in re.findall(r"\bRAY_[A-Za-z0-9_]+", path.read_text())
        if path.name != "README.md"
    }
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} <= used
    package = Path(ray.__file__).parent
    missing = set(used) | {"RAY_AUTH_MODUS"}
    for file in [*package.rglob("*.py"), package / "_raylet.so"]:
        text = file.read_bytes()
        missing = {name for name in missing if name.encode() not in text}
    assert missing == {"RAY_AUTH_MODUS"}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch"])
def test_shellcheck_has_nothing_to_say(name):
    done = subprocess.run(["shellcheck", str(CLUSTER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
