"""A sweep with methods of PEFT, from its file to a d90 each."""

import decoders
import pytest

import distsub
from distsub.cli import main
from distsub.config import parse_sweep
from distsub.errors import ConfigError
from distsub.preflight.checks import check
from distsub.records import label
from distsub.results import Store

pytest.importorskip("peft")

METHODS = """methods = [
  "did",
  { peft = "UNILORA", step = 0.1 },
  { peft = "LORA", step = 0.1, options = { target_modules = ["query", "value"] }, head = "trained" },
]"""


def run(*command):
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    assert ended.value.code in (0, None)


@pytest.fixture
def text(tiny_text):
    found = tiny_text.replace('methods = ["said", "did"]', METHODS).replace("seeds = 2", "seeds = 1")
    return found.replace("[8, 16, 64, 256]", "[16, 100, 300]")


def test_the_grid_is_what_the_method_has(text):
    said = []
    sweep = check(parse_sweep(text), said.append)
    did, unilora, lora = (search.dims for search in sweep.searches())
    assert did == unilora == (16, 100, 300)
    assert lora == (256,)  # rank 1 on four matrices of 32 x 32
    assert [line for line in said if "LORA" in line] == [
        f"note: {sweep.models[0].short_name}: LORA trains at least 256 numbers here; dims go from 16 to 300"
    ]


def test_what_does_not_fit_is_refused_before_anything_is_spent(text):
    with pytest.raises(ConfigError, match="has no option 'rank'; "):
        check(parse_sweep(text.replace("target_modules =", "rank = 2, target_modules =")))


BEFT = """methods = [
  "did",
  { peft = "BEFT", head = "frozen" },
  { peft = "LORA", options = { target_modules = ["query"] } },
  { peft = "LORA", options = { target_modules = ["c_attn"] } },
]"""


def test_a_method_is_left_out_for_the_models_that_it_does_not_fit(text, tmp_path):
    """GPT-2 has no nn.Linear for BEFT, and other names of layers than BERT; the searches of the others stand."""
    gpt2, said = decoders.make("gpt2", tmp_path / "gpt2"), []
    both = text.replace(METHODS, BEFT).replace("models = [", f"models = [{{ path = {str(gpt2)!r} }}, ")
    sweep = check(parse_sweep(both), said.append)
    first, second = sweep.models
    found = [
        (search.model, label(search.method), *getattr(search.method, "options", ())) for search in sweep.searches()
    ]
    assert found == [
        (first, "did"),
        (first, "lora", 'target_modules=["c_attn"]'),
        (second, "did"),
        (second, "beft"),
        (second, "lora", 'target_modules=["query"]'),
    ]
    notes = [line for line in said if "left out" in line]
    assert len(notes) == 3 and all("\n" not in line for line in notes)
    assert notes[0].startswith("note: gpt2: without beft, whose searches are left out: peft = 'BEFT' finds no layer")
    alone = text.replace(METHODS, BEFT).replace(sweep.models[1].name, gpt2)
    with pytest.raises(ConfigError, match=r"^gpt2: peft = 'BEFT' finds no layer of .* which are nn.Linear; leave the"):
        check(parse_sweep(alone))


@pytest.mark.slow
def test_each_method_has_a_d90_beside_did(text, tmp_path, capsys):
    path, out = tmp_path / "sweep.toml", str(tmp_path / "out")
    path.write_text(text)
    command = ["run", str(path), "--out", out, "--backend", "inline", "--plain"]
    run("plan", str(path))
    run(*command)
    rows = [row for row in Store.open(out).table().to_pylist() if row["d"]]
    assert {row["method"] for row in rows} == {"did", "unilora", "lora"}
    assert all(row["num_trained"] == row["d"] for row in rows)
    assert {(row["peft"], row["options"], row["num_trained_head"]) for row in rows if row["peft"]} == {
        ("UNILORA", None, 0),
        ("LORA", 'target_modules=["query", "value"]', 66),
    }
    found = distsub.open(out).d90()
    assert len(found) == 3 and all("d90" in each.text for each in found.values())
    assert max(row["score"] for row in rows if row["method"] == "unilora") > 0.9
    capsys.readouterr()
    run(*command)
    assert "nothing left to do" in capsys.readouterr().out
    run("status", out)
    run("report", out)
    one = next(row for row in rows if row["method"] == "lora")
    capsys.readouterr()
    run("inspect", f"{out}/adapters/{one['trial_id']}")
    assert "lora" in capsys.readouterr().out
