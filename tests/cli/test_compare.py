"""`manyminds compare`: paired by hand, on two stores, and two methods of one; what a person may get wrong."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from harness.board.compare import (
    RecordedTrial,
    compare_trials,
    compared_labels,
    finished_trials,
    holm,
    latest_versions,
    matched_settings,
)
from harness.board.results import load_scores
from harness.cli.verbs import run_command_line
from harness.errors import UserError
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

SUITE = """
seeds = 4
controls = false
methods = [{{ name = "shared" }}, {{ name = "per_user" }}, {{ name = "rfm", steps = {steps} }}]
tasks = [{{ name = "low_rank", n_users = 40, new_users = 15, feature_dim = 8, queries = 10, shots = [0, 5] }}]
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of one suite: in the second, rfm is trained by one step only."""
    folder = tmp_path_factory.mktemp("compare")
    for name, steps in (("before", 50), ("after", 1)):
        (folder / f"{name}.toml").write_text(SUITE.format(steps=steps))
        store = Store(folder / name).open()
        list(finish_trials(list(make_plan(read_suite(folder / f"{name}.toml"), store).trials), store))
    return folder


def scores(store, name):
    found = [t for t in finished_trials(store) if t.setting("method")[0] == name]
    tables = [load_scores(t.store, t.task_key, t.manifest).with_columns(seed=t.seed) for t in found]
    table = pl.concat(tables).filter(panel="test", shots=5, swapped=False)
    return table.sort("seed", "person")["accuracy"].to_numpy(), table["seed"].n_unique()


def test_rows_are_paired_by_person_and_the_losses_come_first(stores):
    before, after = Store(stores / "before"), Store(stores / "after")
    found = compare_trials(finished_trials(before), finished_trials(after))
    worse, *equal = found.rows
    assert worse.method == "rfm, steps 50 -> 1" and len(equal) == 2
    a, seeds = scores(before, "rfm")
    b, _ = scores(after, "rfm")
    assert (worse.people, worse.seeds, worse.shots) == (60, seeds, 5)
    assert (worse.before, worse.after) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
    # People are new under each seed: the limits are those of a t test of the four seeds' means, whose variance is at
    # least a twentieth of that of independent people (LEAST_VARIANCE).
    means = (b - a).reshape(4, -1).mean(1)
    error = max(means.var(ddof=1) / 4, 0.05 * (b - a).var() / 60) ** 0.5
    low, high = scipy_stats.t.interval(0.95, 3, means.mean(), error)
    assert (worse.difference.low, worse.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert (worse.better, worse.worse) == (np.mean(b > a), np.mean(b < a))
    assert [row.difference.value for row in equal] == [0, 0] and [row.p for row in equal] == [None, None]
    assert worse.p == pytest.approx(2 * scipy_stats.t.sf(-means.mean() / error, 3))  # the only row that differs


def test_methods_of_one_store_are_compared_with_each_other(stores):
    every = finished_trials(Store(stores / "before"))
    sides = [[t for t in every if t.setting("method")[0] == name] for name in ("per_user", "rfm")]
    (row,) = compare_trials(*sides, any_method=True).rows
    assert row.method == "per_user -> rfm"
    assert row.difference.value == pytest.approx(
        scores(Store(stores / "before"), "rfm")[0].mean() - scores(Store(stores / "before"), "per_user")[0].mean()
    )


def test_settings_find_their_counterpart():
    old = [("lore", '{"rank": 8, "weights": "free"}'), ("lore", '{"rank": 5, "weights": "simplex"}'), ("gone", "{}")]
    new = [
        ("lore", '{"rank": null, "weights": "simplex"}'),
        ("lore", '{"rank": null, "weights": "free"}'),
        ("new", "{}"),
    ]
    assert matched_settings(old, new) == {old[0]: new[1], old[1]: new[0]}
    assert list(compared_labels(new).values()) == ["lore(weights=simplex)", "lore(weights=free)", "new"]


def test_holm_by_hand():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])


def test_the_command_prints_json_a_page_and_a_status(stores, tmp_path, capsys):
    words = ["compare", str(stores / "before"), str(stores / "after")]
    assert run_command_line([*words, "--page", str(tmp_path / "page.html")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 3 rows" in said and "2 are equal" in said
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and "rfm(" not in page.partition("<table>")[0].partition("<svg")[0] and "<script" not in page
    assert run_command_line([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["difference"]["value"] for row in rows] == sorted(row["difference"]["value"] for row in rows)
    sure = rows[0]["p"] < 0.05
    assert run_command_line([*words, "--fail-if-worse", "0"]) == int(sure)
    assert run_command_line([*words, "--fail-if-worse", "0.9"]) == 0
    assert run_command_line(["compare", *words[:0:-1], "--fail-if-worse", "0"]) == 0  # the other way round it is better
    assert sure, "the test cannot fail unless one step is surely worse than fifty"


def test_what_is_only_on_one_side_is_listed(stores, tmp_path, capsys):
    shutil.copytree(stores / "after", tmp_path / "less")
    for trial in finished_trials(Store(tmp_path / "less")):
        if trial.setting("method")[0] == "per_user":
            (tmp_path / "less" / "trials" / f"{trial.manifest['key']}.json").unlink()
    assert run_command_line(["compare", str(stores / "before"), str(tmp_path / "less")]) == 0
    assert "not compared: per_user on low_rank: only on the first side (4 seeds)" in capsys.readouterr().out


def test_a_missing_seed_and_an_older_version_are_neither_hidden_nor_counted_twice(stores, tmp_path):
    """One seed of rfm is gone; shared has in the same store results of an earlier version, as after an update."""
    before, copy = finished_trials(Store(stores / "before")), tmp_path / "copy"
    shutil.copytree(stores / "before", copy)
    gone = next(t for t in before if t.setting("method")[0] == "rfm" and t.seed == 2)
    (copy / "trials" / f"{gone.manifest['key']}.json").unlink()
    older = []
    for trial in (t for t in before if t.setting("method")[0] == "shared"):
        identity = trial.manifest["identity"] | {"method": "shared@1"}
        older.append(RecordedTrial(trial.store, trial.task_key, trial.manifest | {"identity": identity}))
    assert all(
        latest_versions([old, new]) == [new]
        for old in older
        for new in before
        if new.seed == old.seed and new.setting("method")[0] == "shared"
    )
    found = compare_trials(before, finished_trials(Store(copy)))
    assert {row.method: row.seeds for row in found.rows} == {"shared": 4, "per_user": 4, "rfm": 3}
    assert found.unmatched == ("rfm on low_rank: only on the first side (1 seed)",)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["before", "rfm"], "is a store and rfm a method"),
        (["before", "another_store"], "no store, suite or method 'another_store' hint: name the folder of a store"),
        (["before", "nowhere/store"], "there is no store in nowhere/store"),
        (["before", "rfn"], "there is no store, suite or method 'rfn' hint: did you mean 'rfm'?"),
        (["rfm", "pal"], "has no finished trial of pal"),
        (["rfm", "rfm?dim=3"], "has no finished trial of rfm?dim=3"),
    ],
)
def test_mistakes_have_hints(stores, monkeypatch, capsys, sides, message):
    monkeypatch.chdir(stores)
    assert run_command_line(["compare", *sides, "--store", "before"]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()) and "hint:" in said


def test_a_method_with_two_settings_has_to_be_named_in_full(stores):
    trials = finished_trials(Store(stores / "before"))
    with pytest.raises(UserError, match="2 settings"):
        compare_trials(trials[:0] + [t for t in trials if t.setting("method")[0] != "rfm"], trials, any_method=True)
