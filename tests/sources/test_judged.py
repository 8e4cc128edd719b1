"""Judgements of every layout become the pairs that a person would write down by hand."""

import itertools

import numpy as np
import polars as pl
import pytest

from harness.errors import UserError
from harness.sources.judged import at_path, merged_columns, pairs_of_judgements, ranks_of_text


def frame_of(**columns):
    n = len(next(iter(columns.values())))
    return pl.DataFrame({"row": range(n), "user": [f"u{i}" for i in range(n)], "prompt": ["Why?"] * n} | columns)


def pairs_of(frame, names=()):
    pairs, notes = pairs_of_judgements(frame, names)
    return set(pairs.select("row", "chosen", "rejected", "label").iter_rows()), notes


def test_a_winner_beats_every_other_response_and_nobody_else_is_compared():
    frame = frame_of(responses=[["x", "y", "z"], ["x", "y"], ["x", "y", "z"]], winner=["b", "tie", "Response_C"])
    found, notes = pairs_of(frame)
    ties = {(1, "x", "y", 0.5)}
    assert found == {(0, "y", "x", 1), (0, "y", "z", 1), (2, "z", "x", 1), (2, "z", "y", 1)} | ties and notes == []


@pytest.mark.parametrize(
    ("winner", "names", "place"),
    [
        ("completion_b", ["completion_a", "completion_b"], 1),
        ("two", ["answer_one", "answer_two"], 1),
        (" A ", [], 0),
        ("model_b", [], 1),
    ],
)
def test_a_winner_has_several_names(winner, names, place):
    found, _ = pairs_of(frame_of(responses=[["x", "y"]], winner=[winner]), names)
    assert found == {(0, "xy"[place], "xy"[1 - place], 1.0)}


def test_places_count_from_0_or_from_1_and_never_by_a_guess():
    responses = [["x", "y", "z"]] * 2
    from_0, _ = pairs_of(frame_of(responses=responses, winner=[0, 1]))
    from_1, _ = pairs_of(frame_of(responses=responses, winner=[3, 1]))
    assert (0, "x", "y", 1.0) in from_0 and (0, "z", "y", 1.0) in from_1
    with pytest.raises(UserError, match="could count from 0 or from 1"):
        pairs_of(frame_of(responses=responses, winner=[1, 2]))
    with pytest.raises(UserError, match=r"row 1 .*user 'u1'.* winner that is no response \('7'\)"):
        pairs_of(frame_of(responses=responses, winner=[0, 7]))


@pytest.mark.parametrize("text", ["B>A=C", " b > a = c", "C=A", "D>C>B>A"])
def test_rankings_are_all_pairs_of_the_order(text):
    """Every two named responses are compared by their places in the text."""
    letters = "ABCD"
    groups = [g.replace(" ", "").upper().split("=") for g in text.split(">")]
    rank = {name: i for i, group in enumerate(groups) for name in group}
    wanted = set()
    for a, b in itertools.combinations(sorted(rank), 2):
        better, worse = (a, b) if rank[a] <= rank[b] else (b, a)
        wanted.add((0, better, worse, 0.5 if rank[a] == rank[b] else 1.0))
    found, _ = pairs_of(frame_of(responses=[list(letters)], ranking=[text]))
    assert found == wanted
    ranks = [float(rank[x]) if x in rank else None for x in letters]
    found, _ = pairs_of(frame_of(responses=[list(letters)], ranking=[ranks]))
    assert found == wanted


@pytest.mark.parametrize("text", ["", "B>", "A>A", "A>Z", "A,B", "AB>C"])
def test_an_unreadable_ranking_is_refused(text):
    assert ranks_of_text(text, 4) is None
    with pytest.raises(UserError, match="row 0 .*user 'u0'.* ranking that cannot be read"):
        pairs_of(frame_of(responses=[list("wxyz")], ranking=[text]))


def test_ratings_of_responses_are_compared_where_there_are_two():
    frame = frame_of(responses=[["x", "y", "z"], ["x", "y", "z"]], ratings=[[3, 5, 3], [None, 2, 1]])
    found, _ = pairs_of(frame)
    assert found == {(0, "y", "x", 1), (0, "y", "z", 1), (0, "x", "z", 0.5), (1, "y", "z", 1)}
    with pytest.raises(UserError, match="row 1 .* another number of ratings than of responses"):
        pairs_of(frame_of(responses=[["x", "y"], ["x", "y"]], ratings=[[1, 2], [1]]))


def test_pairs_that_look_the_same_are_left_out_and_counted():
    frame = frame_of(chosen=["yes", "caf\u00e9", "no"], rejected=["yes ", "cafe\u0301", "yes"])
    found, notes = pairs_of(frame)
    assert found == {(2, "no", "yes", 1.0)} and notes == ["left out: 2 pairs whose two texts look the same"]


@pytest.mark.parametrize("column", ["user", "prompt", "chosen", "rejected"])
def test_the_first_row_without_a_value_is_named(column):
    frame = frame_of(chosen=["a", "b", "c"], rejected=["x", "y", "z"]).with_columns(
        pl.when(pl.col("row") == 1).then(None).otherwise(pl.col(column)).alias(column)
    )
    with pytest.raises(UserError, match=rf"row 1.* nothing in column {column}"):
        pairs_of(frame)


def test_both_sides_of_messages_are_written_alike():
    def said(*turns):
        return [{"role": role, "content": text} for role, text in turns]

    asked, sure, no = ("user", "Why?"), ("assistant", "Sure."), ("assistant", "No.")
    frame = frame_of(
        chosen=[said(asked, sure), said(asked, sure, asked, no)], rejected=[said(asked, no), said(asked, no)]
    )
    pairs, _ = pairs_of_judgements(frame.drop("prompt"))
    assert pairs.select("prompt", "chosen", "rejected").rows() == [
        ("Why?", "Sure.", "No."),
        ("Why?", "Assistant: Sure.\n\nUser: Why?\n\nAssistant: No.", "No."),
    ]
    explicit = frame_of(chosen=[said(sure)], rejected=[said(no)]).with_columns(
        prompt=pl.Series([said(("system", "Be kind."), asked)])
    )
    pairs, _ = pairs_of_judgements(explicit)
    assert pairs["prompt"][0] == "System: Be kind.\n\nUser: Why?"
    as_json = frame_of(
        chosen=['[{"role": "assistant", "content": "Sure."}]'], rejected=['[{"role": "assistant", "content": "No."}]']
    )
    assert pairs_of(as_json)[0] == {(0, "Sure.", "No.", 1.0)}


def test_only_one_side_of_messages_is_refused():
    frame = frame_of(chosen=["Sure."], rejected=[[{"role": "assistant", "content": "No."}]]).drop("prompt")
    with pytest.raises(UserError, match="only one of chosen and rejected holds messages"):
        pairs_of_judgements(frame)


def test_a_message_without_content_is_a_missing_text():
    frame = frame_of(
        chosen=[[{"role": "assistant", "content": None}]], rejected=[[{"role": "assistant", "content": "No."}]]
    )
    with pytest.raises(UserError, match="row 0 .*user 'u0'.* nothing in column chosen"):
        pairs_of_judgements(frame)


def test_the_prompt_of_marked_texts_ends_at_the_last_shared_turn():
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?"
    frame = frame_of(chosen=[f"{start}\n\nAssistant: So."], rejected=[f"{start}\n\nAssistant: Say."]).drop("prompt")
    pairs, _ = pairs_of_judgements(frame)
    assert pairs.select("prompt", "chosen", "rejected").rows() == [(start, "So.", "Say.")]
    mixed = pl.concat([frame, frame_of(chosen=["So."], rejected=["Say."]).drop("prompt")])
    with pytest.raises(UserError, match="row 1 .* share no turn"):
        pairs_of_judgements(mixed)


def test_a_path_reaches_into_structs_and_lists():
    table = pl.DataFrame({"a": [{"b": {"c": 1}}], "l": [[{"t": "x"}, {"t": "y"}]], "row": [0]})
    assert at_path(table, "a.b.c").to_list() == [1] and at_path(table, "l.t").to_list() == [["x", "y"]]
    with pytest.raises(UserError, match="column a has no field d"):
        at_path(table, "a.d")
    with pytest.raises(UserError, match="there is no column z"):
        at_path(table, "z")
    joined = merged_columns(pl.DataFrame({"x": ["1"], "y": ["2"]}), "responses", ["x", "y"])
    assert joined.to_list() == [["1", "2"]]


def test_random_rankings_agree_with_counting():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (50, 5)).astype(float)
    frame = frame_of(responses=[[f"r{i}-{j}" for j in range(5)] for i in range(50)], ratings=scores.tolist())
    pairs, _ = pairs_of_judgements(frame)
    assert len(pairs) == 50 * 10
    assert (pairs["label"] == 0.5).sum() == sum(a == b for row in scores for a, b in itertools.combinations(row, 2))
    for row, chosen, rejected, label in pairs.select("row", "chosen", "rejected", "label").iter_rows():
        a, b = (scores[row, int(text.split("-")[1])] for text in (chosen, rejected))
        assert (a > b) if label == 1 else (a == b)
