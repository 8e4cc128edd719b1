"""A table in a window of any width has its names and whole numbers, and says which columns it lacks."""

import pytest
from rich.console import Console

from harness.report.fitted_table import print_table

HEADS = ["rank", "method", "1", "20", "gain over shared", "worse %"]
LINES = [
    ["1  [1-25]", "lore(weights=simplex) tuned", ".612", ".838", "+.352 (-.024 +.729)", "12 (15)"],
    ["privileged", "[bayes]", "", ".901", "", ""],
]


def printed(width, leave_out=(2, 3, 5)):
    console = Console(width=width, no_color=True)
    with console.capture() as said:
        print_table(console, HEADS, LINES, [1], leave_out)
    return said.get()


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(120, []), (80, []), (72, ["1"]), (66, ["1", "20"]), (54, ["1", "20", "worse %"])],
)
def test_columns_are_left_out_before_a_number_is_cut(width, left_out):
    said = printed(width)
    assert max(map(len, said.splitlines())) <= width
    for head, *cells in zip(HEADS, *LINES, strict=True):
        if head in left_out or head == "method":
            continue
        assert all(cell in said for cell in cells), head
    assert "lore(weights=s" in said and "[bayes]" in said  # the rest of the name is in the next line
    told = f"left out in a window of {width} columns: {', '.join(left_out)}"
    assert (told in said) if left_out else ("left out" not in said)


def test_a_window_with_room_has_names_and_heads_in_one_line():
    said = printed(120)
    assert "lore(weights=simplex) tuned" in said and "gain over shared" in said
    assert len(said.splitlines()) == 6  # an empty line, heads, a rule, two lines, an empty line
