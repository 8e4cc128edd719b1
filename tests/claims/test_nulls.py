"""Shipped claims under programs that learn nothing: no claim that states an effect may come out green.

Every method but the lines that know the truth is replaced. What a claim selects is drawn from the null instead of being
read from trials, so that all claims are judged in seconds; test_real_nulls runs some of them for real.
"""

import zlib

import numpy as np
import polars as pl
import pytest

from harness.claims import schema
from harness.claims.judge import HOLDS, HOLDS_IN_PART, judge_claim
from harness.claims.results import Results, SelectedValues
from harness.store.store import Store
from harness.trials.plan import Plan
from harness.trials.suite import read_suite

FILES = sorted(schema.CLAIMS_FOLDER.glob("*.toml"))
PEOPLE = 20
LINE = 0.95  # accuracy of the lines that know the truth


class NullResults(Results):
    """Results in which every method has the same score at every number of shots, up to noise.

    level: the accuracy of all methods: .5 for a coin, more for methods that learn one reward for all people.
    noise: 0 for a coin that answers one half everywhere; otherwise the standard deviation of a person's score, drawn anew
    for every selection, as for methods that learned from labels permuted within each person.
    """

    def __init__(self, suite, level, noise, draw):
        super().__init__(Plan(suite, (), (), {}), Store("."))
        object.__setattr__(self, "null", (level, noise, draw))

    def selected_values(self, selection):
        if selection.less:
            return super().selected_values(selection)
        level, noise, draw = self.null
        task, method = self.task_and_method(selection)
        seeds = np.array(self.suite.seeds)
        rng = np.random.default_rng([draw, zlib.crc32(repr((task, method, selection)).encode())])
        if selection.metric == "diagnostic:bound":  # a fact of the task, whatever a method does
            return SelectedValues(seeds, np.full(len(seeds), 2104.0))
        if ":" in selection.metric:
            return SelectedValues(seeds, level + noise * rng.standard_normal(len(seeds)) / 10)
        score = LINE if method.privileged else level
        nothing = {"error": 1 - score, "log_loss": np.log(2), "brier": 0.25, "gain_of_n": 2 * score - 1}
        if selection.metric.startswith("written_"):
            mean = 0.5 if "win" in selection.metric else 0.0
        else:
            mean = nothing.get(selection.metric, score)
        seed, person = np.repeat(seeds, PEOPLE), np.arange(len(seeds) * PEOPLE)
        value = mean + noise * rng.standard_normal(len(person))
        return SelectedValues.of_cells(pl.DataFrame({"person": person, "seed": seed, "value": value}))


def green(file, level, noise, draw):
    """Return the ids of the file's claims that come out green under the null."""
    _, claims = schema.read_claims(file)
    results = NullResults(read_suite(file), level, noise, draw)
    judged = [judge_claim(claim, "", results) for claim in claims]
    return {found.claim.id for found in judged if found.verdict in (HOLDS, HOLDS_IN_PART)}


@pytest.mark.parametrize("level", [0.5, 0.75], ids=["coin", "one reward for all"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_claim_holds_where_nobody_learns(file, level):
    """A coin, `shared` in every method's place, and methods that ignore the context: equal scores everywhere."""
    assert green(file, level, 0, 0) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_claim_holds_where_people_s_labels_are_permuted(file):
    """Every score is chance, with noise of its own: over ten draws none is green more often than once."""
    found = [name for draw in range(10) for name in green(file, 0.5, 0.1, draw)]
    assert all(found.count(name) <= 1 for name in found), found
