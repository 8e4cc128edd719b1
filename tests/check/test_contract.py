"""Every task and method keeps the contract, and the contract checks catch violations."""

import contextlib
import functools
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from harness import registry
from harness.check import contract
from harness.check.contract import check_name
from harness.check.methods import method_checks, with_small_model
from harness.check.tasks import task_checks
from harness.data import Splits
from harness.errors import UserError
from harness.methods.chance import Chance
from harness.methods.mixed_logit import MixedLogit
from harness.methods.per_user import PerUser
from harness.models import small
from harness.store.store import Store
from tasks.low_rank import LowRank

REAL = {"arguments", "food_risk", "objectives", "personas", "rated_aspects", "snacks"}
# Need the hub or a table: tests/tasks/test_prism.py and test_presets.py check their contracts on small files.
PRESETS = {file.stem for file in (registry.PROJECT_ROOT / "tasks" / "presets").glob("*.py")}
HUB = {"prism", "choices", "ratings", "votes"} | PRESETS
NETWORKS = {"dpl", "np_btl", "pal", "vpl"}  # the checks train them three times for thousands of steps; here for 20
# Policies read all pairs about thirty times with a language model, here with a one-layer model (np_dpo and vas are
# still fast); dpo_dedicated has one policy per user. These tasks build large or slow data four times.
SLOW = {"dpo", "dpo_dedicated", "personas", "response_times"}
NAMES = [name for name in [*registry.list_names("task"), *registry.list_names("method")] if name not in HUB]


@pytest.fixture
def one_layer(monkeypatch):
    """Make the untrained language model of the checks a narrow one with a single layer."""
    build = small.build_small_model

    def build_smaller(folder, steps):
        build(folder, steps=steps)
        told = AutoConfig.from_pretrained(folder).to_dict()
        for name in ("layer_types", "head_dim"):
            told.pop(name, None)
        less = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        AutoModelForCausalLM.from_config(Qwen2Config(**told | less)).save_pretrained(folder)

    monkeypatch.setattr(small, "build_small_model", build_smaller)


@contextlib.contextmanager
def in_few_steps(method):
    with with_small_model(method) as (less, store):
        yield replace(less, steps=20), store


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_keeps_the_contract(name, request, tmp_path, monkeypatch, one_layer):
    if name in REAL:
        request.getfixturevalue("data_folder")
    if name in NETWORKS:
        monkeypatch.setattr(contract, "with_small_model", in_few_steps)
    findings = list(check_name(name, Store(tmp_path)))
    assert len(findings) >= 11  # guards against a contract that runs no checks
    assert [f for f in findings if f.problem] == []


def broken(battery):
    return {what for what, ask in battery if _problem(ask)}


def _problem(ask):
    try:
        return ask()
    except Exception as error:
        return str(error)


@functools.cache
def of_sound(method):
    """Return the rules checked for a sound method, and its violations; computed once for all broken methods."""
    return [what for what, _ in method_checks(method())], broken(method_checks(method()))


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
        (LeftAlwaysWins, "left and right carry no information"),
        (Forgetful, "the same seed builds the same data"),
        (Leaky, "no split leaks"),
        (Stingy, "every user has enough context pairs and a query"),
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


@dataclass(frozen=True)
class TakesAnything(PerUser):
    gain: float = 1.0

    def __post_init__(self):
        pass  # omits super().__post_init__()


ASKS = "elicitation depends on the user and the pair alone"


class AsksThree(MixedLogit):
    def uncertainty(self, state, users, pool):
        return torch.ones(3)


class AsksByCompany(MixedLogit):
    def uncertainty(self, state, users, pool):
        return super().uncertainty(state, users, pool) / pool.n_users


class AsksByPosition(MixedLogit):
    def uncertainty(self, state, users, pool):
        return self.score(state, users, pool)


class AsksNobodyKnows(MixedLogit):
    def uncertainty(self, state, users, pool):
        return super().uncertainty(state, users, pool) * torch.nan


@pytest.mark.parametrize(
    ("method", "caught"),
    [
        (TakesAnything, "fields reject values of a wrong type"),
        (AsksThree, ASKS),
        (AsksByCompany, ASKS),
        (AsksByPosition, ASKS),
        (AsksNobodyKnows, ASKS),
        (LikesTheLeft, "swapping the sides of a query flips the sign"),
        (CountsContext, "a user alone and among others with longer contexts gets the same predictions"),
        (FirstPairOnly, "the order of the context changes nothing"),
        (Random, "the same seed gives the same predictions"),
        (Peeks, "inputs are not modified"),
        (Remembers, "the method object keeps nothing learned"),
    ],
)
def test_catches_a_broken_method(method, caught):
    asked, found = of_sound(MixedLogit if issubclass(method, MixedLogit) else PerUser)
    assert caught in broken(method_checks(method()))
    assert caught in asked and caught not in found


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("generate", {}, "declare generates = True"),
        ("export", {}, "declare exports = True"),
        ("questions", {}, "declare asks_model = True"),
        ("nothing", {"exports": True}, "there is no `export`"),
        ("export", {"exports": True}, None),
    ],
)
def test_what_a_method_can_do_is_declared(name, flags, says):
    made = type("Mine", (PerUser,), {name: lambda self, *_: None, "__module__": __name__, **flags})
    (ask,) = [ask for what, ask in method_checks(made()) if what == "capabilities are declared"]
    assert ask() == says if says is None else says in ask()


def test_a_policy_of_ones_own_needs_no_language_model():
    class Canned(PerUser):
        generates = True

        def generate(self, state, users, user, prompts, run):
            raise NotImplementedError

    with with_small_model(Canned()) as (method, _):
        assert method == Canned()


BROKEN = '''"""A task that cannot be built, for the tests."""
from dataclasses import dataclass
from tasks.low_rank import LowRank

@dataclass(frozen=True)
class Broken(LowRank):
    {}
'''


@pytest.mark.parametrize(
    ("line", "what", "says"),
    [
        ("def build(self, seed): return {}['rows']", "build and split work", r"KeyError: 'rows' \(broken.py:7\)"),
        ("def split(self, data, seed): return data.pear", "build and split work", r"AttributeError: .*\(broken.py:7\)"),
        ("def split(self, data, seed): return None", "build and split work", "split Splits"),
        ("def __init__(self, size): pass", "every field has a default", "TypeError: .* 'size'"),
    ],
)
def test_what_cannot_be_built_is_a_finding(line, what, says, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(BROKEN.format(line))
    registry.add_plugins([file])
    (found,) = [finding for finding in check_name("broken", Store(tmp_path)) if finding.problem]
    assert found.what.endswith(what) and re.search(says, found.problem)


@pytest.mark.parametrize(
    ("kind", "name", "fields", "says"),
    [
        ("task", "low_rank", {"temperature": float("nan")}, "low_rank.temperature = nan is not a finite number"),
        ("task", "low_rank", {"weights": "cauchy"}, "is not 'gaussian' or 'dirichlet'"),
        ("task", "low_rank", {"n_users": 2.5}, "is not a whole number"),
        ("task", "low_rank", {"shots": 5}, "low_rank.shots = 5"),
        ("method", "per_user", {"scale": float("inf")}, "per_user.scale = inf is not a finite number"),
        ("method", "mixed_logit", {"elicitation": "always"}, "is not 'random' or 'uncertainty'"),
        ("method", "mixed_logit", {"steps": True}, "is not a whole number"),
    ],
)
def test_python_may_say_no_more_than_a_suite(kind, name, fields, says):
    with pytest.raises(UserError, match=says):
        registry.load_class(kind, name)(**fields)


def test_python_and_a_suite_mean_the_same_setting():
    task = LowRank(temperature=2, shots=[0, 3])
    assert task == registry.make_instance("task", "low_rank", {"temperature": 2.0, "shots": (0, 3)})
    assert type(task.temperature) is float and type(task.shots) is tuple


@pytest.mark.parametrize(
    ("order", "sound"), [("sorted(names)", True), ("names", False), ("os.getpid() and names", False)]
)
def test_a_task_that_differs_between_processes_is_caught(tmp_path, order, sound):
    """People are split in the order of a set of their names, which is another in every process."""
    (tmp_path / "unsteady.py").write_text(
        f'''"""A task whose split follows the order of a set."""
import os
from dataclasses import dataclass
import numpy as np
from tasks.low_rank import LowRank

@dataclass(frozen=True)
class Unsteady(LowRank):
    def build(self, seed):
        names = {{f"person {{i}}" for i in range(40)}}
        first = zip({order}, range(40))
        return super().build(seed + sum(i for name, i in first if name < "person 2"))
'''
    )
    registry.add_plugins([tmp_path / "unsteady.py"])
    task = registry.make_instance("task", "unsteady", SMALL)
    problems = {what: ask() for what, ask in task_checks(task, Store(tmp_path / "store").open())}
    assert problems["the same seed builds the same data"] is None
    assert (problems["another process builds and splits the same data"] is None) == sound
