"""Model cards: valid front matter, numbers of the rows, and no path of this machine."""

import dataclasses

import pytest

from distsub.records import Model, Seeds
from distsub.report.card import card
from tests.report.test_answer import ROWS


def rows(observation, model="owner/base"):
    made = [observation(d, score=0.5 + d / 1000) for d in (-90, -60, 100)]
    return [
        dataclasses.replace(
            row, num_trained=row.trial.d, trial=row.trial.vary(model=Model(model), seeds=Seeds(s, s, s))
        )
        for s in (0, 1)
        for row in made
    ]


def test_it_says_what_the_rows_say(observation):
    made = rows(observation)
    text = card("me/mine", made[0], made, ROWS[-1])
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert dict(line.split(": ", 1) for line in front.splitlines())["base_model"] == '"owner/base"'
    assert body.startswith("\n# mine\n") and 'distsub.load("me/mine")' in body
    assert "**30 (95%: 20 to 41)**" in body and f"`{made[0].trial.id}`" not in body and made[0].trial.id in body
    table = [line for line in body.splitlines() if line.endswith("| 2 |")]
    assert len(table) == 3 and f"| {made[0].trial.d:,} | {made[0].score:.4f} | 2 |" in table


def test_it_says_what_a_fit_scored_on_unseen_rows(observation):
    made = rows(observation)
    text = card("me/mine", made[0], made, None, {"unseen_score": 0.71239, "unseen_examples": 1234})
    assert "On 1,234 rows that neither training nor search looked at: **accuracy 0.7124**." in text
    for none in (None, {}, {"unseen_score": None}):
        assert "neither training" not in card("me/mine", made[0], made, None, none)


@pytest.mark.parametrize("d90", [None, ROWS[0]])
def test_a_base_in_a_folder_is_named_without_its_place(observation, d90):
    made = rows(observation, "/home/somebody/secret/minilm")
    text = card("me/mine", made[0], made[:1], d90)
    assert "/home" not in text and "secret" not in text and "base_model" not in text
    assert 'base="WHERE minilm LIES"' in text
    assert ("none: undecided" in text) == (d90 is not None)
