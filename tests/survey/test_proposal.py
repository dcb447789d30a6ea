"""`distsub init --data`: what is seen of a person's file, and a sweep file that plan takes."""

import random
import tomllib

import pytest

from distsub import cli
from distsub.config import load_sweep
from distsub.data import dataset
from distsub.errors import DistsubError
from distsub.survey import proposal
from distsub.survey.labelled import survey

TEAMS = {"access": 12, "billing": 40, "other": 8}


def rows(seed=0, empty=3):
    draw, found = random.Random(seed), []
    for team, number in TEAMS.items():
        for i in range(number):
            words = " ".join(draw.choices([f"w{k}" for k in range(40)], k=draw.randint(2, 5)))
            found.append([words, "" if team == "other" and i < empty else f"w1 {words} ü", team])
    draw.shuffle(found)
    return found


def write(path, table, separator=",", encoding="utf-8", header=("subject", "body", "team")):
    lines = [separator.join(f'"{cell}"' for cell in row) for row in [header, *table]]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def init(capsys, *arguments, command="init"):
    """Run init, or another command, in this process; give (exit code, stdout, stderr)."""
    try:
        cli.main([command, *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("name", "separator", "encoding", "said"),
    [
        ("t.csv", ",", "utf-8", "separator comma"),
        ("t.csv", ";", "cp1252", "cp1252"),
        ("t.tsv", "\t", "utf-8-sig", "separator tab"),
        ("my data, all.csv", ";", "utf-8", "separator semicolon"),
        ('say "x" ünd.csv', ",", "utf-8", "separator comma"),
    ],
)
def test_a_file_becomes_a_sweep_that_reads_the_same_rows(tmp_path, capsys, tiny_model, name, separator, encoding, said):
    write(tmp_path / name, rows(), separator, encoding)
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "mine.toml"
    columns = ["--text", "subject,body", "--label", "team"]
    code, out, err = init(capsys, path, "--data", tmp_path / name, "--model", tiny_model, *columns)
    assert code == 0, err
    assert said in out and "60: 48 to train on, 12 to evaluate on" in out and "body 3; kept" in out
    assert "3 classes: access 12, billing 40, other 8" in out and "macro_f1, since classes are uneven" in out
    (task,) = load_sweep(path).tasks
    assert task.labels == ("access", "billing", "other") and task.text == ("subject", "body")
    assert (task.empty, task.holdout, task.metric) == ("keep", 0.2, "macro_f1")
    splits = dataset.load(task, load_sweep(path).budget)
    everything = sorted(zip(*splits.train.texts, strict=True)) + sorted(zip(*splits.validation.texts, strict=True))
    assert sorted(everything) == sorted((subject, body) for subject, body, _ in rows())
    code, _, err = init(capsys, path, "--data", tmp_path / name)
    assert code == 2 and "exists already" in err


def test_plan_takes_what_init_writes_for_a_small_model(tmp_path, capsys, tiny_model):
    write(tmp_path / "t.csv", rows())
    path = tmp_path / "mine.toml"
    columns = ["--text", "subject,body", "--label", "team"]
    code, _, err = init(capsys, path, "--data", tmp_path / "t.csv", "--model", tiny_model, *columns)
    assert code == 0, err
    code, out, err = init(capsys, path, command="plan")
    assert code in (None, 0) and "training steps" in out, err


def test_columns_are_chosen_by_name_or_listed(tmp_path, tiny_model):
    file = write(tmp_path / "a.csv", rows(empty=0), header=("subject", "body", "Category"))
    facts = survey(file, tiny_model)
    assert (facts.task.text, facts.task.label, len(facts.guessed)) == (("subject", "body"), "Category", 2)
    write(file, [row[:2] for row in rows()], header=("p", "q"))
    with pytest.raises(DistsubError, match=r"which column of .* is the label\? give --label; columns: p \(w"):
        survey(file, tiny_model)
    write(file, rows(), header=("p", "q", "r"))
    with pytest.raises(DistsubError, match="is the text"):
        survey(file, tiny_model, label="r")
    with pytest.raises(DistsubError, match=r'no column "bod" in .*columns: p'):
        survey(file, tiny_model, text="bod", label="r")
    with pytest.raises(DistsubError, match="3 columns; allowed"):
        survey(file, tiny_model, text="p,q,r")
    with pytest.raises(DistsubError, match="also in --text"):
        survey(file, tiny_model, text="p,r", label="r")


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, "team"),
        ({"id": lambda i: i}, "team"),
        ({"customer": lambda i: f"c{i % 12}", "opened": lambda i: f"2024-01-{i % 25 + 1:02}"}, "team"),
        ({"always": lambda i: "x"}, "team"),
        ({"priority": lambda i: "high" if i % 3 else "low"}, None),
    ],
)
def test_the_one_column_of_few_values_that_repeat_is_the_label(tmp_path, tiny_model, more, found):
    table = [[*row, *(str(value(i)) for value in more.values())] for i, row in enumerate(rows(empty=0))]
    file = write(tmp_path / "t.csv", table, header=("subject", "body", "team", *more))
    if found is None:
        with pytest.raises(DistsubError, match="is the label: team or priority\\? give --label"):
            survey(file, tiny_model)
        assert survey(file, tiny_model, label="priority").task.labels == ("high", "low")
        return
    facts = survey(file, tiny_model)
    assert (facts.task.text, facts.task.label) == (("subject", "body"), found)
    assert facts.guessed[0].startswith('label: column "team", by its 3 values that repeat')


def test_many_classes_are_a_label_where_no_column_has_few(tmp_path, tiny_model):
    table = [[f"w{i % 40} w{i} x", f"intent {i % 15}", str(i)] for i in range(90)]
    facts = survey(write(tmp_path / "t.csv", table, header=("utterance", "meant", "number")), tiny_model)
    assert (facts.task.label, facts.task.num_labels) == ("meant", 15)


ADVISED = {
    "many": ([[f"w{i} w{i % 7}", f"c{i % 40}"] for i in range(120)], "utf-8", "num_labels = 40", 40),
    "halves": (
        [[f"w{i}", ("1.5", "2.5", "NA")[i % 3]] for i in range(60)],
        "utf-8",
        'labels = ["1.5", "2.5", "NA"]',
        3,
    ),
    "quotes": ([[f"it's w{i}", ("a", "b")[i % 2]] for i in range(60)], "utf-16-le", 'encoding = "utf-16-le"', 2),
}


@pytest.mark.parametrize("case", ADVISED)
def test_what_a_message_advises_can_be_done(tmp_path, capsys, tiny_model, case):
    table, encoding, key, number = ADVISED[case]
    data, path = write(tmp_path / "t.csv", table, encoding=encoding, header=("text", "label")), tmp_path / "t.toml"
    code, _, err = init(capsys, path, "--data", data, "--model", tiny_model)
    name = key.partition(" ")[0]
    assert code == 2 and f"{name} = " in err and "--set 'KEY = VALUE'" in err and err.count("\n") == 1
    code, _, err = init(capsys, path, "--data", data, "--model", tiny_model, "--set", key)
    assert code == 0, err
    (task,) = load_sweep(path).tasks
    assert dataset.load(task, load_sweep(path).budget).task.num_labels == number


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("num_labels 3", "write it as in a sweep file"),
        ("num_labels = 3.5", "num_labels should be a whole number"),
        ("labels = 3", "labels should be a list"),
        ("num_label = 3", 'did you mean "num_labels"?'),
        ("num_labels = 7", "has 3 different labels"),
        ('separator = ";;"', "one character"),
        ('empty = "perhaps"', "empty"),
    ],
)
def test_a_key_that_cannot_be_set_is_one_line(tmp_path, capsys, tiny_model, key, said):
    data = write(tmp_path / "t.csv", rows(empty=0))
    code, _, err = init(capsys, tmp_path / "t.toml", "--data", data, "--model", tiny_model, "--set", key)
    assert code == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "t.toml").exists()


def test_values_are_a_regression_and_ids_are_refused(tmp_path, tiny_model):
    table = [[f"w{i % 40} w{i}", f"{i / 7:.2f}"] for i in range(60)]
    facts = survey(write(tmp_path / "v.csv", table, header=("text", "score")), tiny_model)
    proposed = proposal.propose(facts)
    assert (facts.task.num_labels, proposed.metric) == (1, "pearson")
    path = tmp_path / "v.toml"
    path.write_text(proposal.toml(facts, proposed, tiny_model, tmp_path))
    (task,) = load_sweep(path).tasks
    assert task.standardise and dataset.load(task, load_sweep(path).budget).train.scale is not None
    for spelling in ("id{}", "{}"):
        table = [[text, spelling.format(i)] for i, (text, _) in enumerate(table)]
        with pytest.raises(DistsubError, match="regression or an id column"):
            survey(write(tmp_path / "v.csv", table, header=("text", "label")), tiny_model)


def test_rows_without_a_label_are_left_out_and_said(tmp_path, tiny_model):
    table = [["w1 w2", "pos"], ["w3", "neg"], ["", "neg"], ["w4", ""]] * 10
    facts = survey(write(tmp_path / "t.csv", table, header=("text", "label")), tiny_model)
    assert facts.task.empty == "drop" and facts.train + facts.validation == 20 and facts.rows == 40
    assert dict(facts.empty_cells) == {"text": 10, "label": 10}
    assert "text 10, label 10; their rows are left out" in "\n".join(proposal.describe(facts, proposal.propose(facts)))


def test_validation_from_a_file_a_folder_or_held_out(tmp_path, tiny_model):
    train = write(tmp_path / "train.csv", rows(empty=0))
    other = write(tmp_path / "dev.csv", rows(1, empty=0))
    columns = {"text": "subject", "label": "team"}
    assert survey(train, tiny_model, **columns, validation=other).validation == 60
    assert survey(tmp_path, tiny_model, **columns).task.validation == "dev"
    held = survey(tmp_path, tiny_model, **columns, holdout=10)
    assert (held.task.validation, held.train, held.validation) == (None, 50, 10)
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    with pytest.raises(DistsubError, match="beside --data"):
        survey(train, tiny_model, **columns, validation=write(elsewhere / "dev.csv", rows()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.csv"], "no file"),
        (["--label", "team"], "give --data too"),
        (["--data", "a.csv", "--task", "mrpc"], "not both"),
        (["--data", "a.csv", "--holdout", "0"], "allowed: a share"),
        (["--data", "a.csv", "--holdout", "1.5"], "allowed: a share"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line_and_writes_nothing(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", rows())
    code, _, err = init(capsys, "mine.toml", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "mine.toml").exists()


@pytest.mark.parametrize("text", ['say "x"', "C:\\new", "ünï → 😀", "a\tb\nc", "\x7f\x01", "'", "#[]="])
def test_any_text_is_a_toml_string(text):
    assert tomllib.loads(f"x = {proposal.quoted(text)}")["x"] == text
