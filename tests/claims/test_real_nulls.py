"""Claims' own suites, run with methods that cannot know a person: what trials measure then makes no claim green."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.claims import schema
from harness.claims.judge import HOLDS, HOLDS_IN_PART, judge_claim
from harness.claims.results import Results
from harness.methods.shared import Shared
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite


def make_coin(monkeypatch, cls):
    """Answer one half everywhere, and learn nothing."""
    monkeypatch.setattr(cls, "fit", lambda self, train, validation, run: {})
    monkeypatch.setattr(cls, "adapt", lambda self, state, context, run: (torch.zeros(context.n_users, 1),))
    monkeypatch.setattr(cls, "score", lambda self, state, users, query: torch.zeros(len(query)))
    monkeypatch.setattr(cls, "reward", lambda self, state, users, items, user, item: torch.zeros(len(item)))


def make_shared(monkeypatch, cls):
    """Learn one reward for all people."""
    monkeypatch.setattr(cls, "fit", lambda self, *inputs: Shared().fit(*inputs))
    monkeypatch.setattr(cls, "adapt", lambda self, *inputs: Shared().adapt(*inputs))
    monkeypatch.setattr(cls, "score", lambda self, *inputs: Shared().score(*inputs))
    monkeypatch.setattr(cls, "reward", lambda self, *inputs: Shared().reward(*inputs))


def ignore_context(monkeypatch, cls):
    """Learn from training people as the method does, and show it nothing of a new person."""
    adapt = cls.adapt
    monkeypatch.setattr(cls, "adapt", lambda self, state, context, run: adapt(self, state, context.first(0), run))


def permute_labels(monkeypatch, cls):
    """Give every choice that the method sees, in training and in contexts, the answer to another pair of the person."""
    fit, adapt = cls.fit, cls.adapt

    def permuted(pairs):
        order = np.lexsort((np.random.default_rng(len(pairs)).random(len(pairs)), pairs.user))
        turned = np.random.default_rng(len(pairs) + 1).random(len(pairs)) < 0.5  # which option won is by chance too
        label = pairs.label[order]
        return replace(pairs, label=np.where(turned, label, 1 - label).astype(np.float32))

    def fit_permuted(self, train, validation, run):
        shown = replace(validation, context=permuted(validation.context), query=permuted(validation.query))
        return fit(self, permuted(train), shown, run)

    monkeypatch.setattr(cls, "fit", fit_permuted)
    monkeypatch.setattr(cls, "adapt", lambda self, state, context, run: adapt(self, state, permuted(context), run))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "null"),
    [
        *(("rfm_models", null) for null in (make_coin, make_shared, ignore_context, permute_labels)),
        # all four nulls were run once on these too: eleven minutes, none green
        *((name, make_coin) for name in ("rfm_raters", "rfm_best_of_n", "rfm_budget", "pref_best_of_n")),
    ],
)
def test_no_claim_is_green_where_no_method_can_know_a_person(tmp_path, monkeypatch, name, null):
    file = schema.CLAIMS_FOLDER / f"{name}.toml"
    suite = read_suite(file, quick=True)
    for cls in {type(method) for method in suite.methods if not method.privileged}:
        if cls is not Shared or null in (make_coin, permute_labels):
            null(monkeypatch, cls)
    store = Store(tmp_path / "store").open()
    plan = make_plan(suite, store)
    assert all(good for _, good in finish_trials(plan.trials, store))
    judged = [judge_claim(claim, "", Results(plan, store)) for claim in schema.read_claims(file)[1]]
    assert {found.claim.id: found.verdict for found in judged if found.verdict in (HOLDS, HOLDS_IN_PART)} == {}
