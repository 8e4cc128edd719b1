"""Every task and method keeps the contract, and the contract catches those that do not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from harness import find
from harness.check import check_name, method_checks, task_checks
from harness.data import Splits
from harness.methods.chance import Chance
from harness.methods.per_user import PerUser
from tasks.low_rank import LowRank

REAL = {"arguments", "food_risk", "objectives", "personas", "rated_aspects", "snacks"}


@pytest.mark.parametrize("name", [*find.names("task"), *find.names("method")])
def test_keeps_the_contract(name, request):
    if name in REAL:
        request.getfixturevalue("data_folder")
    findings = list(check_name(name))
    assert len(findings) >= 11  # a battery that runs nothing is green too
    assert [f for f in findings if f.problem] == []


def broken(battery):
    return {what for what, ask in battery if _problem(ask)}


def _problem(ask):
    try:
        return ask()
    except Exception as error:
        return str(error)


SMALL = dict(n_users=20, new_users=10, pairs_per_user=30, feature_dim=4, rank=2)


class LeftAlwaysWins(LowRank):
    def build(self, seed):
        data = super().build(seed)
        return replace(data, pairs=replace(data.pairs, label=np.ones_like(data.pairs.label)))


class Forgetful(LowRank):
    def build(self, seed):
        return super().build(np.random.randint(1 << 30))


class Leaky(LowRank):
    def split(self, data, seed):
        splits = super().split(data, seed)
        test = splits.panels["test"]
        return Splits(splits.train, dict(splits.panels) | {"test": replace(test, query=test.context)})


class Stingy(LowRank):
    def split(self, data, seed):
        splits = super().split(data, seed)
        test = splits.panels["test"]
        return Splits(splits.train, dict(splits.panels) | {"test": replace(test, context=test.context.first(3))})


@pytest.mark.parametrize(
    ("task", "caught"),
    [
        (LeftAlwaysWins, "position tells nothing"),
        (Forgetful, "the same seed builds the same data"),
        (Leaky, "no split leaks"),
        (Stingy, "everybody has enough pairs to show and one to ask"),
    ],
)
def test_catches_a_broken_task(task, caught):
    assert caught in broken(task_checks(task(**SMALL)))
    assert caught not in broken(task_checks(LowRank(**SMALL)))


class LikesTheLeft(Chance):
    def score(self, state, users, query):
        return torch.ones(len(query))


class CountsContext(PerUser):
    def adapt(self, state, context, run):
        (weights,) = super().adapt(state, context, run)
        return (weights * float(np.diff(context.offsets).max() + 1),)


class FirstPairOnly(PerUser):
    def adapt(self, state, context, run):
        return super().adapt(state, context.first(1), run)


class Random(PerUser):
    def score(self, state, users, query):
        return super().score(state, users, query) * (1 + torch.rand(1))


class Peeks(PerUser):
    def adapt(self, state, context, run):
        context.label[:] = 1
        return super().adapt(state, context, run)


@dataclass(frozen=True)
class Remembers(PerUser):
    def fit(self, train, validation, run):
        object.__setattr__(self, "state", super().fit(train, validation, run))
        return self.state


@pytest.mark.parametrize(
    ("method", "caught"),
    [
        (LikesTheLeft, "swapping the sides of a query flips the sign"),
        (CountsContext, "a user alone and among others with longer contexts gets the same answers"),
        (FirstPairOnly, "the order of the context changes nothing"),
        (Random, "the same seed gives the same answers"),
        (Peeks, "inputs are left as they were"),
        (Remembers, "it holds nothing learned"),
    ],
)
def test_catches_a_broken_method(method, caught):
    assert caught in broken(method_checks(method()))
    assert caught not in broken(method_checks(PerUser()))
