"""Old words stay out of the code: names of classes, functions, arguments and variables use the glossary's words."""

import io
import re
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "distsub"

OLD = {
    "lineage": "setup or condition",
    "kin": "precision, or what they share",
    "elder": "earlier seed",
    "elders": "earlier seeds",
    "younger": "later seed",
    "teach": "share",
    "taught": "shared",
    "stranger": "unrelated row",
    "strangers": "unrelated rows",
    "complain": "message",
    "complaint": "message",
    "complaints": "messages",
    "mend": "fix",
    "way": "method label, or what it is",
    "ways": "method labels, or what they are",
    "variant": "method label",
    "worth": "rank or score",
    "told": "message, or what it is",
    "healing": "remedy",
    "whoever": "name the thing",
    "nobody": "name the thing",
    "anybody": "name the thing",
    "recalled": "read",
}
"""Words that are gone from identifiers, and what to write in their place."""


def parts(name):
    """Split an identifier into lower-case words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def names(text):
    """Give the identifiers of a module with their lines."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.string, token.start[0]) for token in tokens if token.type == tokenize.NAME]


def old_words(text):
    """Give the old words in identifiers, with their lines."""
    return [(name, line) for name, line in names(text) for part in parts(name) if part in OLD]


def test_no_identifier_has_an_old_word():
    found = {
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file in PACKAGE.rglob("*.py")
        for name, line in old_words(file.read_text())
    }
    assert not found, "\n".join(sorted(found)) + f"\nwords to use: {OLD}"


def test_an_old_word_is_found_in_any_case():
    assert [name for name, _ in old_words("is_told = Strangers(elderSeed)\n'told'  # told\n")] == [
        "is_told",
        "Strangers",
        "elderSeed",
    ]
