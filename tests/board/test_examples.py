"""Examples of people: those with the highest, a middling and the lowest gain, with their own answers and all predictions."""

import polars as pl
import pytest

from harness import registry
from harness.api.to_datasets import pairs_table, predictions_table
from harness.board import examples
from harness.board.examples import find_examples
from harness.board.make import make_board
from harness.report.page.html import render_page, write_html
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tests.board.test_learned_axes import EVIL, OTHERS, World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("examples"), OTHERS)


def test_the_people_are_those_of_the_largest_middle_and_smallest_gain(world):
    (found,) = find_examples(world.board, world.store).values()
    (task,) = world.board.tasks
    first = next(row for row in task.rows if row.worse is not None)
    gains = first.users.sort("gain")["gain"]
    told = [first.users.filter(person=one.person)["gain"].item() for one in found]
    assert (told[0], told[-1]) == (gains[-1], gains[0]) and gains[0] < told[1] < gains[-1]
    assert found[0].why == f"highest gain by {first.label} over shared: {gains[-1]:+.3f}"


def test_answers_and_probabilities_are_those_of_the_export(world):
    """The exported tables, which are made by other code, have the same pairs, answers and probabilities."""
    (found,) = find_examples(world.board, world.store).values()
    trials = [t for t in world.plan.trials if not t.method.privileged]
    pairs = pl.from_arrow(pairs_table(world.store, trials[0]))
    rows = {row.method: row.label for row in world.board.tasks[0].rows}
    tables = {
        rows[t.method]: pl.from_arrow(
            predictions_table(world.store, t, world.store.read_manifest("trials", t.key), rows[t.method])
        ).filter(part="test/query", shots=10)
        for t in trials
    }
    for one in found:
        assert len(one.shown) == len(one.asked) == examples.MAX_PAIRS
        for part, choices in (("test/context", one.shown), ("test/query", one.asked)):
            own = pairs.filter(part=part, user=str(one.person)).sort("place")
            for choice, told in zip(choices, own.iter_rows(named=True), strict=False):
                liked, other = ("left", "right") if told["label"] == 1 else ("right", "left")
                assert (choice.preferred, choice.other) == (told[f"{liked}_text"], told[f"{other}_text"])
                assert choice.prompt == "Will it rain?" and not choice.tie
                assert choice.expected.keys() == (tables.keys() if part == "test/query" else set())
                for label, p in choice.expected.items():
                    (left,) = tables[label].filter(user=str(one.person), place=told["place"])["probability"]
                    assert p == pytest.approx(left if liked == "left" else 1 - left)


def test_texts_are_escaped_and_stay_out_of_what_is_published(world):
    text = write_html(world.board, world.store).read_text()
    assert "of the people</h3>" in text and "so so" in text and EVIL not in text
    assert "of the people</h3>" not in render_page(world.board, with_people=False)


def test_simulated_people_and_boards_without_a_reference_have_none(world, tmp_path):
    (tmp_path / "suite.toml").write_text(
        'seeds = 3\ntasks = [{ name = "two_modes", n_users = 30 }]\nmethods = [{ name = "shared" }, { name = "per_user" }]'
    )
    store = Store(tmp_path / "store").open()
    plan = make_plan(read_suite(tmp_path / "suite.toml"), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    assert find_examples(make_board(plan, store), store) == {}
    registry.add_plugins([world.file.with_name("shouting.py")])
    file = tmp_path / "alone.toml"
    file.write_text('seeds = [3]\ncontrols = false\ntasks = [{ name = "shouting" }]\nmethods = [{ name = "per_user" }]')
    alone = make_board(make_plan(read_suite(file), world.store), world.store)
    assert find_examples(alone, world.store) == {}
