"""The control of form sees marks, layout and length, and no word."""

import numpy as np
import pyarrow as pa
import pytest

from harness.data import TEXT_SCHEMA, Items, Pairs, Panel
from harness.learning.form import COUNTED, FORM_NAMES, form_features
from harness.method import Run
from harness.methods.surface import Surface

COUNTS_BY_HAND = {  # text -> what is counted in it
    "One, two.": {"characters": 9, "words": 2, "commas": 1, "full stops": 1, "capitals": 1},
    "# Head\n\n- a\n- b\n1. c": {"lines": 4, "paragraphs": 1, "headings": 1, "bullets": 2, "numbered": 1},
    "['It\\'s']": {"square brackets": 2, "single quotes": 3, "escapes": 1},
    "caf\u00c3\u00a9 &amp; \ufffd": {"wrong encoding": 2, "entities": 1, "beyond ASCII": 3},
    "**so** `x` (y) {z} |": {"bold": 2, "code": 2, "round brackets": 2, "curly brackets": 2, "tables": 1},
    "\U0001f600 really?!  \u201cyes\u201d": {
        "emoji": 1,
        "questions": 1,
        "exclamations": 1,
        "double spaces": 1,
        "double quotes": 2,
    },
}


@pytest.mark.parametrize("text", COUNTS_BY_HAND)
def test_form_is_counted_as_a_person_would(text):
    found = dict(zip(FORM_NAMES, form_features(pa.array([text]))[0], strict=True))
    for name, count in COUNTS_BY_HAND[text].items():
        assert np.expm1(found[name]) == pytest.approx(count, rel=1e-5), name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[a]", "starts in brackets"),
        ("[a]", "ends in brackets"),
        ("'a'", "starts with a quote"),
        ("no", "is cut"),
        ("no", "starts in lower case"),
        (" No.", "starts with a space"),
        ("No. ", "ends with a space"),
        ("  ", "is empty"),
    ],
)
def test_form_is_seen_where_it_is_and_not_elsewhere(text, name):
    place = FORM_NAMES.index(name)
    assert form_features(pa.array([text, "A plain sentence."]))[:, place].tolist() == [1, 0]


def pairs_of(texts, label):
    n = len(texts) // 2
    user = np.repeat(np.arange(10), n // 10).astype(np.int32)
    rows = np.arange(n, dtype=np.int32)
    text = pa.table({"prompt": [""] * len(texts), "response": texts}).cast(TEXT_SCHEMA)
    return Pairs(user, np.arange(10, dtype=np.int32), 2 * rows, 2 * rows + 1, label, Items(None, text))


def answers(make):
    """Fit the control to 400 pairs whose left response wins, and return how often it prefers left in others."""
    rng = np.random.default_rng(0)
    parts = [pairs_of([t for _ in range(200) for t in make(rng)], np.ones(200, dtype=np.float32)) for _ in range(3)]
    train = pairs_of([t for _ in range(400) for t in make(rng)], np.ones(400, dtype=np.float32))
    method, run = Surface(), Run(0)
    swap = parts[2].swapped()
    state = method.fit(train, Panel(parts[0], parts[1]), run)
    users = method.adapt(state, parts[0], run)
    left, right = method.score(state, users, parts[2]).numpy(), method.score(state, users, swap).numpy()
    assert np.allclose(left, -right)
    return ((left > 0) + (left == 0) / 2).mean()


def test_words_are_not_seen():
    """One side always says `yes`, the other `nay`: the same form."""
    assert answers(lambda rng: ("We say yes.", "We say nay.")) == 0.5


@pytest.mark.parametrize("wrap", ["['{}']", '"{}"', "{}\n", " {}", "- {}", "{}\ufffd"])
def test_traces_of_storage_are_seen(wrap):
    def make(rng):
        said = ["A word." + " And more." * int(rng.integers(5)) for _ in range(2)]
        return said[0], wrap.format(said[1])

    assert answers(make) > 0.97


def test_every_count_is_a_pattern_of_its_own():
    assert len(set(COUNTED.values())) == len(COUNTED) and len(set(FORM_NAMES)) == len(FORM_NAMES)
