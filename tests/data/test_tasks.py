import subprocess
import sys

import pytest

from distsub.data.tasks import TASKS, resolve
from distsub.errors import ConfigError


def test_every_paper_task_is_known():
    glue = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    others = {"yelp_polarity", "anli_r1", "anli_r2", "anli_r3", "imdb", "ag_news", "rotten_tomatoes"}
    assert glue | others <= TASKS.keys()
    assert {name: TASKS[name].metric for name in glue if TASKS[name].metric != "accuracy"} == {
        "cola": "matthews",
        "stsb": "pearson",
    }
    assert all(resolve(name) == task and name == task.name for name, task in TASKS.items())


def test_path_keeps_columns_and_resets_the_place():
    task = resolve("mnli", path="/data/mnli")
    assert (task.source, task.config, task.validation) == ("/data/mnli", None, "validation")
    assert (task.text, task.num_labels) == (("premise", "hypothesis"), 3)
    assert resolve("rotten_tomatoes", path="/data/rt").where == ()


def test_path_to_one_file_needs_a_holdout():
    assert resolve("sst2", path="/data/sst2.csv", holdout=10).validation is None
    with pytest.raises(ConfigError, match="no rows to evaluate on"):
        resolve("sst2", path="/data/sst2.csv")


def test_own_task():
    task = resolve("mine", path="/data/mine", text=("body",), num_labels=1)
    assert (task.name, task.metric) == ("mine", "pearson")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mprc", {}, r'unknown task "mprc".*did you mean "mrpc"\?'),
        ("mine", {"path": "/x"}, "text is missing"),
        ("mine", {"path": "/x", "text": ("a", "b", "c")}, "3 columns"),
        ("mrpc", {"labl": "x"}, 'unknown field "labl"; did you mean "label"'),
        ("mrpc", {"path": "/x", "source": "y/z"}, "either path"),
        ("mrpc", {"validation": "test", "holdout": 5}, "either validation or holdout"),
        ("mrpc", {"metric": "acuracy"}, 'did you mean "accuracy"'),
        ("mrpc", {"metric": "pearson"}, "regression is num_labels = 1"),
        ("stsb", {"num_labels": 2}, "regression is num_labels = 1"),
        ("mrpc", {"standardise": True}, "standardise = true with num_labels = 2; only values have a scale"),
        ("mnli", {"metric": "f1"}, "two labels"),
        ("mrpc", {"num_labels": 0}, "num_labels = 0"),
        ("mrpc", {"holdout": 0}, "holdout = 0"),
    ],
)
def test_contradictions_are_one_clear_line(name, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(name, **given)
    assert "\n" not in str(caught.value)


def test_importing_is_light():
    code = "import sys, distsub.data.tasks; print({'torch', 'datasets', 'numpy', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["nope", "", "rot13", "hex", "undefined", "a\0b"])
def test_encodings_that_are_none(name):
    with pytest.raises(ConfigError, match="unknown encoding"):
        resolve("mine", path="/x", text=("text",), encoding=name)


@pytest.mark.parametrize("name", ["utf-8", "CP1252", "latin-1", "utf-16", "utf-32-le", "shift_jis"])
def test_encodings_of_python(name):
    assert resolve("mine", path="/x", text=("text",), encoding=name).encoding == name
