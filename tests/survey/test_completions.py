"""`distsub init --data` with completions: which columns they are, and a sweep file that plan takes."""

import json

import decoders
import pytest

from distsub import cli
from distsub.config import load_sweep
from distsub.data.dataset import Split
from distsub.errors import ConfigError, DataError, UnavailableError
from distsub.finetune import completions
from distsub.survey import proposal
from distsub.survey.completions import columns, look

ROWS = [{"prompt": f"w{i % 24} good :", "completion": f" {['yes', 'no'][i % 2]}"} for i in range(40)]
CHATS = [
    {"id": i, "messages": [{"role": "user", "content": f"w{i % 24}"}, {"role": "assistant", "content": "yes"}]}
    for i in range(40)
]
TWO = {"prompt": "prompt", "completion": "completion"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {kind: decoders.make(kind, folder / kind) for kind in ("llama", "t5")}
    return made | {"chat": decoders.make("llama", folder / "chat", decoders.CHAT)}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize(
    "kind, rows, named",
    [
        ("llama", ROWS, TWO),
        ("t5", ROWS, TWO),
        ("chat", CHATS, {"messages": "messages"}),
    ],
)
def test_rows_to_complete_become_a_sweep_that_plan_takes(tmp_path, capsys, models, kind, rows, named):
    path, data = tmp_path / "mine.toml", write(tmp_path / "rows.jsonl", rows)
    for command in (["init", path, "--data", data, "--model", models[kind]], ["plan", path]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, command)])
        out, err = capsys.readouterr()
        assert ended.value.code in (0, None), err
        if command[0] == "init":
            assert "40: 32 to train on, 8 to evaluate on" in out and "metric   nll: " in out and "by name" in out
    [task] = load_sweep(path).tasks
    columns = {"messages": task.label} if task.is_chat else {"prompt": task.text[0], "completion": task.label}
    assert task.is_completion and task.metric == "nll" and columns == named


def test_what_is_said_of_the_columns_counts(tmp_path, models, tiny_model):
    data = write(tmp_path / "rows.jsonl", [row | {"label": row["completion"]} for row in ROWS])
    assert columns(data, models["llama"], {}) == TWO
    assert columns(data, models["llama"], {"label": "label", "text": "prompt"}) == {}
    assert columns(data, tiny_model, {}) == {}  # an encoder tells classes, and there is a label
    named = {"prompt": "prompt", "completion": "label"}
    assert columns(data, tiny_model, named) == named
    with pytest.raises(ConfigError, match=r"completions need a language model, and its config.json names BertModel"):
        look(data, tiny_model, named, named)
    with pytest.raises(ConfigError, match="both --prompt and --completion"):
        columns(data, models["llama"], {"prompt": "prompt"})
    with pytest.raises(ConfigError, match=r"give --label .* or --prompt"):
        columns(data, models["llama"], named | {"label": "label"})
    with pytest.raises(DataError, match=r"is no model that generates: give --model a decoder"):
        columns(write(data, ROWS), tiny_model, {})
    with pytest.raises(UnavailableError, match="messages need a chat template"):
        look(write(data, CHATS), models["llama"], {"messages": "messages"}, {})


def test_the_length_holds_every_completion(tmp_path, models):
    long = {"prompt": "w1 w2 w3", "completion": " ".join(["yes"] * 30)}
    data = write(tmp_path / "rows.jsonl", [*ROWS * 5, long] * 2)
    for kind, least in (("llama", 33), ("t5", 32)):  # with <s>, its end and a token of the prompt, which T5 reads apart
        facts = look(data, models[kind], TWO, {"holdout": 1})
        assert facts.least == least and facts.lengths[1] < 8
        assert proposal.propose(facts).max_length == 8 * -(-least // 8)
    too_long = [long | {"completion": " ".join(["yes"] * 80)}] * 4
    with pytest.raises(DataError, match=r"has 81 tokens, .* takes 64 with its prompt; leave such rows out"):
        look(write(data, too_long), models["llama"], TWO, {})


def test_empty_completions_are_left_out_and_said(tmp_path, models):
    data = write(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "w1", "completion": " "}])
    facts = look(data, models["llama"], TWO, {})
    assert facts.task.empty == "drop" and facts.empty_cells == (("completion", 1),)
    assert "completion 1; their rows are left out" in "\n".join(proposal.describe(facts, proposal.propose(facts)))


def test_completions_that_touch_their_prompts_are_said():
    assert completions.joined(Split((["Sentiment:", "a "],), [" positive", "b"])) == ""
    assert completions.joined(Split((["Sum:\n", "a:", ""],), ["1", "b", "c"])) == ""
    said = completions.joined(Split((["Review: it was good. Sentiment:"],), ["positive"]))
    assert said.startswith("nothing stands between prompt and completion, as in 'was good. Sentiment:positive'")
