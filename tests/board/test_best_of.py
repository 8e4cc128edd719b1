"""Best of n: choices and their worth equal hand-worked and closed-form values, in boards, claims and MLflow."""

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
import torch

from harness.board import best_of
from harness.board.best_of import normalised_gain, overoptimisation_peak, preference_share, worth_of_choices
from harness.board.make import make_board
from harness.claims import schema
from harness.claims.judge import check_selections
from harness.claims.measures import measure_check
from harness.claims.results import Results
from harness.claims.schema import Check, Selection
from harness.data import Items, Pairs, Panel, Splits, Truth
from harness.errors import UserError
from harness.inference import generate
from harness.method import Method, Run
from harness.registry import make_instance
from harness.report.mlflow_records import row_metrics
from harness.report.page.charts import task_charts
from harness.report.page.html import write_html
from harness.report.page.looks import looks_of_methods
from harness.report.terminal import print_board
from harness.store.prepared import PreparedTask
from harness.store.store import Store
from harness.trials import choose as choose_module
from harness.trials.choose import candidate_counts, choose_candidates
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

EXPECTED_MAX = {1: 0.0, 2: 0.56419, 4: 1.02938, 8: 1.42360, 16: 1.76599}  # of n standard normal draws (Harter 1961)

SUITE = """
title = "steered"
seeds = 4

[[tasks]]
name = "attributes"
encoder = "numbers"
n_users = 20
new_users = 8
pairs = 60
pairs_per_user = 60
pool = 60
queries = 20
n_candidates = 8
choice_prompts = 30
shots = [0, 10]

[[methods]]
name = "oracle"
"""


@dataclass(frozen=True)
class Table(Method):
    """A method whose rewards come from a table float32[n_users, items]."""

    def reward(self, state, users, items, user, item):
        return users[0][torch.from_numpy(user).long(), torch.from_numpy(item).long()]


@dataclass(frozen=True)
class Duels(Table):
    """A method that scores only pairs, by differences in the same table."""

    @property
    def has_rewards(self):
        return False

    def reward(self, state, users, items, user, item):
        raise AssertionError("it declares that it has no rewards")

    def score(self, state, users, query):
        assert np.isnan(query.label).all() and (np.diff(query.user) >= 0).all()
        left, right = (Table.reward(self, state, users, None, query.user, side) for side in (query.left, query.right))
        return left - right


def chosen(method, *asked):
    return choose_candidates(method, method, *asked)


def asked(n_users: int, items: int) -> Pairs:
    """One hidden pair of each user."""
    user, side = np.arange(n_users, dtype=np.int32), np.zeros(n_users, dtype=np.int32)
    label = np.full(n_users, np.nan, dtype=np.float32)
    return Pairs(user, user + 10, side, side + 1, label, Items(np.zeros((items, 1), dtype=np.float32)))


def known(users: np.ndarray, items: np.ndarray, choices: np.ndarray) -> best_of.CandidateWorth:
    query = replace(asked(len(users), len(items)), people=np.arange(len(users), dtype=np.int32))
    panel = Panel(query, query, choices)
    return best_of.candidate_worth(
        PreparedTask(Splits(query, {"test": panel}), Truth(np.float32(users), np.float32(items)))
    )


def table(rewards: list) -> tuple[dict, tuple[torch.Tensor]]:
    return {}, (torch.tensor(rewards, dtype=torch.float32),)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A finished suite with candidates, and its board."""
    folder = tmp_path_factory.mktemp("steered")
    (folder / "steered.toml").write_text(SUITE)
    store = Store(folder / "store").open()
    plan = make_plan(read_suite(folder / "steered.toml"), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    return plan, store, make_board(plan, store)


def row(board, label):
    return next(r for r in board.tasks[0].rows if r.label == label)


def test_two_people_two_prompts_four_candidates_by_hand():
    choices = np.array([[2, 3, 4, 5], [6, 7, 8, 9]], dtype=np.int32)
    items = [[0], [0], [1], [3], [3], [0], [2], [2], [5], [1]]
    rewards = [[0, 0, 5, 1, 9, 9, 0, 4, 4, 1], [0, 0, 1, 2, 3, 4, 9, 8, 7, 6]]  # ties: the lower place
    state, users = table(rewards)
    places = chosen(Table(), state, users, asked(2, 10), choices)
    assert candidate_counts(4) == [1, 2, 4] and places.dtype == np.uint8
    assert places.tolist() == [[[0, 0, 2], [0, 1, 1]], [[0, 1, 3], [0, 0, 0]]]
    # Utilities 1 3 3 0 and 2 2 5 1: mean 1.75 and 2.5, best 3 and 5. The second person wants the opposite: 0 and -1.
    found = worth_of_choices(
        known(np.array([[1], [-1]]), np.array(items), choices), {5: places.astype(int)}, {5: places[::-1]}
    )
    assert found["room"].to_list() == pytest.approx(3 * [4 - 2.125, -0.5 + 2.125])
    one = found.filter(person=0)
    assert one["n"].to_list() == [1, 2, 4]
    assert one["gain"].to_list() == pytest.approx([1.5 - 2.125, 1.5 - 2.125, 2.5 - 2.125])
    # The 1 beats one of four and ties with itself, a 3 beats two and ties with two, a 2 beats one and ties with two.
    assert one["win_random"].to_list() == pytest.approx([(1.5 + 2) / 8, (1.5 + 2) / 8, (3 + 2) / 8])
    other = found.filter(person=1)
    assert other["gain"].to_list() == pytest.approx([2.125 - 1.5, 2.125 - 2.5, 2.125 - 1.0])
    assert other["win_shared"].to_list() == pytest.approx(
        [0.5, 0.25, 0.75]
    )  # (tie, tie), (3 lost to 1, tie), (won, tie)
    assert other["over_shared"].to_list() == pytest.approx([0, -1, 1.5])


def test_a_choice_by_duels_is_that_by_reward_in_any_chunks_and_orders(monkeypatch):
    rng = np.random.default_rng(0)
    choices = rng.permutation(240).astype(np.int32).reshape(40, 6)
    state, users = {}, (torch.from_numpy(rng.normal(size=(7, 240)).astype(np.float32)),)
    query = asked(7, 240)
    found = chosen(Table(), state, users, query, choices)
    assert found.shape == (7, 40, 4) and candidate_counts(6) == [1, 2, 4, 6]
    assert np.array_equal(chosen(Duels(), state, users, query, choices), found)
    for rows in (1, 7 * 6 * 3):
        monkeypatch.setattr(choose_module, "MAX_SCORES_AT_ONCE", rows)
        assert np.array_equal(chosen(Table(), state, users, query, choices), found)
        assert np.array_equal(chosen(Duels(), state, users, query, choices), found)
    order = rng.permutation(7)
    assert np.array_equal(chosen(Table(), state, (users[0][order],), query, choices), found[order])
    mixed = rng.permuted(np.tile(np.arange(6), (40, 1)), axis=1)
    again = chosen(Table(), state, users, query, np.take_along_axis(choices, mixed, 1))[..., -1]
    assert np.array_equal(np.take_along_axis(mixed[None], again[..., None].astype(int), 2)[..., 0], found[..., -1])


def test_noise_as_large_as_the_truth_costs_the_correlation():
    """The best of n by a Gaussian reward of correlation rho with the truth is worth rho times the expected maximum."""
    rng = np.random.default_rng(1)
    prompts, n = 20_000, 16
    utility = rng.normal(size=(prompts * n, 1))
    noisy = torch.from_numpy(np.float32((utility + rng.normal(size=utility.shape)).T))
    choices = np.arange(prompts * n, dtype=np.int32).reshape(prompts, n)
    places = chosen(Table(), {}, (noisy,), asked(1, prompts * n), choices)
    found = worth_of_choices(known(np.ones((1, 1)), utility, choices), {0: places.astype(int)}, {})
    ratio = dict(zip(found["n"], found["gain"] / found["room"], strict=True))
    expected = {k: EXPECTED_MAX[k] / EXPECTED_MAX[16] / np.sqrt(2) for k in EXPECTED_MAX}
    assert ratio == pytest.approx(expected, abs=0.02)  # two and a half standard errors of one choice
    assert ratio[16] == pytest.approx(1 / np.sqrt(2), abs=0.01)


@pytest.mark.parametrize("nested", [True, False], ids=["new people for each seed", "the same people"])
def test_intervals_of_a_ratio_cover(nested):
    """95 % intervals cover the true ratio in 93-97.5 % of draws, with effects of the person, the seed and the cell."""
    rng, people, seeds, true = np.random.default_rng(2), 30, 6, 0.4
    seed = np.repeat(np.arange(seeds), people)
    person = np.arange(people * seeds) if nested else np.tile(np.arange(people), seeds)
    covered = 0
    for _ in range(1500):
        size, taste, world = rng.normal(size=people * seeds), rng.normal(size=people * seeds), rng.normal(size=seeds)
        room = np.exp(0.4 * size[person] + 0.2 * world[seed] + 0.2 * rng.normal(size=len(seed)))
        gain = true * room + 0.2 * taste[person] + 0.1 * rng.normal(size=seeds)[seed] + 0.2 * rng.normal(size=len(seed))
        values = normalised_gain(gain[None], room)
        assert values.mean() == pytest.approx(gain.mean() / room.mean())
        low, high = best_of.stats.estimate_means(values, person, seed).interval()
        covered += low[0] <= true <= high[0]
    assert 0.93 <= covered / 1500 <= 0.975  # the standard error is .0056


def test_a_ratio_is_as_uncertain_as_the_jackknife_says():
    """The ratio's standard error equals the jackknife's where gains are nearly proportional to rooms."""
    rng, people = np.random.default_rng(5), 400
    room = np.exp(0.8 * rng.normal(size=people))
    gain = 0.8 * room + 0.1 * rng.normal(size=people)
    leave_one = (gain.sum() - gain) / (room.sum() - room)
    jackknife = np.sqrt((people - 1) / people * ((leave_one - leave_one.mean()) ** 2).sum())
    values = normalised_gain(gain[None], room)[0]
    assert values.std(ddof=1) / np.sqrt(people) == pytest.approx(jackknife, rel=0.05)
    assert (
        gain.std() / room.mean() / np.sqrt(people) > 4 * jackknife
    )  # the standard error without the ratio's correction


def test_over_optimisation_is_told_where_it_is_sure():
    rng = np.random.default_rng(3)
    seed, person = np.repeat(np.arange(5), 40), np.arange(200)
    shape, noise = np.array([0.0, 0.5, 0.8, 0.4])[:, None], rng.normal(size=(4, 200))
    assert overoptimisation_peak(shape + 0.1 * noise, person, seed) == 2
    assert overoptimisation_peak(shape + 30 * noise, person, seed) is None  # too much noise
    assert overoptimisation_peak(np.sort(shape, 0) + 0.1 * noise, person, seed) is None  # it rises to the end
    assert overoptimisation_peak(shape + 0.1 * noise, person, np.zeros(200)) is None  # one seed has no interval


def test_a_tie_is_one_half():
    assert preference_share(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0 + 1e-9, 2.0]), 1e-6).tolist() == [0, 0.5, 1]


def test_lines_and_controls_stand_where_they_must(steered):
    _, _, board = steered
    oracle, shared, chance, mine = (row(board, name).best_of for name in ("oracle", "shared", "chance", "per_user"))
    assert set(mine) == {0, 10} and list(mine[10].gain) == [1, 2, 4, 8]
    assert oracle[10].gain[8].value == pytest.approx(1) and oracle[10].worse_random == 0
    assert oracle[0].gain == oracle[10].gain
    for n in (1, 2, 4, 8):
        assert shared[10].win_shared[n].value == 0.5
    assert shared[10].worse_shared == 0
    assert chance[10].gain[8].low <= 1e-9 and chance[10].gain[8].high >= -1e-9  # its opposite people cancel exactly
    assert chance[10].gain[8] == chance[10].gain[1]
    assert 0.2 < mine[10].gain[8].value < 1 and mine[10].win_shared[8].low > 0.5 and mine[10].win_random[8].low > 0.5
    assert mine[10].gain[8].value > mine[10].gain[4].value > mine[10].gain[2].value
    assert row(board, "bayes").best_of[10].gain[8].value > mine[10].gain[8].value


def test_a_board_is_what_its_trials_chose(steered):
    """A method's gain on the board equals one recomputed from the stored choices with numpy alone."""
    plan, store, board = steered
    from harness.store.prepared import open_prepared_task

    gains, rooms = [], []
    for trial in (t for t in plan.trials if t.method.name == "spectral"):
        prepared = open_prepared_task(store, trial.task_key)
        panel = prepared.splits.panels["test"]
        for u, person in enumerate(panel.query.people):
            utility = prepared.truth.items[panel.choices] @ prepared.truth.users[person]  # [prompts, n]
            place = best_of.choices_by_shots(store, trial)[10][u, :, -1]
            gains.append(np.mean([row[i] for row, i in zip(utility, place, strict=True)]) - utility.mean())
            rooms.append(utility.max(1).mean() - utility.mean())
    assert row(board, "spectral").best_of[10].gain[8].value == pytest.approx(sum(gains) / sum(rooms), abs=1e-6)


def test_the_unit_of_utility_does_not_matter(steered, monkeypatch):
    """Utilities a thousandth as large give the same normalised gains."""
    plan, store, board = steered
    whole, calls = best_of.candidate_worth, []

    def in_small_units(prepared):
        calls.append(prepared)
        found = whole(prepared)
        return replace(found, utility=found.utility / 1000)

    cached = [f for f in vars(best_of).values() if hasattr(f, "cache_clear")]
    monkeypatch.setattr(best_of, "candidate_worth", in_small_units)
    for function in cached:
        function.cache_clear()
    again = make_board(plan, store)
    for function in cached:
        function.cache_clear()
    for one, other in zip(board.tasks[0].rows, again.tasks[0].rows, strict=True):
        assert set(one.best_of) == set(other.best_of)
        for shots, best in one.best_of.items():
            small = other.best_of[shots].gain
            assert all(small[n].value == pytest.approx(point.value, abs=1e-5) for n, point in best.gain.items())
    assert calls and any(row.best_of for row in again.tasks[0].rows)


def test_a_claim_measures_what_the_board_shows(steered):
    plan, store, board = steered
    results = Results(plan, store)
    best = row(board, "per_user").best_of[10]
    for metric, points in (("gain_of_n", best.gain), ("win_random", best.win_random), ("win_shared", best.win_shared)):
        for n in (None, 2):
            value, low, high, *_ = measure_check(Check("", Selection(None, "per_user", metric=metric, n=n)), results)
            point = points[n or 8]
            assert value == pytest.approx(point.value)
            assert np.clip((low, high), -9, 1) == pytest.approx((point.low, point.high))
    minus = Selection(None, "shared", metric="gain_of_n")
    found = measure_check(Check("", Selection(None, "per_user", metric="gain_of_n"), minus=minus), results)
    assert found[0] == pytest.approx(best.gain[8].value - row(board, "shared").best_of[10].gain[8].value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"metric": "accuracy", "n": 4}, "accuracy takes no n, but n = 4"),
        ({"metric": "gain_of_m"}, "no metric 'gain_of_m'"),
    ],
)
def test_a_claim_that_means_nothing_is_refused(table, says):
    with pytest.raises(UserError, match=says):
        schema.dataclass_from_table(Selection, table, "claim")


def test_winning_against_shared_needs_it_in_the_suite(tmp_path):
    (tmp_path / "no.toml").write_text(SUITE.replace("seeds = 4", "seeds = 4\ncontrols = false"))
    of = Selection(None, "oracle", metric="win_shared")
    claim = schema.Claim("X1", "", "", "", checks=(Check("wins", of, expected=(0.5, 1.0)),))
    with pytest.raises(UserError, match="names the method 'shared'"):
        check_selections(read_suite(tmp_path / "no.toml"), (claim,))


def test_every_view_tells_it(steered, capsys):
    _, store, board = steered
    print_board(board)
    said = capsys.readouterr().out
    assert "normalised gain of the best of 8" in said and "beats shared" in said
    page = write_html(board, store).read_text()
    assert "<h3>Best of 8</h3>" in page and "Win rate against the candidate that shared chooses" in page
    captions = [
        c.caption for c in task_charts(board.tasks[0], looks_of_methods({m: m.name for m in board.suite.methods}))
    ]
    assert any("Best of n at 10 shots" in caption for caption in captions)
    told = json.loads(json.dumps(board.as_dict()))["tasks"][0]["rows"]
    mine = next(r for r in told if r["label"] == "per_user")["best_of"]["10"]
    assert mine["gain"]["8"]["value"] == row(board, "per_user").best_of[10].gain[8].value
    for each in board.tasks[0].rows:
        names = {name for name, _, _ in row_metrics(each)}
        assert len(names) <= 30 and {"best_of_gain", "best_of_win"} <= names


@pytest.mark.parametrize(
    ("task", "fields", "digest"),
    [
        ("attributes", {"encoder": "numbers"}, "6093a0390d0dc062"),
        ("raters", {"scenario": "independent_signs"}, "e25df6b9ec70a70f"),
    ],
)
def test_candidates_leave_the_pairs_as_they_were(task, fields, digest):
    """Pairs are the same as before candidates existed (2026); labels 0, 1/2 and 1 have one digest on all machines."""
    plain = make_instance("task", task, fields)
    steered = replace(plain, n_candidates=5, choice_prompts=7)
    (a, b), columns = (t.build(0) for t in (plain, steered)), ("user", "left", "right", "label")
    for data in (a, b):
        of = b"".join(np.ascontiguousarray(getattr(data.pairs, c)).tobytes() for c in columns)
        assert hashlib.sha256(of).hexdigest()[:16] == digest
    assert a.choices is None and plain.split(a, 0).panels["test"].choices is None
    n = len(a.pairs.items)
    assert np.allclose(a.pairs.items.features, b.pairs.items.features[:n], atol=1e-5)
    assert np.array_equal(b.choices, np.arange(n, n + 35).reshape(7, 5)) and len(b.pairs.items) == n + 35
    panels = steered.split(b, 0).panels
    assert np.array_equal(panels["test"].choices, b.choices) and panels["validation"].choices is None
    assert np.allclose(a.truth.items, b.truth.items[:n], atol=1e-5) and len(b.truth.items) == n + 35


def test_attributes_choose_among_distinct_responses_to_prompts_nobody_saw():
    task = make_instance("task", "attributes", {"n_candidates": 16, "choice_prompts": 50, "encoder": "numbers"})
    data = task.build(1)
    text = pl.from_arrow(data.pairs.items.text)
    sets = [text[row.tolist()] for row in data.choices]
    assert all(s["prompt"].n_unique() == 1 and s["response"].n_unique() == 16 for s in sets)
    prompts = {s["prompt"][0] for s in sets}
    assert len(prompts) == 50 and not prompts & set(text["prompt"][: int(data.choices.min())])
    assert not np.array_equal(data.truth.items[data.choices[0]], task.build(2).truth.items[data.choices[0]])


def test_a_language_model_writes_candidates_and_a_prompt_it_failed_is_left_out(monkeypatch):
    seen = {}

    def sampled(systems, prompts, generator, n, store):
        seen.update(systems=systems, generator=generator)
        return [[] if i == 1 else [f"Yeah {i} {k}, wow!" for k in range(n)] for i in range(len(prompts))]

    monkeypatch.setattr(generate, "stored_candidates", sampled)
    fields = {"n_candidates": 3, "choice_prompts": 4, "encoder": "numbers", "generator": "transformers:small"}
    data = make_instance("task", "attributes", fields).build(0)
    assert data.choices.shape == (3, 3) and seen == {"systems": [None] * 4, "generator": "transformers:small"}
    assert data.pairs.items.text["response"][-1].as_py() == "Yeah 3 2, wow!"
    monkeypatch.setattr(
        generate, "stored_candidates", lambda systems, prompts, generator, n, store: [[] for _ in prompts]
    )
    with pytest.raises(UserError, match="gave 3 responses to none of the 4 prompts"):
        make_instance("task", "attributes", fields).build(0)


def test_model_raters_choose_by_the_left_out_column():
    task = make_instance("task", "model_raters", {"n_candidates": 16})
    data = task.build(0)
    panel = task.split(data, 3).panels["test"]
    assert panel.choices.shape[1] == 6 and panel.query.people.tolist() == [3]  # six responses to each prompt
    asked_items = np.union1d(panel.query.left, panel.query.right)
    assert set(asked_items) <= set(panel.choices.ravel()) and not np.isin(panel.context.left, panel.choices).any()
    assert (data.truth.gap(panel.query) > 0).tolist() == (panel.query.label == 1).tolist()
    assert make_instance("task", "model_raters", {"n_candidates": 4}).build(0).choices.shape[1] == 4
    assert make_instance("task", "model_raters", {}).build(0).truth is None


@pytest.mark.parametrize("name", ["attributes", "raters", "model_raters"])
def test_one_candidate_is_no_choice(name):
    with pytest.raises(UserError, match="n_candidates = 1 must be 0"):
        make_instance("task", name, {"n_candidates": 1})


@pytest.mark.parametrize("name", ["bayes", "longest", "majority", "moment", "pal", "per_user", "true_subspace"])
def test_methods_choose_the_reward_or_the_duels_they_answer(name):
    """A method's choice is the argmax of its own answers, asked one by one, on a small task."""
    task = make_instance("task", "attributes", {"encoder": "numbers", "n_users": 20, "new_users": 4, "pairs": 40,
        "pairs_per_user": 40, "pool": 40, "queries": 10, "n_candidates": 3, "choice_prompts": 4, "shots": (0, 5)})  # fmt: skip
    data = task.build(0)
    splits = task.split(data, 0)
    method, panel = make_instance("method", name, {}), splits.panels["test"]
    run = Run(0, truth=data.truth if method.privileged else None)
    state = method.fit(splits.train, splits.panels["validation"], run)
    users, query = method.adapt(state, panel.context.first(5), run), panel.query.without_labels()
    found = chosen(method, state, users, query, panel.choices)[..., -1]
    for u, p in ((0, 0), (2, 1), (3, 3)):
        rows = panel.choices[p]
        user = np.full(3, u, dtype=np.int32)
        if method.has_rewards:
            worth_of = method.reward(state, users, data.pairs.items, user, rows).double().numpy()
        else:
            pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
            left, right = (rows[[pair[side] for pair in pairs]] for side in (0, 1))
            user = np.full(6, u, dtype=np.int32)
            duels = replace(query, user=user, left=left, right=right, label=np.full(6, np.nan, dtype=np.float32))
            z = method.score(state, users, duels).double().numpy()
            worth_of = np.array([sum(v for v, (i, _) in zip(z, pairs, strict=True) if i == k) for k in range(3)])
        assert worth_of[found[u, p]] == pytest.approx(worth_of.max(), abs=1e-4)
