"""Ids of people: two different ones never become one person, and one person never becomes two in silence."""

import re
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import PreferenceDataset
from harness.errors import UserError
from harness.rows import user_numbers
from harness.sameness import same_writing

LOOKS_LIKE_NUMBERS = [
    "1",
    "01",
    "1.5",
    "1e0",
    "1E0",
    "+1",
    "0x1",
    "1_0",
    "9007199254740993",
    "9007199254740992",
    "inf",
    "nan",
]


@pytest.mark.parametrize("form", [list, np.array, pl.Series, lambda ids: np.array(ids, dtype=object), pd.Series])
def test_ids_that_look_like_numbers_stay_apart(form):
    names, number = user_numbers(form(LOOKS_LIKE_NUMBERS * 2))
    assert names == sorted(LOOKS_LIKE_NUMBERS)
    assert [names[i] for i in number] == LOOKS_LIKE_NUMBERS * 2


def test_ids_in_a_csv_file_stay_as_they_are_written(tmp_path):
    """Read as numbers, these twelve ids would be nine people."""
    lines = [f"{user},p{k},a{user}{k},b{user}{k}" for user in LOOKS_LIKE_NUMBERS for k in range(2)]
    (tmp_path / "choices.CSV").write_text("\ufeffuser,prompt,chosen,rejected\n" + "\n".join(lines) + "\n")
    data = PreferenceDataset.from_choices(tmp_path / "choices.CSV")
    assert data.users["id"].to_pylist() == sorted(LOOKS_LIKE_NUMBERS)


@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1))
def test_any_text_is_an_id(ids):
    """Whatever the ids, rows of one id and only those have one number; ids that look the same are refused."""
    try:
        names, number = user_numbers(ids)
    except UserError as error:
        forms = {re.sub(r"(?<=\d)\.0+$", "", same_writing(name)) for name in ids}
        assert len(forms) < len(set(ids)) or "" in forms, error
        return
    assert [names[i] for i in number] == ids and len(set(names)) == len(names)


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1))
def test_any_whole_number_is_an_id(ids):
    names, number = user_numbers(ids)
    assert [int(names[i]) for i in number] == ids


def test_whole_numbers_are_in_numeric_order():
    assert user_numbers(np.array([10, 9, 100]))[0] == ["9", "10", "100"]
    assert user_numbers([uuid.UUID(int=2), uuid.UUID(int=1)])[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ([1.0, 2.0], "neither text nor a whole number"),
        (np.array([1.0, 2.0**53 + 2]), "float64, not names or whole numbers; two ids may have become one"),
        (pl.Series([1.5, 2]), "Float64, not names"),
        ([1, "1"], r"row 1 \(counting from 0\) has an id that is neither"),
        ([True, False], "neither text nor a whole number"),
        (pl.Series([{"id": 1}, {"id": 2}]), "Struct.*, not names"),
        ([["a"], ["b"]], "neither text nor a whole number"),
        ([b"a", b"b"], "neither text nor a whole number"),
        (["1", "2", "1.0"], "'1' and '1.0' look the same"),
        (["ann", "bob", "ann "], "'ann' and 'ann ' look the same"),
        (["Zo\u00eb", "Zoe\u0308"], "look the same"),
        (["ann", "an\u200bn"], "look the same"),
        (["a", "  "], r"row 1 \(counting from 0\) has no user"),
        (["a", None], "row 1 .* has no user"),
    ],
)
def test_what_may_have_merged_or_split_people_is_refused(user, says):
    with pytest.raises(UserError, match=says):
        user_numbers(user)
