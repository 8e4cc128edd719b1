"""The tuned variant of a method: chosen on validation users alone, equal to the method at that setting, on any board."""

import json
import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from harness.api.running import run_suite
from harness.board import flags
from harness.board.board import setting_labels
from harness.errors import UserError
from harness.method import Run
from harness.registry import list_names, make_instance, parse_setting, setting_text
from harness.search_space import OneOf
from harness.store.store import Store
from harness.trials.run import run_trial
from harness.trials.suite import read_suite
from harness.trials.trial import Trial
from tasks.low_rank import LowRank
from tests.small import SMALL_TASK

TASK = LowRank(n_users=80, new_users=40, pairs_per_user=30, feature_dim=12, rank=3, queries=30, shots=(0, 5, 15))


def result_of(method, data, seed=0):
    return run_trial(Trial(TASK, method, seed, "", ""), TASK.split(data, seed), data.truth)


def test_it_answers_as_the_method_at_the_setting_with_the_lowest_validation_loss():
    data = TASK.build(0)
    found = result_of(make_instance("method", "tuned", {"method": "rfm", "trials": 6}), data)
    chosen = found.facts["chosen"]
    assert chosen["tried"] == len(chosen["losses"]) == 6
    plain = result_of(make_instance("method", "rfm", chosen["setting"]), data)
    for name, values in plain.predictions.items():
        assert np.array_equal(found.predictions[name], values), name
    # the loss again: of validation users, at every number of shots, each with its best temperature
    labels = TASK.split(data, 0).panels["validation"].query.label
    each = []
    for shots in TASK.shots:
        z = plain.predictions[f"validation/{shots}"].astype(float)
        by_scale = minimize_scalar(
            lambda s, z=z: log_loss(labels, 1 / (1 + np.exp(-s * z))), bounds=(0, 20), method="bounded"
        )
        each.append(by_scale.fun)
    assert abs(np.mean(each) - min(chosen["losses"])) < 1e-4


def test_test_users_have_no_part_in_the_choice():
    """With all labels of the test panel turned around, the same setting is chosen."""
    data = TASK.build(0)
    splits = TASK.split(data, 0)
    splits.panels["test"].query.label[:] = 1 - splits.panels["test"].query.label
    splits.panels["test"].context.label[:] = 1 - splits.panels["test"].context.label
    method = make_instance("method", "tuned", {"method": "pref", "trials": 5})
    turned = run_trial(Trial(TASK, method, 0, "", ""), splits, data.truth).facts["chosen"]
    straight = result_of(method, TASK.build(0)).facts["chosen"]
    assert turned["losses"] == straight["losses"] and turned["setting"] == straight["setting"]


@pytest.mark.parametrize("text", ["lore?weights=free", "rfm", "pref?rank=3&whiten=false", "per_user?scale=0.5"])
def test_settings_are_read_as_they_are_written(text):
    made = parse_setting("method", text)
    assert setting_text(made) == text and parse_setting("method", setting_text(made)) == made


def test_a_name_that_looks_like_a_number_stays_text():
    task = make_instance("task", "personas", {"encoder": "tfidf-svd-16"})
    assert parse_setting("task", setting_text(task)) == task
    made = make_instance("method", "likelihood", {"model": "transformers:./7?dtype=bfloat16&max_length=512"})
    assert parse_setting("method", setting_text(made)) == made


@pytest.mark.parametrize("name", ["chance", "likelihood", "in_context", "dpo", "moment"])
def test_what_has_no_search_space_is_refused_with_a_hint(name):
    with pytest.raises(UserError, match=f"{name} has nothing to search"):
        make_instance("method", "tuned", {"method": name})


def test_every_search_space_names_fields_and_holds_values_that_the_method_takes():
    for name in list_names("method"):
        method = make_instance("method", name, {})
        for field, part in method.search_space.items():
            ends = part.values if isinstance(part, OneOf) else (part.low, part.high)
            for value in ends:
                whole = not isinstance(part, OneOf) and part.whole
                make_instance("method", name, {field: int(value) if whole else value})


SUITE = """
seeds = 3
[tune]
trials = 3
{more}
{task}[[methods]]
name = "lore"
weights = ["free", "simplex"]
"""


def test_a_suite_tunes_every_method_with_a_search_space(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(SUITE.format(task=SMALL_TASK, more=""))
    suite = read_suite(file)
    labels = list(setting_labels(list(suite.methods)).values())
    assert labels[-5:] == [
        "per_user tuned",
        "spectral tuned",
        "mixed_logit tuned",
        "lore(weights=free) tuned",
        "lore(weights=simplex) tuned",
    ]
    result = run_suite(file, tmp_path / "store")
    (board,) = result.board.tasks
    rows = {row.label: row for row in board.rows}
    assert rows["lore(weights=free) tuned"].rank and not any(row.incomplete for row in board.rows)
    (said,) = [flag for flag in board.searches if flag.startswith("lore(weights=free) tuned: ")]
    assert "3 settings a seed on validation users" in said
    lowest, first, middle, worst = (float(x) for x in re.findall(r"\d\.\d{3}", said.split("log loss there")[1])[:4])
    assert lowest <= first <= worst and lowest <= middle <= worst
    # a second run tries nothing again
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store" / "searches").iterdir()}
    assert len(before) >= 3 * 3 * 4
    run_suite(file, tmp_path / "store")
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store" / "searches").iterdir()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('methods = ["rfm"]', "tune.methods names 'rfm'"),
        ('sampler = "grid"', "tuned.sampler = 'grid' is not 'tpe' or 'random'"),
        ("budget = 3", r"\[tune\] has no field 'budget'"),
        ("seconds = -1", "seconds 0 or more"),
    ],
)
def test_mistakes_in_tune_are_said(tmp_path, more, said):
    (tmp_path / "mine.toml").write_text(SUITE.format(task=SMALL_TASK, more=more))
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        read_suite(tmp_path / "mine.toml")


def test_tune_can_name_methods_and_a_quick_run_has_a_smaller_budget(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "quick = { tune = { trials = 2 } }\n" + SUITE.format(task=SMALL_TASK, more='methods = ["spectral"]')
    )
    for quick, trials in ((False, 3), (True, 2)):
        (tuned,) = [m for m in read_suite(file, quick).methods if m.searches]
        assert tuned.method == "spectral" and tuned.trials == trials


def test_a_killed_search_goes_on_where_it_was(tmp_path):
    """What a search has tried is in the store after each setting, not only at the end of the trial."""
    store, data = Store(tmp_path).open(), TASK.build(0)
    splits = TASK.split(data, 0)
    method = make_instance("method", "tuned", {"method": "spectral", "trials": 4})
    run = Run(0, store=store, identity={"data": "d"}, shots=TASK.shots)
    search = method.open_search(run)
    first = search.propose()[0]
    search.try_setting(first, splits.train, splits.panels["validation"])
    (kept,) = (tmp_path / "searches").iterdir()
    state = method.fit(splits.train, splits.panels["validation"], run)
    assert json.loads(kept.read_text())["facts"]["loss"] == run.chosen["losses"][0]
    assert "root" in state and len(list((tmp_path / "searches").iterdir())) <= 4


def test_what_a_search_chose_is_said_in_words():
    losses = [[0.6, None, 0.5, 0.9], [None, 0.4, 0.6, 0.8]]
    assert flags.spread_of_losses(losses) == "; log loss there 0.450, as it is 0.600, median 0.600, worst 0.850"
    chosen = [{"rank": 4, "rate": 0.01, "kind": "b"}, {"rank": 16, "rate": 0.25, "kind": "a"}, {"rank": 8}]
    assert flags.settings_in_words(chosen) == "rank 4 to 16, rate 0.01 to 0.25, kind a or b"
    assert flags.settings_in_words([]) == ""
