"""Units of feature columns: no score depends on them, for any method."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.data import Items, PreferenceDataset
from harness.errors import UserError
from harness.scaling import ColumnScale
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.task import Task
from harness.trials.prepare import prepare_task, task_facts
from harness.trials.run import run_trial
from harness.trials.trial import Trial

N_ITEMS, DIM = 60, 3


@dataclass(frozen=True)
class Offers(Task):
    """A task in which people weigh the first column, half of them against the other half; the others are noise."""

    shots: tuple[int, ...] = (0, 5, 20)
    queries: int = 15
    exponents: tuple[int, ...] = (0, 0, 0)  # of the columns' units, powers of two
    offset: float = 0.0  # added to the first column, in which it cancels

    def build(self, seed):
        rng = np.random.default_rng(3)
        x = rng.normal(size=(N_ITEMS, DIM))
        user = np.repeat(np.arange(30), 45)
        left = rng.integers(N_ITEMS, size=len(user))
        right = (left + rng.integers(1, N_ITEMS, size=len(user))) % N_ITEMS
        label = (x[left, 0] > x[right, 0]) == (user % 2 == 0)
        features = np.ldexp(x + np.array([self.offset, 0, 0]), np.array(self.exponents))
        return PreferenceDataset.from_pairs(user, left, right, label, Items(features))


def predictions(task, method, folder):
    store = Store(folder).open()
    prepared = prepare_task(store, task, 0)
    trial = Trial(task, method, 0, prepared["facts"]["data"], prepared["key"])
    return run_trial(trial, open_prepared_task(store, prepared["key"]).splits, None).predictions


def methods_on_numbers(tmp_path_factory):
    """Return every method that runs on numeric features, in small."""
    facts = task_facts(prepare_task(Store(tmp_path_factory.mktemp("facts")).open(), Offers(), 0))
    small = {
        "np_btl": {"steps": 20},
        "pal": {"steps": 20},
        "vpl": {"steps": 20},
        "icra": {"steps": 5},
        "dpl": {"steps": 20},
    }
    found = {}
    for name in registry.list_names("method"):
        method = registry.make_instance("method", name, {})
        if method.refuses(facts) is None and not method.asks_model:
            fields = {k: v for k, v in small.get(name, {"steps": 20}).items() if hasattr(method, k)}
            found[name] = registry.make_instance("method", name, fields)
    return found


@pytest.mark.parametrize(
    ("units", "names"),
    [
        ((-40, 55, 1), ("shared", "per_user", "mixed_logit", "spectral")),
        pytest.param((30, 0, -30), None, marks=pytest.mark.slow),  # every method, some of which take seconds
    ],
)
def test_no_method_sees_units(units, names, tmp_path_factory):
    """Every method gives the same bits in any units, since no power of two changes a rounding."""
    found = methods_on_numbers(tmp_path_factory)
    assert {"shared", "per_user", "mixed_logit", "spectral", "np_btl"} <= set(found) and len(found) > 8
    found = {name: found[name] for name in names or found}
    for name, method in found.items():
        plain = predictions(Offers(), method, tmp_path_factory.mktemp("plain"))
        scaled = predictions(Offers(exponents=units), method, tmp_path_factory.mktemp("scaled"))
        assert all(np.array_equal(plain[key], scaled[key]) for key in plain), name


def test_a_large_offset_hides_nothing(tmp_path):
    """Seconds since 1970 differ by seconds: in float32 they would all be equal."""
    near = predictions(Offers(), registry.make_instance("method", "per_user", {}), tmp_path / "a")
    far = predictions(Offers(offset=2.0**31), registry.make_instance("method", "per_user", {}), tmp_path / "b")
    assert np.abs(near["test/20"] - far["test/20"]).max() < 1e-3 * np.abs(near["test/20"]).max()


@given(
    st.integers(-900, 900),
    st.integers(-900, 900),
    st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=6, max_size=6, unique=True),
)
@settings(max_examples=50)
def test_scaling_is_exact(first, second, values):
    x = np.array(values).reshape(3, 2)
    left, right = np.array([0, 1]), np.array([1, 2])
    plain = ColumnScale.of_pairs(x, left, right).apply(x)
    moved = np.ldexp(x, np.array([first, second]))
    assert np.array_equal(ColumnScale.of_pairs(moved, left, right).apply(moved), plain)
    assert np.sqrt(np.square(plain[left] - plain[right]).mean(0)) == pytest.approx(np.ones(2), rel=1e-5)


def test_a_constant_column_and_one_that_only_other_items_have():
    x = np.array([[4.0, 7, 0], [4, 7, 1], [4, 9, 2]])
    scaled = ColumnScale.of_pairs(x, np.array([0]), np.array([1])).apply(x)
    assert (scaled[:, 0] == 0).all() and np.isfinite(scaled).all() and scaled[2, 1] > 1


def test_a_value_that_would_hide_all_others_is_named():
    x = np.random.default_rng(0).normal(size=(50, 2))
    x[7, 1] = 1e18
    with pytest.raises(UserError, match=r"feature column 1 of item 7 is 1e\+18") as caught:
        ColumnScale.of_pairs(x, np.arange(6), np.arange(10, 16)).apply(x)
    assert "logarithm" in caught.value.hint
