"""Files of tables: what could be read in two ways is refused, on every way in."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.data import PreferenceDataset
from harness.errors import UserError
from harness.inference.files import read_text_columns
from harness.table_files import read_table
from tasks.model_raters import read_ratings_file

NAMES = ["user", "prompt", "chosen", "rejected"]
HEAD = ",".join(NAMES) + "\n"
# text as people write it: quotes, commas, backslashes, line breaks, signs of several bytes
TEXTS = st.text(st.sampled_from("ab\",\\\n\r;\t 'é🙂7"), max_size=8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEAD + "ann,p,a,b\n" + HEAD + "bob,p,a,b\n", "line 3 repeats the names of the columns"),
        (HEAD + 'ann,"he said \\"hi\\", ok",a,b\n', "line 2: ',' expected after"),
        (HEAD + 'ann,"ends with \\"",a,b\nbob,p,"c\\"",d\n', "unexpected end of data|expected after"),
        (HEAD + "ann,p,a\n", "line 2 has 3 columns, the first has 4"),
        (HEAD + 'ann,"p"q,a,b\n', "expected after"),
        (HEAD.replace("\n", "\r") + "ann,p,a,b\rbob,p,a,b\r", "end in a carriage return"),
        ((HEAD + "ann,p,a,b\n").encode("utf-16"), "not UTF-8"),
        ((HEAD + "ann,p,a,b\n").encode("utf-16-le"), "not UTF-8"),
        (gzip.compress(HEAD.encode(), mtime=0), "compressed by gzip"),
        (HEAD + "ann,p,a,b\n" + "user,prompt,rejected,chosen\nbob,p,a,b\n", "line 3 repeats the names"),
        (HEAD + "ann,p,a,b\n" + " User, prompt, chosen, rejected\nbob,p,a,b\n", "line 3 repeats the names"),
        (HEAD + "ann,p,a,b\n\ufeff" + HEAD + "bob,p,a,b\n", "line 3 repeats the names"),
    ],
)
def test_a_csv_file_that_could_be_read_in_two_ways_is_refused(tmp_path, content, says):
    file = tmp_path / "choices.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    readers = (PreferenceDataset.from_choices, read_ratings_file, lambda file: list(read_text_columns(file, "prompt")))
    for read in readers:
        with pytest.raises(UserError, match=says) as caught:
            read(file)
        assert str(file) in caught.value.message


def test_a_csv_file_with_several_kinds_of_line_ends_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(HEAD + "ann,p,a,b\rbob,p,a,b\n", newline="")
    with pytest.raises(UserError, match="end in several ways|cannot be read"):
        read_table(tmp_path / "t.csv")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
@example(rows=[("\r", 'a"')])
def test_whatever_a_writer_of_csv_writes_is_read_as_it_was(tmp_path, rows):
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("first", "second"), *rows])
    (tmp_path / "t.csv").write_text(written.getvalue(), newline="")
    assert read_table(tmp_path / "t.csv").rows() == rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ('{"user": 7, "x": 1}\n{"user": "7", "x": 2}\n', r"column user changed from number to string in row 1"),
        ('{"user": "a", "x": 1}\n{"user": "b", "user": "c", "x": 2}\n', r"column user was specified twice in row 1"),
        ('{"user": "a", "m": [{"r": 1, "r": 2}]}\n', r"m.*r was specified twice in row 0"),
        ('{"user": ["a"]}\n{"user": "a"}\n', "changed from array to string"),
        ('{"user": "a"}\n{"user": "a\\ud830"}\n', r"row 1 \(counting from 0\) holds half a character"),
        ('{"user": "a\\udc30"}\n', "row 0 .* holds half a character"),
        ('[{"user": "a"}]', "one JSON array"),
    ],
)
def test_a_jsonl_file_that_could_be_read_in_two_ways_is_refused(tmp_path, rows, says):
    (tmp_path / "t.jsonl").write_text(rows)
    with pytest.raises(UserError, match=says):
        read_table(tmp_path / "t.jsonl")


def test_what_a_jsonl_file_may_have(tmp_path):
    """The mark of UTF-8, and characters of two halves."""
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"user": "\\ud83d\\ude42"}\n\n{"user": "b"}\n')
    assert read_table(tmp_path / "t.jsonl")["user"].to_list() == ["🙂", "b"]


def test_empty_lines_of_a_csv_are_no_rows(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n\n3,\n\n")
    assert read_table(tmp_path / "t.csv").rows() == [("1", "2"), ("3", None)]


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        read_table(tmp_path / "t.csv")


def test_ids_of_jsonl_stay_as_they_are(tmp_path):
    ids = [12345678901234567890, 12345678901234567891, 7]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"user": i}) + "\n" for i in ids))
    assert read_table(tmp_path / "t.jsonl")["user"].to_list() == ids


def test_prompts_of_a_csv_of_ratings_are_names(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,m0\n007,1\n7,2\n")
    assert read_ratings_file(tmp_path / "t.csv")["prompt"].to_list() == ["007", "7"]
