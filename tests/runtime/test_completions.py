"""Completion tasks from the sweep file to the tables, and what is refused before anything is spent."""

import json
import random

import decoders
import pytest

import distsub
from distsub.cli import main, views
from distsub.learned import updates
from distsub.results import Store

SWEEP = """\
name = "completions"
models = [{{ path = "{model}" }}]
methods = ["did"]
seeds = 1
policy = "bisection"
dims = [8, 32, 128, 512]

[[tasks]]
name = "likely"
path = "{data}"
kind = "completion"
{columns}

[[tasks]]
name = "exact"
path = "{data}"
kind = "completion"
{columns}
metric = "exact_match"
max_new_tokens = 4

[search]
etas = [1.0, 3.0]
learning_rate = 3e-3

[baseline]
learning_rates = [3e-3]

[budget]
steps = {steps}
batch_size = 16
max_length = 32
precision = "fp32"
"""
COLUMNS = 'prompt = "prompt"\ncompletion = "completion"'


def rows(number):
    draw = random.Random(number)
    for i in range(number):
        words = draw.choices(decoders.WORDS[:24], k=draw.randint(3, 8))
        words.insert(draw.randint(0, len(words)), "good" if i % 2 else "bad")
        yield " ".join(words) + " :", "yes" if i % 2 else "no"


@pytest.fixture
def sweep(tmp_path):
    def write(kind="llama", chat=False, steps=60, **changes):
        folder, data = tmp_path / kind, tmp_path / "data"
        folder.mkdir(), data.mkdir()
        model = decoders.make(kind, folder, chat=decoders.CHAT if chat else None)
        for name, number in (("train", 256), ("validation", 96)):
            lines = []
            for prompt, completion in rows(number):
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
                lines.append({"messages": turns} if chat else {"prompt": prompt, "completion": completion})
            (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        columns = 'messages = "messages"' if chat else COLUMNS
        text = SWEEP.format(model=model, data=data, columns=columns, steps=steps)
        for old, new in changes.items():
            text = text.replace(old, new)
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, " ".join((shown.out + shown.err).split())

    return call


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind, chat", [("llama", False), ("llama", True), ("t5", False)])
def test_a_sweep_measures_both_metrics_and_leaves_adapters_that_answer(sweep, run, tmp_path, kind, chat):
    out = tmp_path / "out"
    code, _, said = run("run", sweep(kind, chat), "--out", out, "--backend", "inline", "--plain")
    assert code == 0, said
    found = {row.trial.id: row for row in Store.open(str(out)).read()}
    zero = {row.trial.task.name: row for row in found.values() if row.trial.is_theta_0}
    assert set(zero) == {"likely", "exact"} and zero["likely"].score > 2 and zero["exact"].score < 0.5
    for row in found.values():
        if row.trial.task.metric == "nll":
            assert row.score == pytest.approx(sum(row.predicted) / sum(row.target))
            assert set(row.target) == {3.0 if kind == "t5" else 2.0}, "an answer and its end; <s> before it in T5"
            assert {name for name, _ in row.metrics} == {"nll", "bits_per_byte"}
        else:
            assert set(row.predicted) <= {0.0, 1.0} and set(row.target) == {1.0}
    table = json.loads(run("query", out, "select * from searches", "--format", "json")[1])
    rules = {row["task"]: (row["threshold_rule"], row["chance_rule"]) for row in table}
    assert rules["likely"] == ("theta_0 + 0.9 x (full - theta_0)", "theta_0")
    assert rules["exact"] == ("0.9 x full", "theta_0")
    for row in table:
        if row["task"] == "likely":
            way = row["chance"] + 0.9 * (row["baseline_score"] - row["chance"])
            assert row["threshold"] == pytest.approx(way) and row["threshold"] < row["chance"]
    assert run("report", out)[0] == 0
    best = max(
        (row for row in found.values() if row.trial.d and row.trial.task.metric == "exact_match"),
        key=lambda row: (row.score, -row.trial.d),
    )
    model = distsub.load_adapter(out / "adapters" / best.trial.id)
    tokenizer = decoders.tokenizer(chat=decoders.CHAT if chat else None)
    prompts = [prompt for prompt, _ in rows(96)]
    if chat:
        turns = [[{"role": "user", "content": each}] for each in prompts]
        prompts = [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in turns]
    ids = [tokenizer(each, return_tensors="pt", add_special_tokens=not chat).input_ids for each in prompts]
    plain = model.merge()
    written = [
        plain.generate(each, max_new_tokens=4, do_sample=False, eos_token_id=6 if chat else 2)[0] for each in ids
    ]
    starts = [0 if kind == "t5" else each.shape[1] for each in ids]
    answers = [
        tokenizer.decode(each[start:], skip_special_tokens=True).strip()
        for each, start in zip(written, starts, strict=True)
    ]
    right = sum(answer == completion for answer, (_, completion) in zip(answers, rows(96), strict=True))
    assert right / 96 == pytest.approx(best.score), "what is loaded answers as what was measured"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_learned_subspaces_span_a_language_model_too(sweep, run, tmp_path):
    methods = '["did", "intrinsic", "random", { name = "did", modules = "attention" }]'
    changes = {'["did"]': methods, "[8, 32, 128, 512]": "[8]", "[search]": "[trajectory]\nevery = 5\n\n[search]"}
    path = sweep(steps=40, **changes)
    code, _, shown = run("run", path, "--out", tmp_path / "out", "--backend", "inline", "--plain")
    assert code == 0, shown
    best = {}
    for row in Store.open(str(tmp_path / "out")).read():
        if row.trial.d and row.trial.task.metric == "nll":
            name = (row.trial.method.family, row.trial.method.modules)
            best[name] = min(best.get(name, 99.0), row.score)
    assert best["trajectory", "all"] < best["partition", "all"], "where a fine-tuning went, eight numbers do more"
    assert run("transfer", tmp_path / "out")[0] == 0 and run("outliers", tmp_path / "out")[0] == 0
    store, losses = Store.open(str(tmp_path / "out")), {}
    for row in store.read():
        if row.trial.d and row.trial.task.metric == "nll":
            losses.setdefault(row.trial.setup.id, []).append((row.score, row.trial.id))
    chosen = {each.id for each in updates.learned_updates(store, store.read()) if each.kind == "adapter"}
    assert losses and {min(own)[1] for own in losses.values()} <= chosen, "of the etas the one with the least loss"
    sql = next(sql for question, sql in views.QUESTIONS if "grow" in question)
    shown = json.loads(run("query", tmp_path / "out", sql, "--format", "json")[1])
    best = {row["best"] for row in shown if row["task"] == "likely"}
    assert {min(own)[0] for own in losses.values()} & best and min(best) > 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_length = 32": "max_length = 2"}, "the completion alone has 2 tokens"),
        ({COLUMNS: 'messages = "messages"'}, 'has no column "messages"'),
        ({'metric = "exact_match"': 'metric = "accuracy"'}, "completions have nll or exact_match"),
        ({"max_new_tokens = 4": 'max_new_tokens = 4\nanswer = "#### (.*)"'}, "finds nothing in 256 of 256 completions"),
        ({"[search]": '[threshold]\nchance = "majority"\n\n[search]'}, "chance is always the untouched model's score"),
        ({'completion = "completion"': 'completion = "answer"'}, 'has no column "answer"'),
        ({"max_new_tokens = 4": "max_new_tokens = 60"}, "with max_new_tokens = 60 is more than its 64 positions"),
        ({'["did"]': '["did", "freeze"]'}, "llama on likely: a step of freeze: freeze trains the head, and Llama"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(sweep, run, tmp_path, changes, said):
    code, _, shown = run("run", sweep(**changes), "--out", tmp_path / "out", "--backend", "inline", "--plain")
    assert code == 2 and said in shown, shown
    assert not list((tmp_path / "out").glob("observations/*.parquet"))


def test_answers_that_cannot_be_written_are_told(sweep, run, tmp_path):
    path = sweep()
    for name in ("train", "validation"):
        file = tmp_path / "data" / f"{name}.jsonl"
        file.write_text(file.read_text().replace('"yes"', '"yes no yes no yes"').replace('"no"', '"unheard"'))
    path.write_text(path.read_text().replace("steps = 60", "steps = 1").replace("[8, 32, 128, 512]", "[8]"))
    _, _, shown = run("plan", path)
    assert "48 of 96 completions are not what the tokenizer makes of them" in shown, shown
    assert "48 of 96 completions have more tokens than max_new_tokens = 4" in shown


def test_a_model_that_is_no_language_model_is_refused(sweep, run, tiny_model, tmp_path):
    path = sweep()
    path.write_text(path.read_text().replace(str(tmp_path / "llama"), tiny_model))
    code, _, shown = run("run", path, "--out", tmp_path / "out", "--backend", "inline", "--plain")
    assert code == 2 and "completions need a language model, and its config.json names BertModel" in shown


def test_a_chat_without_a_template_is_refused(sweep, run, tmp_path):
    path = sweep(chat=True)
    decoders.tokenizer().save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "chat_template.jinja").unlink(missing_ok=True)
    code, _, shown = run("run", path, "--out", tmp_path / "out", "--backend", "inline", "--plain")
    assert code == 2 and "messages need a chat template" in shown, shown
