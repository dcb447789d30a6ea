"""The import ladder, the light import, and the packaging facts that a reader relies on."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from distsub.config import parse_sweep
from distsub.results import Store
from distsub.survey.proposal import known

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "distsub"

GROUND = {"errors", "addresses", "files", "paths", "cache", "packages"}
MAY_IMPORT = {
    "errors": set(),
    "paths": set(),
    "addresses": {"errors"},
    "files": {"errors", "addresses"},
    "cache": {"errors", "addresses", "files"},
    "packages": {"errors"},
    "records": {"errors"},
    "metrics": {"errors", "records"},
    "subspace": GROUND | {"records"},
    "data": GROUND | {"records"},
    "models": GROUND | {"records", "subspace"},
    "finetune": GROUND | {"records", "metrics", "subspace", "data", "models"},
    "adapters": GROUND | {"records", "metrics", "subspace", "data", "models", "finetune"},
    "survey": GROUND | {"records", "data", "models", "finetune"},
    "search": {"errors", "records", "metrics"},
    "estimate": {"errors", "records", "metrics", "search"},
    "results": GROUND | {"records"},
    "config": GROUND | {"records", "search", "data"},
    "report": GROUND | {"records", "search", "estimate", "results"},
    "learned": GROUND | {"records", "subspace", "models", "finetune", "adapters", "results", "report"},
}
MAY_IMPORT["runtime"] = (
    MAY_IMPORT["config"] | MAY_IMPORT["report"] | MAY_IMPORT["adapters"] | {"config", "report", "adapters"}
)
MAY_IMPORT["preflight"] = MAY_IMPORT["runtime"] | {"runtime"}
MAY_IMPORT["api"] = MAY_IMPORT["preflight"] | {"preflight", "survey"}
MAY_IMPORT["cli"] = MAY_IMPORT["api"] | {"api", "learned"}
PURE = {
    "search": {"torch", "ray", "time", "random"},
    "estimate": {"torch", "ray", "time", "random"},
    "results": {"torch", "ray"},
    "report": {"torch", "ray"},
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_rooms_form_no_circle():
    graph = {room: set(below) for room, below in MAY_IMPORT.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MAY_IMPORT)


def test_no_files_import_each_other_in_a_circle():
    """At the top of a module; inside functions a heavy import may come late."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}

    def used(path: Path) -> set[str]:
        found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom) and node.module]
        asked = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        return {name if name in names else name.rpartition(".")[0] for name in asked} & names

    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): used(path) for path in MODULES
    }
    assert list(TopologicalSorter(graph).static_order())


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_lower_room_never_imports_a_higher_one(path):
    room = room_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("distsub.")}
    assert used - {room} <= MAY_IMPORT[room]
    assert not {name.split(".")[0] for name in imports(path)} & PURE.get(room, set())


def test_only_runtime_imports_ray():
    users = {room_of(path) for path in MODULES if "ray" in {name.split(".")[0] for name in imports(path)}}
    assert users == {"runtime"}


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, distsub; print(*(m for m in ('torch', 'ray', 'transformers', 'pandas') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom distsub.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*(m for m in ('torch', 'ray', 'transformers', 'pyarrow') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "" and "query" in done.stdout


def test_reading_results_loads_nothing_heavy(tmp_path):
    text = known("org/model", "mrpc", tmp_path)
    store = Store.create(tmp_path / "out", text, parse_sweep(text).fingerprint)
    heavy = ("torch", "ray", "transformers", "scipy", "matplotlib", "optuna", "sklearn")
    code = (
        "import sys\nfrom distsub.cli import app\n"
        f"app(['status', {store.uri!r}, '--format', 'csv'], standalone_mode=False)\n"
        f"app(['query', {store.uri!r}, 'select count(*) n from searches, observations'], standalone_mode=False)\n"
        f"print(*(m for m in {heavy!r} if m in sys.modules), file=sys.stderr)\n"
        "import pyarrow\npyarrow.table({'a': [1]}).to_pandas()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "" and done.stdout.startswith("search,") and done.stdout.endswith("0\n")


def test_no_module_outgrows_a_reader():
    assert {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 350} == {}


def test_the_package_shows_its_public_names_and_no_others():
    code = "import distsub; print(*dir(distsub)); print(*sorted(distsub.__all__))"
    code += "; print(all(hasattr(distsub, name) for name in dir(distsub)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, public, there = done.stdout.splitlines()
    assert shown == public and there == "True"


def test_the_version_is_said(tmp_path):
    import distsub

    done = subprocess.run(
        [sys.executable, "-m", "distsub.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"distsub {distsub.__version__}\n"
