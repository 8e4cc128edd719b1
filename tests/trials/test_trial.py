"""Trials: keys never change by accident, every field is identity or fact, and runs keep labels and truth hidden."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from harness import registry
from harness.board.results import load_scores
from harness.fields import recorded_name
from harness.method import Run
from harness.registry import make_instance
from harness.scores.stats import fixed_derangement
from harness.store.store import Store
from harness.trials.facts import FACT_NAMES
from harness.trials.finish import finish_trial
from harness.trials.plan import make_plan
from harness.trials.prepare import prepare_task
from harness.trials.run import elicit_context, run_trial
from harness.trials.trial import KEY_VERSION, Trial, identity_hash, task_identity

# (KEY_VERSION, version of `per_user` and `rfm`) -> keys of the trials below; keys are never edited, only added
GOLDEN = {
    (1, 1): ["c634177c078357f3", "5ee7fd10fdd91153", "4036c4dc65418e81"],
    (2, 1): ["152a218975199120", "9d4cb5fa84df4004", "9e298dc3e030e563"],
    (2, 2): ["e34f03b46efcd667", "5703d1968fc9bd2a", "2d8ea6d9b9a765a3"],
}


def trials():
    low_rank = make_instance("task", "low_rank", {"n_users": 40, "temperature": 1, "shots": [0, 2]})
    return [
        Trial(low_rank, make_instance("method", "per_user", {}), 0, "d" * 64, "t"),
        Trial(low_rank, make_instance("method", "per_user", {"scale": 2}), 3, "d" * 64, "t"),
        Trial(
            make_instance("task", "two_modes", {}),
            make_instance("method", "rfm", {"dim": 8, "steps": 200}),
            0,
            "d" * 64,
            "t",
        ),
    ]


def test_golden_keys():
    assert [t.key for t in trials()] == GOLDEN[KEY_VERSION, type(trials()[0].method).version]


def test_every_field_of_a_trial_is_identity():
    """Every field is in `identity`; a new one must be added there (with a new KEY_VERSION) or to the facts."""
    fields = {f.name for f in dataclasses.fields(Trial)}
    assert fields == {"task", "method", "seed", "data"} | {"task_key"}  # task_key only says where the data is stored
    trial = trials()[0]
    other_task = dataclasses.replace(trial.task, rank=4)
    other_method = dataclasses.replace(trial.method, scale=0.5)
    assert dataclasses.replace(trial, task_key="elsewhere").key == trial.key
    for change in ({"task": other_task}, {"method": other_method}, {"seed": 1}, {"data": "e" * 64}):
        assert dataclasses.replace(trial, **change).key != trial.key


LEFT_OUT = {  # `files_digest` is identity
    name: {"file"}
    for name in registry.list_names("task")
    if any(field.name == "file" for field in dataclasses.fields(registry.load_class("task", name)))
}
LEFT_OUT["written_answers"] |= {"personas"}
LEFT_OUT |= {
    name: {"recompute"} for name in ("dpo", "dpo_dedicated", "np_dpo")
}  # saves memory and costs time; the result is the same


@pytest.mark.parametrize("kind", ["task", "method"])
def test_every_field_of_every_setting_is_identity(kind):
    for name in registry.list_names(kind):
        thing = registry.load_class(kind, name)()
        identity = trials()[0]
        shown = dataclasses.replace(identity, **{kind: thing}).identity[f"{kind}_fields"]
        assert set(shown) == {recorded_name(f) for f in dataclasses.fields(thing)} - LEFT_OUT.get(name, set())


def test_a_path_is_no_identity(tmp_path):
    """The same table under two names is one prepared task and one trial; a different table is a different one."""
    from tasks.model_raters import simulated_ratings

    table, store, found = simulated_ratings(), Store(tmp_path / "store").open(), []
    for name, rows in (("a.csv", table), ("b.csv", table), ("c.csv", table[:-6])):
        rows.write_csv(tmp_path / name)
        task = make_instance("task", "model_raters", {"file": str(tmp_path / name)})
        prepared = prepare_task(store, task, 0)
        trial = Trial(task, make_instance("method", "chance", {}), 0, prepared["facts"]["data"], prepared["key"])
        assert str(tmp_path) not in str([prepared["identity"], trial.identity])
        found.append((prepared["key"], trial.key))
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_versions_are_identity(monkeypatch):
    trial = trials()[0]
    key, task_key = trial.key, identity_hash(task_identity(trial.task, 0))
    monkeypatch.setattr(type(trial.method), "version", type(trial.method).version + 1)
    assert dataclasses.replace(trial).key != key and identity_hash(task_identity(trial.task, 0)) == task_key
    monkeypatch.setattr(type(trial.task), "version", 2)
    assert identity_hash(task_identity(trial.task, 0)) != task_key


def test_whole_numbers_and_floats_are_one_setting():
    assert make_instance("task", "low_rank", {"temperature": 1}) == make_instance(
        "task", "low_rank", {"temperature": 1.0}
    )


def test_changed_files_are_another_task():
    snacks = make_instance("task", "snacks", {})
    assert task_identity(snacks, 0)["files"] == snacks.files_digest() != ""


def test_facts_are_beside_the_result_and_all_classified(tiny):
    _, plan, store = tiny
    for trial in plan.trials:
        manifest = store.read_manifest("trials", trial.key)
        assert set(manifest["facts"]) == set(FACT_NAMES)
        assert manifest["identity"] == trial.identity or manifest["identity"] == {
            **trial.identity,
            "task_fields": {**trial.identity["task_fields"], "shots": [0, 4]},
        }
        assert not set(manifest["identity"]) & set(FACT_NAMES)


def test_predictions_are_the_record(tiny):
    """Scores recomputed from stored predictions equal the stored ones, and a second run gives the same bits."""
    _, plan, store = tiny
    from harness.scores.metrics import score_table
    from harness.store.prepared import open_prepared_task
    from harness.trials.finish import compressed_arrow_file

    for trial in plan.trials:
        manifest, prepared = store.read_manifest("trials", trial.key), open_prepared_task(store, trial.task_key)
        predictions = safetensors.numpy.load(store.read_verified(manifest, "predictions.safetensors"))
        assert bytes(
            compressed_arrow_file(score_table(predictions, prepared.splits, prepared.truth))
        ) == store.read_verified(manifest, "scores.arrow")
        again = run_trial(trial, prepared.splits, prepared.truth)
        assert all(np.array_equal(again.predictions[name], predictions[name]) for name in predictions)


def test_old_scores_are_recomputed(tiny):
    _, plan, store = tiny
    trial = plan.trials[0]
    manifest = store.read_manifest("trials", trial.key)
    fresh = load_scores(store, trial.task_key, manifest)
    old = dict(manifest, facts=dict(manifest["facts"], metrics_version=0), files=dict(manifest["files"]))
    del old["files"]["scores.arrow"]
    assert load_scores(store, trial.task_key, old).equals(fresh)


def test_a_finished_trial_is_not_fitted_again(tiny, monkeypatch):
    _, plan, store = tiny
    monkeypatch.setattr("harness.trials.finish.run_trial", lambda *_: pytest.fail("fitted again"))
    assert all(finish_trial(trial, store) for trial in plan.trials)


def test_a_method_that_writes_into_its_data_harms_itself_alone(tiny, tmp_path):
    """A method that overwrites features in place does not change the results of trials that run after it."""
    _file, plan, undisturbed = tiny
    plugin = tmp_path / "vandal.py"
    plugin.write_text(
        '"""Overwrites what it is given."""\nfrom harness.methods.chance import Chance\nclass Vandal(Chance):\n'
        "    def fit(self, train, validation, run):\n        train.items.features[:] = 0\n        return {}\n"
    )
    registry.add_plugins([plugin])
    vandal = make_instance("method", "vandal", {})
    store = Store(tmp_path / "vandalised").open()
    for trial in make_plan(plan.suite, store).trials:
        assert finish_trial(dataclasses.replace(trial, method=vandal), store) and finish_trial(trial, store)
        assert (
            store.read_manifest("trials", trial.key)["files"] == undisturbed.read_manifest("trials", trial.key)["files"]
        )


def test_nobody_swaps_with_himself():
    for n in range(2, 40):
        other = fixed_derangement(n)
        assert sorted(other) == list(range(n)) and (other != np.arange(n)).all()


@pytest.mark.parametrize("elicitation", ["random", "uncertainty"])
def test_training_users_are_scored_up_to_the_answers_they_have(elicitation):
    """Training users with 6 answers, and new users with 10, are scored and asked only within what they have."""
    sizes = {"n_users": 30, "new_users": 10, "pairs_per_user": 6, "feature_dim": 4, "rank": 2, "queries": 8}
    task = make_instance("task", "low_rank", sizes | {"shots": [0, 3, 10]})
    method, data = make_instance("method", "mixed_logit", {"elicitation": elicitation}), task.build(0)
    splits = task.split(data, 0)
    result = run_trial(Trial(task, method, 0, "", ""), splits, data.truth)
    assert {name for name in result.predictions if name.startswith("seen")} == {"seen/0", "seen/3", "seen/3/swapped"}
    assert {name for name in result.predictions if name.startswith("test")} == {
        *("test/0", "test/3", "test/10", "test/10/swapped")
    }
    scores = pl.from_arrow(result.scores)
    shots = dict(scores.group_by("panel").agg(pl.col("shots").unique().sort()).iter_rows())
    assert shots == {"seen": [0, 3], "validation": [0, 3, 10], "test": [0, 3, 10]}
    state = method.fit(splits.train, splits.panels["validation"], Run(0))
    seen = splits.panels["seen"]
    asked = (
        elicit_context(method, state, seen.context, 3, Run(0))
        if elicitation == "uncertainty"
        else seen.context.first(3)
    )
    alone = method.score(state, method.adapt(state, asked, Run(0)), seen.query).float().numpy()
    assert np.array_equal(result.predictions["seen/3"], alone)
    assert (elicitation == "random") == np.array_equal(asked.left, seen.context.first(3).left)


def test_only_privileged_methods_see_the_truth(tiny):
    _, plan, store = tiny
    from harness.store.prepared import open_prepared_task

    seen = {}
    for trial in plan.trials[:6]:
        prepared = open_prepared_task(store, trial.task_key)

        class Spy(type(trial.method)):
            def fit(self, train, validation, run):
                seen[type(self).__mro__[1].__name__] = run.truth is not None
                return super().fit(train, validation, run)

        run_trial(dataclasses.replace(trial, method=Spy()), prepared.splits, prepared.truth)
    assert seen == {
        "Chance": False,
        "Shared": False,
        "PerUser": False,
        "Spectral": False,
        "MixedLogit": False,
        "Bayes": True,
    }


def test_query_labels_are_hidden_and_test_labels_never_given(tiny):
    """Changing every test label changes no prediction: predictions cannot depend on the labels they are scored by."""
    _, plan, store = tiny
    from harness.data import Splits
    from harness.store.prepared import open_prepared_task

    for trial in plan.trials[:6]:
        splits = open_prepared_task(store, trial.task_key).splits
        truth = open_prepared_task(store, trial.task_key).truth
        flipped = {
            name: panel
            if name == "validation"
            else dataclasses.replace(panel, query=dataclasses.replace(panel.query, label=1 - panel.query.label))
            for name, panel in splits.panels.items()
        }
        a = run_trial(trial, splits, truth).predictions
        b = run_trial(trial, Splits(splits.train, flipped), truth).predictions
        assert all(np.array_equal(a[name], b[name]) for name in a)
