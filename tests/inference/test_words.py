"""Tokens of the built-in encoders: texts that look different have different tokens, and people's marks are learned."""

import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.data import PreferenceDataset
from harness.inference.features import canonical_encoder, encode_items, encoder_field
from harness.inference.words import ALL_CAPITALS, CAPITALISED, MAX_CACHED_LENGTH, as_displayed, visible_tokens
from harness.method import Run
from harness.methods.per_user import PerUser
from harness.store.store import Store
from harness.task import TextTask
from harness.trials.prepare import prepare_task

SMILE, THUMB, DARK_THUMB, CODER, FLAG = "🙂", "👍", "👍🏿", "👩🏽\u200d💻", "🇩🇪"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("it's 12 o'clock", ["it's", "12", "o'clock"]),
        ("It’s HERE, iPhone", ["it's", "’", CAPITALISED, "here", ALL_CAPITALS, ",", "iphone", "iPhone"]),
        ("wow!!!", ["wow", "!", "!", "!", "!!!"]),
        ("**no** :)", ["*", "*", "**", "no", "*", "*", "**", ":", ")", ":)"]),
        ("a_b += c;", ["a", "_", "b", "+", "=", "+=", "c", ";"]),
        ("- a\n- b", ["\n-", "-", "a", "\n", "\n-", "-", "b"]),
        ("# a\n\n12. b", ["\n#", "#", "a", "\n", "\n", "\n\n", "\n1.", "12", ".", "b"]),
        ("if a:\n    b", ["if", "a", ":", "\n", "    ", "b"]),
        (f"{THUMB}{DARK_THUMB} {CODER} {FLAG}", [THUMB, DARK_THUMB, THUMB + DARK_THUMB, CODER, FLAG]),
        ("我们去 AI湖", ["我", "们", "去", "我们", "们去", "ai", ALL_CAPITALS, "湖"]),
        ("ラーメン。", ["ラ", "ー", "メ", "ン", "ラー", "ーメ", "メン", "。"]),
        ("น้ำดี", ["น้ำ", "ดี", "น้ำดี"]),
        ("हिन्दी 한국어 Ёлка", ["हिन्दी", "한국어", "ёлка", CAPITALISED]),
        ("  \n\u200b ", []),
    ],
)
def test_tokens(text, tokens):
    assert Counter(visible_tokens(text)) == Counter(tokens)


WORDS = [
    "the",
    "lake",
    "don't",
    "straße",
    "größer",
    "e\u0301te\u0301",
    "湖边",
    "東京",
    "ラーメン",
    "สวัสดี",
    "привет",
    "7",
]
MARKS = [".", ",", "!", "?", "!!!", "...", ":)", ":(", "**", "#", "-", "_", "`", "```", "(", "{", "=>", "…", "—", "“"]
MARKS += ["。", "，", SMILE, THUMB, DARK_THUMB, CODER, FLAG, "❤", "❤\ufe0f", "🎉🎉"]
SPACES = [" ", "\n", "\n\n", "\n- ", "\n1. ", "\n# ", "\n    "]
pieces = st.lists(st.tuples(st.sampled_from(WORDS + MARKS), st.sampled_from(SPACES)), min_size=1, max_size=8)


def joined(pieces):
    return "".join(part for piece in pieces for part in piece)


def bag(text):
    return Counter(visible_tokens(text))


@given(pieces, st.data())
def test_a_visible_change_changes_the_tokens(pieces, data):
    """Change the case of a word, put in, take out or replace a mark or a word, or change the space between two words."""
    at = data.draw(st.integers(0, len(pieces) - 1))
    kind = data.draw(st.sampled_from(["case", "piece", "more", "less", "space"]))
    piece, space = pieces[at]
    if kind == "case":
        new = [(data.draw(st.sampled_from([piece.upper(), piece.capitalize()])), space)]
    elif kind == "piece":
        new = [(data.draw(st.sampled_from(WORDS + MARKS)), space)]
    elif kind == "more":
        new = [(data.draw(st.sampled_from(MARKS)), " "), (piece, space)]
    elif kind == "less":
        new = []
    else:
        new = [(piece, data.draw(st.sampled_from(SPACES)))]
    before, after = joined(pieces), joined([*pieces[:at], *new, *pieces[at + 1 :]])
    assume(as_displayed(before) != as_displayed(after))
    assert bag(before) != bag(after)


@given(
    pieces, st.sampled_from(["NFC", "NFD"]), st.sampled_from(["", " ", "\n", "\t \n"]), st.sampled_from(["\r\n", " \n"])
)
def test_what_looks_the_same_has_the_same_tokens(pieces, form, end, line_break):
    text = joined(pieces)
    same = unicodedata.normalize(form, text).replace("\n", line_break).replace("the", "\u200bthe") + end
    assert visible_tokens(same) == visible_tokens(text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=3 * MAX_CACHED_LENGTH))
def test_every_text_has_tokens_unless_it_is_blank(text):
    assert bool(visible_tokens(text)) == bool(as_displayed(text))
    assert all(visible_tokens(text)) and visible_tokens(text) == visible_tokens(as_displayed(text))


ENGLISH = "sure here is the plan for your trip we start early and walk to the lake"
CHINESE = "今天我们去湖边走走然后回家吃饭看书写信听歌"


def plain(rng):
    return " ".join(rng.choice(ENGLISH.split(" "), 8))


def chinese(rng):
    return "".join(rng.choice(list(CHINESE), 8))


def into(parts, mark, rng, space=" "):
    at = int(rng.integers(len(parts) + 1))
    return space.join([*parts[:at], mark, *parts[at:]])


SITUATIONS = {  # what half of the people like and half dislike -> how to make a text without it, and the same text with it
    "emoji": lambda rng: ((text := plain(rng)), into(text.split(), "🎉", rng)),
    "case": lambda rng: ((text := plain(rng)), " ".join([*text.split()[:-1], text.split()[-1].upper()])),
    "capitals": lambda rng: ((text := plain(rng)), text[0].upper() + text[1:]),
    "ellipsis": lambda rng: ((text := plain(rng)) + ".", text + "..."),
    "smile": lambda rng: ((text := plain(rng)), text + " :)"),
    "bold": lambda rng: ((text := plain(rng)), " ".join(["**" + text.split()[0] + "**", *text.split()[1:]])),
    "list": lambda rng: ((text := plain(rng)).replace(" the ", "\n"), "- " + text.replace(" the ", "\n- ")),
    "paragraphs": lambda rng: ((text := f"{plain(rng)} so {plain(rng)}"), text.replace(" so ", "\n\nso ")),
    "chinese": lambda rng: ((text := chinese(rng)), into(text, "请", rng, "")),
    "code": lambda rng: ((text := plain(rng)), into(text.split(), "=> {};", rng)),
}


@dataclass(frozen=True)
class Marks(TextTask):
    """Thirty people choose between texts with and without a mark; every other person likes the mark."""

    encoder: str = encoder_field("hashing-256")
    situation: str = "emoji"
    shots: tuple[int, ...] = (0, 20)
    queries: int = 15

    def build(self, seed, store=None):
        rng, rows = np.random.default_rng(seed), []
        for person in range(30):
            for _ in range(40):
                without, marked = SITUATIONS[self.situation](rng)
                chosen = (marked, without) if person % 2 else (without, marked)
                rows.append((f"p{person}", "plan", *chosen))
        frame = pl.DataFrame(rows, ["user", "prompt", "chosen", "rejected"], orient="row")
        return PreferenceDataset.from_choices(
            frame.unique(maintain_order=True),
            lambda items: encode_items(items.to_arrow(), self.encoder, store),
            columns_share_unit=True,
        )


@pytest.mark.parametrize("encoder", ["hashing-256", "tfidf-svd-12"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_people_who_choose_by_a_mark_are_learned(encoder, situation):
    """Accuracy of `per_user` after 20 choices, half of the people with each taste; a blind encoder gives .5."""
    task, method = Marks(encoder=encoder, situation=situation), PerUser()
    splits = task.split(task.build(0), 0)
    state = method.fit(splits.train, splits.panels["validation"], Run(0))
    test = splits.panels["test"]
    left_wins = method.score(state, method.adapt(state, test.context, Run(0)), test.query).numpy() > 0
    assert (left_wins == (test.query.label > 0.5)).mean() > 0.9


@pytest.mark.parametrize("encoder", ["hashing-32", "tfidf-svd-8"])
def test_data_prepared_with_other_tokens_is_not_read(encoder, tmp_path, monkeypatch):
    store, task = Store(tmp_path / "store").open(), Marks(encoder=encoder)
    now = prepare_task(store, task, 0)
    monkeypatch.setattr("harness.inference.features.WORDS_VERSION", 1)
    assert prepare_task(store, task, 0)["key"] != now["key"]


def test_other_encoders_keep_their_names():
    assert canonical_encoder("numbers") == "numbers"
    assert "words" not in canonical_encoder("transformers:small")
