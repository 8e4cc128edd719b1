"""A variant stands in the row of its method: it changes nothing for the others, and what it changes itself is told."""

import json

import numpy as np
import pytest
from scipy.stats import t

from harness.board.make import make_board
from harness.report.page.html import render_page
from harness.report.terminal import print_board
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tests.board.test_across import SUITE

PLAIN = SUITE.partition('[[tasks]]\nname = "snacks"')[0]
TUNED = PLAIN.replace("skip_unavailable", 'tune = { trials = 4, methods = ["rfm"] }\nskip_unavailable')


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Return the board without and with the variant, of the same results."""
    folder, found = tmp_path_factory.mktemp("variants"), []
    store = Store(folder / "store").open()
    for name, text in (("plain", PLAIN), ("tuned", TUNED)):
        (folder / f"{name}.toml").write_text(text)
        plan = make_plan(read_suite(folder / f"{name}.toml"), store)
        assert all(done for _, done in finish_trials(list(plan.trials), store))
        found.append(make_board(plan, store))
    return found


def accuracies(board, label):
    rows = [next(r for r in task.rows if r.label == label) for task in board.tasks]
    return np.array([row.curves["accuracy"][task.shots].value for row, task in zip(rows, board.tasks, strict=True)])


def test_a_variant_is_no_opponent_of_other_methods(boards):
    plain, tuned = boards
    assert any(row.label.endswith(" tuned") and row.rank for task in tuned.tasks for row in task.rows)
    for one, other in zip(plain.across.rows, tuned.across.rows, strict=True):
        assert (one.label, one.rank, one.wins, one.mean_rank) == (other.label, other.rank, other.wins, other.mean_rank)
        assert one.better_than == other.better_than
    assert tuned.across.verdict == plain.across.verdict and tuned.across.serving == plain.across.serving


def test_a_variant_is_compared_as_if_it_stood_in_the_place_of_its_method(boards):
    across = boards[1].across
    (method,) = [row for row in across.rows if row.variants]
    (variant,) = method.variants
    assert variant.label == f"{method.label} tuned"
    others = [row.wins.value for row in across.rows if row is not method]  # nearly what they are against the variant
    assert abs(variant.rank[0] - 1 - sum(wins > variant.wins.value for wins in others)) <= 1
    assert 1 <= variant.rank[1] <= variant.rank[0] <= variant.rank[2] <= len(across.rows)
    own = accuracies(boards[1], variant.label)
    others = [accuracies(boards[1], row.label) for row in across.rows if row is not method]
    beaten = np.mean([np.where(np.isclose(own, other), 0.5, own > other) for other in others], axis=0)
    # settings of low_rank count together as one task of three
    assert variant.wins.value == pytest.approx(np.mean([beaten[:2].mean(), beaten[2], beaten[3]]))


def test_what_a_variant_changes_is_paired_and_told(boards, capsys):
    assert boards[0].variants == ()
    (change,) = boards[1].variants
    assert change.label == f"{change.base} tuned"
    difference = accuracies(boards[1], change.label) - accuracies(boards[1], change.base)
    np.testing.assert_allclose([p.value for p in change.settings.values()], difference, atol=1e-12)
    assert change.mean.value == pytest.approx(difference.mean())
    told = [task.difference(change.label, change.base) for task in boards[1].tasks]
    variances = np.array([one["se"] ** 2 for one in told]) / len(told) ** 2
    df = variances.sum() ** 2 / (variances**2 / [one["df"] for one in told]).sum()  # Satterthwaite's
    assert change.mean.high - change.mean.value == pytest.approx(t.ppf(0.975, df) * variances.sum() ** 0.5)
    assert json.loads(json.dumps(boards[1].as_dict()))["variants"][0]["label"] == change.label
    page = render_page(boards[1])
    assert "What variants change" in page and "What variants change" not in render_page(boards[0])
    print_board(boards[1])
    assert "variants minus the same methods as they are" in capsys.readouterr().out
