"""Tasks for policies: personas as concepts, whose statements a language model answers with Yes or No."""

import numpy as np
import pytest

from harness import registry
from harness.claims.schema import read_claims
from harness.fields import field_values
from harness.models import small
from harness.store.store import Store
from harness.trials.run import run_trial
from harness.trials.suite import read_suite
from harness.trials.trial import Trial
from tasks.personas import CONCEPTS, Personas

FOLDER = registry.PROJECT_ROOT / "jobs" / "suites" / "claims"


@pytest.mark.parametrize("file", ["dpo_personas_text.toml", "dpo_personas_full.toml"])
def test_claims_compare_numbers_of_personas_and_nothing_else(file):
    """Every check compares two settings of the suite that differ only in the number of personas."""
    suite, (_, claims) = read_suite(FOLDER / file), read_claims(FOLDER / file)
    settings = [field_values(task) for task in suite.tasks]
    assert {task["concepts"] for task in settings} <= set(CONCEPTS) and {len(m) for m in CONCEPTS.values()} == set(
        CONCEPTS
    )
    for check in (check for claim in claims for check in claim.checks if check.measure == "value"):
        other = check.over or check.minus
        one, two = ([t for t in settings if all(t[k] == v for k, v in s.task.items())] for s in (check.of, other))
        assert len(one) == len(two) == 1 and one[0]["concepts"] < two[0]["concepts"]
        assert {k for k in one[0] if one[0][k] != two[0][k]} == {"concepts"} and check.of.metric == other.metric


@pytest.mark.slow
def test_a_policy_learns_yes_and_no(data_folder, tmp_path):
    """A few steps log the curves that D8 needs, and move training statements towards their labels."""
    store = Store(tmp_path / "store").open()
    small.build_small_model(tmp_path / "model", steps=0)
    method = registry.make_instance(
        "method", "dpo", dict(model=f"transformers:{tmp_path / 'model'}", tune="full", steps=6)
    )
    task = Personas(view="statements", concepts=1, shots=(0,), encoder="hashing-8", queries=8)
    data = task.build(0)
    splits = task.split(data, 0)
    found = run_trial(Trial(task, method, 0, "test", "test"), splits, data.truth, store=store)
    curves = found.facts["curves"]
    assert {"train_margin", "validation_margin"} <= curves.keys() and np.isfinite(curves["validation_margin"]).all()
    assert abs(curves["train_margin"][0]) < 1e-6 < abs(curves["train_margin"][-1])  # the policy starts at the reference
    assert set(found.predictions) == {"seen/0", "validation/0", "test/0"}
