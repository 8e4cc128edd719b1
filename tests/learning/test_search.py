"""Searches: the same settings for any number of workers, within the budget, and nothing tried twice."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest

from harness.learning import search as searching
from harness.learning.search import GENERATION, Search
from harness.method import Method, Run
from harness.search_space import OneOf, Span
from harness.store.store import Store


@dataclass(frozen=True)
class Bowl(Method):
    """A method whose loss on validation users is known: lowest at a = 4 and kind = "deep"."""

    search_space: ClassVar = {
        "a": Span(0.1, 100.0),
        "kind": OneOf(("flat", "deep")),
        "depth": Span(1, 9, whole=True, log=False, when={"kind": "deep"}),
    }
    a: float = 50.0
    kind: str = "flat"
    depth: int = 1


@pytest.fixture
def tried(monkeypatch):
    """The settings that are fitted, instead of a fit."""
    fitted = []

    def loss(method, train, validation, run):
        fitted.append(method)
        if method.a < 0.3:
            raise ValueError("too small")
        return abs(method.a - 4) + (method.kind == "flat") * 10 + abs(method.depth - 7) / 10

    monkeypatch.setattr(searching, "_validation_loss", loss)
    return fitted


def run_whole(search):
    while settings := search.propose():
        search.tell([search.try_setting(setting, None, None) for setting in settings])
    return search


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_keeps_to_its_budget_and_tries_the_default_first(tried, sampler):
    found = run_whole(Search(Bowl(), 37, 0.0, sampler, Run(0)))
    assert len(found.tried) == len(tried) == 37 and found.tried[0].setting == {} and tried[0] == Bowl()
    assert found.best.loss == min(each.loss for each in found.tried if each.loss is not None)
    assert found.best.loss < 12  # the default has 56.6
    failed = [each for each in found.tried if each.loss is None]
    assert all(each.reason == "ValueError: too small" for each in failed)
    assert [each.setting["a"] < 0.3 for each in failed] == [True] * len(failed)


def test_a_field_is_searched_only_where_it_matters(tried):
    for each in run_whole(Search(Bowl(), 40, 0.0, "random", Run(0))).tried[1:]:
        assert ("depth" in each.setting) == (each.setting["kind"] == "deep")
        assert 0.1 <= each.setting["a"] <= 100 and each.setting.get("depth", 1) in range(1, 10)


def test_a_field_that_is_given_is_obeyed(tried):
    found = run_whole(Search(Bowl(kind="deep"), 20, 0.0, "tpe", Run(0)))
    assert all(method.kind == "deep" for method in tried) and {*found.tried[3].setting} == {"a", "depth"}


def test_the_same_settings_whoever_tries_them(tried, tmp_path):
    """One seed gives one search, in one process or interrupted and begun again by others; another seed another one."""
    alone = run_whole(Search(Bowl(), 30, 0.0, "tpe", Run(0))).tried
    run = Run(0, store=Store(tmp_path).open(), identity={"data": "d"}, shots=(0, 5))
    first = Search(Bowl(), 30, 0.0, "tpe", run)
    first.tell([first.try_setting(setting, None, None) for setting in first.propose()])
    for setting in list(reversed(first.propose()))[:3]:  # a second generation begun from its end, then lost
        first.try_setting(setting, None, None)
    tried.clear()
    again = run_whole(Search(Bowl(), 30, 0.0, "tpe", run)).tried
    assert [each[:2] for each in again] == [each[:2] for each in alone]
    assert len(tried) == 30 - GENERATION - 3  # nothing is tried twice
    tried.clear()
    longer = run_whole(Search(Bowl(), 38, 0.0, "tpe", run)).tried
    assert [each[:2] for each in longer[:24]] == [each[:2] for each in alone[:24]] and len(tried) <= 14
    other = run_whole(Search(Bowl(), 30, 0.0, "tpe", Run(1))).tried
    assert [each[:2] for each in other[1:]] != [each[:2] for each in alone[1:]]


@pytest.mark.parametrize("change", [{"seed": 1}, {"identity": {"data": "e"}}, {"shots": (0,)}])
def test_a_loss_belongs_to_its_data_seed_and_shots(tried, tmp_path, change):
    run = Run(0, store=Store(tmp_path).open(), identity={"data": "d"}, shots=(0, 5))
    for each in (run, dataclasses.replace(run, **change), run):
        Search(Bowl(), 1, 0.0, "tpe", each).try_setting({}, None, None)
    assert len(tried) == 2


def test_no_generation_begins_after_the_seconds_are_spent(tried, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(searching.time, "process_time", lambda: next(clock))  # each setting takes one second
    assert len(run_whole(Search(Bowl(), 1000, 10.0, "tpe", Run(0))).tried) == 2 * GENERATION


def test_where_nothing_works_the_reason_is_said(tried):
    found = run_whole(Search(Bowl(a=0.2), 4, 0.0, "tpe", Run(0)))
    with pytest.raises(ValueError, match="none of 4 settings of .* worked: ValueError: too small"):
        _ = found.best
