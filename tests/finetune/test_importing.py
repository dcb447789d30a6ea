"""Checkpoints from elsewhere as a trajectory: the numbers of a recorded one, and everything that is no series."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distsub.errors import DistsubError, OutputError, TrajectoryError
from distsub.finetune import importing, trajectory
from distsub.models import pretrained


def checkpoints(folder):
    return [str(folder / f"checkpoint-{step}") for step in (40, 10, 30, 20)]  # in no order


def test_an_import_is_the_recording_to_the_bit(series, tmp_path):
    found = importing.import_checkpoints(str(series / "theta_0"), checkpoints(series), tmp_path / "it", "float32")
    recorded = trajectory.load(series / "recorded")
    assert found.steps == recorded.steps == (10, 20, 30, 40)
    assert found.hashes == recorded.hashes and found.parameters == recorded.parameters
    assert found.meta["left_out"] == [] and found.meta["num_labels"] == 2
    assert {file.name for file in tmp_path.iterdir()} == {"it"}
    listed = importing.listing(found).to_pylist()
    assert [row["checkpoint"] for row in listed] == [str(series / f"checkpoint-{step}") for step in (10, 20, 30, 40)]
    assert all(row["update_norm"] > 0 for row in listed)


def test_a_base_without_a_head_leaves_the_head_out(series, tiny_model, tmp_path):
    found = importing.import_checkpoints(tiny_model, checkpoints(series), tmp_path / "it")
    recorded = trajectory.load(series / "recorded")
    assert found.meta["left_out"] == ["classifier.bias", "classifier.weight"]
    assert {name for name, _ in recorded.parameters} - {name for name, _ in found.parameters} == {
        "classifier.bias",
        "classifier.weight",
    }
    for ours, theirs in zip(found.updates, recorded.updates, strict=True):
        assert all(torch.equal(ours[name], theirs[name].bfloat16()) for name in ours)
    assert found.meta["weights_sha256"] == recorded.meta["weights_sha256"]  # it may stand for the recorded one
    assert found.content != recorded.content


def test_the_content_says_what_it_is_wherever_it_lies(series, tiny_model, tmp_path):
    shutil.copytree(series, tmp_path / "moved")
    one, other = (
        importing.import_checkpoints(tiny_model, checkpoints(folder), tmp_path / f"it{number}")
        for number, folder in enumerate((series, tmp_path / "moved"))
    )
    less = importing.import_checkpoints(tiny_model, checkpoints(series)[1:], tmp_path / "less")
    assert one.content == other.content != less.content
    assert trajectory.elsewhere(str(tmp_path / "it0"))[1] == trajectory.elsewhere(str(tmp_path / "it1"))[1]


def edited(folder, edit, **config):
    """Change a checkpoint's tensors in place, and its configuration."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(about))


def stateless(folder, name):
    """Let the names of checkpoints say their steps, and one of them another."""
    for place in folder.glob("checkpoint-*"):
        (place / "trainer_state.json").unlink()
    (folder / "checkpoint-20").rename(folder / name)


def another_width(folder):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(folder, intermediate_size=80)
    BertForSequenceClassification(config).save_pretrained(folder)


def another_kind(folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WRONG = [
    ("no step", lambda c: stateless(c.parent, "final"), "final has neither a trainer_state.json nor a name that ends"),
    ("a tie", lambda c: stateless(c.parent, "other-30"), "checkpoint-30 and .*other-30 are both of step 30"),
    ("no number", lambda c: (c / "trainer_state.json").write_text("{}"), "checkpoint-20 has no global_step in its"),
    ("another width", another_width, r"intermediate.dense.weight is \[64, 32\] in .*, it has \[80, 32\]"),
    ("another kind", another_kind, "checkpoint-20 is of gpt2 GPT2LMHeadModel, the first of bert BertForSequence"),
    (
        "another setting",
        lambda c: edited(c, lambda t: None, num_attention_heads=4),
        "has num_attention_heads = 4, the base .* 2",
    ),
    (
        "without a head",
        lambda c: edited(c, lambda t: [t.pop(name) for name in ("classifier.weight", "classifier.bias")]),
        r"checkpoint-20 lacks classifier.bias \[2\], which those before it have",
    ),
    ("cut short", lambda c: edited(c, lambda t: t.pop(QUERY)), "model .*checkpoint-20': its weights lack 1 tensors"),
    ("not finite", lambda c: edited(c, lambda t: t[QUERY][3].fill_(float("nan"))), f"20 holds .*not finite in {QUERY}"),
    (
        "the base",
        lambda c: shutil.copy(c.parent / "theta_0" / "model.safetensors", c),
        "checkpoint-20 is the base .*theta_0 itself, which gives no direction",
    ),
    (
        "one twice",
        lambda c: shutil.copy(c.parent / "checkpoint-10" / "model.safetensors", c),
        "checkpoint-10 and .*checkpoint-20 hold the same weights",
    ),
    ("not there", lambda c: shutil.rmtree(c), "checkpoint-20' is no directory"),
    ("no weights", lambda c: (c / "model.safetensors").unlink(), "no weights in it"),
]


@pytest.mark.parametrize(("harm", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_no_series_is_refused_in_one_line_and_leaves_nothing(series, tmp_path, harm, message):
    folder = shutil.copytree(series, tmp_path / "series")
    given = checkpoints(folder)
    harm(folder / "checkpoint-20")
    if not Path(given[-1]).is_dir() and "not there" not in message and "no directory" not in message:
        given[-1] = str(next(each for each in folder.iterdir() if each.name in ("final", "other-30")))
    with pytest.raises(DistsubError, match=message) as refused:
        importing.import_checkpoints(str(folder / "theta_0"), given, tmp_path / "it", "float32")
    assert "\n" not in str(refused.value)
    assert {file.name for file in tmp_path.iterdir()} == {"series"}


def test_a_base_of_another_kind_and_one_that_is_not_finite(series, tmp_path):
    another_kind(tmp_path / "gpt")
    with pytest.raises(TrajectoryError, match=r"is of model_type bert, the base .*gpt of gpt2; give the base"):
        importing.import_checkpoints(str(tmp_path / "gpt"), checkpoints(series), tmp_path / "it")
    base = shutil.copytree(series / "theta_0", tmp_path / "base")
    edited(base, lambda tensors: tensors[QUERY].fill_(float("inf")))
    with pytest.raises(TrajectoryError, match=f"the base .*base holds numbers that are not finite in {QUERY}"):
        importing.import_checkpoints(str(base), checkpoints(series), tmp_path / "it")


def test_a_folder_that_is_there_is_not_written_over(series, tmp_path):
    (tmp_path / "it").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        importing.import_checkpoints(str(series / "theta_0"), checkpoints(series), tmp_path / "it")
    with pytest.raises(OutputError, match="no folder of this machine"):
        importing.import_checkpoints(str(series / "theta_0"), checkpoints(series), "s3://bucket/it")


KILLED = """
import os, sys
from distsub.finetune import importing
from distsub.models import tensor_files
real = tensor_files.write
def write(path, *given):
    done = real(path, *given)
    if path.name == "step-000030.safetensors":
        os.kill(os.getpid(), 9)
    return done
tensor_files.write = write
importing.import_checkpoints(sys.argv[1], sys.argv[3:], sys.argv[2])
"""


@pytest.mark.slow
def test_one_that_was_killed_leaves_no_trajectory_and_the_next_tidies_up(series, tmp_path, warm):
    arguments = [str(series / "theta_0"), str(tmp_path / "it"), *checkpoints(series)]
    done = warm.run("-c", KILLED, *arguments)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "it").exists() and list(tmp_path.iterdir())
    found = importing.import_checkpoints(arguments[0], arguments[2:], tmp_path / "it")
    assert len(found.steps) == 4 and {file.name for file in tmp_path.iterdir()} == {"it"}


def test_names_and_revisions_say_the_step(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "series")
    stateless(folder, "checkpoint-000020/".rstrip("/"))
    given = [*checkpoints(folder)[:3], str(folder / "checkpoint-000020")]
    assert [each.step for each in importing.in_order(given)] == [10, 20, 30, 40]
    assert importing._split("org/name@step1000") == ("org/name", "step1000")
    assert importing._split(str(folder)) == (str(folder), None)


def test_checkpoints_in_half_precision_are_widened_and_nothing_is_left_in_the_cache(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "series")
    for place in (*folder.glob("checkpoint-*"), folder / "theta_0"):
        edited(place, lambda tensors: tensors.update({name: each.bfloat16() for name, each in tensors.items()}))
    before = set(pretrained.cache_directory().iterdir())
    found = importing.import_checkpoints(str(folder / "theta_0"), checkpoints(folder), tmp_path / "it", "float32")
    theta_0, last = (load_file(folder / name / "model.safetensors") for name in ("theta_0", "checkpoint-40"))
    assert torch.equal(found.updates[-1][QUERY], last[QUERY].float() - theta_0[QUERY].float())
    assert len(set(pretrained.cache_directory().iterdir()) - before) <= 2  # the base's, and its lock


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """Checkpoints of a tiny causal model, as its trainer saves them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    tokens = torch.randint(0, 60, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 4):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save_pretrained(folder / f"checkpoint-{step}")
    return folder


def test_a_causal_model_with_its_output_layer(causal, tmp_path):
    given = [str(causal / f"checkpoint-{step}") for step in (3, 2, 1)]
    found = importing.import_checkpoints(str(causal / "base"), given, tmp_path / "it", "float32")
    assert found.meta["left_out"] == [] and found.meta["num_labels"] == 0 and found.steps == (1, 2, 3)
    base, last = (load_file(causal / name / "model.safetensors") for name in ("base", "checkpoint-3"))
    assert set(found.updates[-1]) == set(base) and "lm_head.weight" in base
    assert all(torch.equal(found.updates[-1][name], last[name] - base[name]) for name in base)
    assert found.meta["weights_sha256"] == pretrained.prepare(str(causal / "base")).sha256
