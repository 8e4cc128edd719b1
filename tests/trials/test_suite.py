"""TOML suites: grids, controls, refusals, and errors of users."""

import dataclasses

import pytest
import scipy.stats

from harness import registry
from harness.errors import UserError
from harness.fields import field_values
from harness.method import TaskFacts
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import describe_plan, estimate_seconds, make_plan, unfinished_trials
from harness.trials.suite import CONTROL_METHODS, read_suite


def suite(tmp_path, text):
    file = tmp_path / "suite.toml"
    file.write_text(text)
    return read_suite(file)


def test_lists_are_grids(tmp_path):
    found = suite(
        tmp_path,
        """
        seeds = [3, 5]
        controls = false
        [[tasks]]
        name = "low_rank"
        n_users = [20, 40]
        rank = [1, 2, 3]
        shots = [0, 5]
        [[tasks]]
        name = "two_modes"
        shots = [[0, 1], [0, 2]]
        [[methods]]
        name = "rfm"
        dim = [8, 32]
        decay = 1
        """,
    )
    assert len(found.tasks) == 6 + 2 and len(found.methods) == 2 and found.seeds == (3, 5)
    assert {t.shots for t in found.tasks if t.name == "two_modes"} == {(0, 1), (0, 2)}
    assert {(t.n_users, t.rank) for t in found.tasks if t.name == "low_rank"} == {
        (n, r) for n in (20, 40) for r in (1, 2, 3)
    }
    assert all(m.decay == 1.0 and type(m.decay) is float for m in found.methods)


def test_a_byte_order_mark_is_no_part_of_a_suite(tmp_path):
    """Editors of Windows write one at the beginning of a file in UTF-8."""
    text = 'title = "Größe"\nseeds = 1\n[[tasks]]\nname = "two_modes"\n'
    plain = suite(tmp_path, text)
    (tmp_path / "marked.toml").write_bytes(text.encode("utf-8-sig"))
    marked = read_suite(tmp_path / "marked.toml")
    assert marked.digest == plain.digest and marked.title == plain.title == "Größe"


def test_controls_are_on_every_board(tmp_path):
    found = suite(tmp_path, 'seeds = 1\n[[tasks]]\nname = "low_rank"\n[[methods]]\nname = "per_user"\nscale = 2')
    assert [m.name for m in found.methods] == [c for c in CONTROL_METHODS if c != "per_user"] + ["per_user"]


def test_the_digest_is_of_settings_not_of_words(tmp_path):
    text = 'seeds = 2\n[[tasks]]\nname = "low_rank"\n'
    a = suite(tmp_path, text)
    assert suite(tmp_path, f'title = "other"\n{text}temperature = 1').digest == a.digest
    assert suite(tmp_path, f"{text}temperature = 2").digest != a.digest


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('seeds = 2\n[[tasks]]\nname = "low_rnak"', "there is no task 'low_rnak'", "'low_rank'"),
        ('[[tasks]]\nname = "low_rank"\n[[methods]]\nname = "per_usr"', "there is no method 'per_usr'", "'per_user'"),
        ('[[tasks]]\nname = "low_rank"\nn_user = 5', "has no field 'n_user'", "'n_users'"),
        ('[[tasks]]\nname = "low_rank"\nn_user = [5, 6]', "has no field 'n_user'", "'n_users'"),
        ('[[tasks]]\nname = "low_rank"\nn_users = "many"', "is not a whole number", "n_users"),
        ('[[tasks]]\nname = "low_rank"\nn_users = [20, 2.5]', "is not a whole number", "n_users"),
        ('[[tasks]]\nname = "low_rank"\nweights = "cauchy"', "is not 'gaussian' or 'dirichlet'", "weights"),
        ('[[tasks]]\nname = "low_rank"\ntemperature = nan', "is not a finite number", "temperature"),
        ('[[tasks]]\nname = "low_rank"\nshots = [5, 5]', "ascending order", "shots"),
        ('[[tasks]]\nname = "low_rank"\n[[tasks]]\nname = "low_rank"', "twice", "remove"),
        ('seeds = [1, 1]\n[[tasks]]\nname = "low_rank"', "different whole numbers", "seeds = 5"),
        ('margin = nan\n[[tasks]]\nname = "low_rank"', "is not between 0 and 1", "margin = 0.01"),
        ('[[tasks]]\nname = "low_rank"\nrank = 9\nfeature_dim = 4', "rank 9 is more than feature_dim 4", "lower"),
        ('[[tasks]]\nname = "low_rank"\nn_users = -3', "at least 1", ""),
        ('[[tasks]]\nname = "two_modes"\ncontext_conflict_rate = 7.0', "conflict rates in [0, 1]", ""),
        ('seed = 3\n[[tasks]]\nname = "low_rank"', "unknown key 'seed'", "'seeds'"),
        ("seeds = 3", "has no tasks", "[[tasks]]"),
        ("[[tasks]]\nn_users = 3", "is not a table with a name", "name ="),
        ("[[tasks", "is not TOML", "quick.toml"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, message, hint):
    with pytest.raises(UserError) as caught:
        suite(tmp_path, text)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_missing_suite_is_explained(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_suite(tmp_path / "nowhere.toml")


def test_methods_sit_out_with_a_reason(tmp_path):
    read = suite(tmp_path, 'seeds = 1\n[[tasks]]\nname = "low_rank"\nfeature_dim = 1100\nn_users = 5\nnew_users = 5')
    plan = make_plan(read, Store(tmp_path / "store").open())
    assert (plan.refusals[0].method.name, plan.refusals[0].reason) == ("surface", "needs items with text")
    assert [(r.method.name, "1,024" in r.reason) for r in plan.refusals][1:] == [("mixed_logit", True)]
    assert {t.method.name for t in plan.trials} == set(CONTROL_METHODS) - {"mixed_logit", "surface"}


def test_nobody_chooses_where_there_is_no_choice(tmp_path):
    """A method with elicitation refuses `low_rank`, whose users have no spare pairs, and runs on `attributes`."""
    read = suite(
        tmp_path,
        """
        seeds = 1
        controls = false
        [[tasks]]
        name = "low_rank"
        n_users = 5
        new_users = 5
        [[tasks]]
        name = "attributes"
        encoder = "numbers"
        [[methods]]
        name = "pref"
        elicitation = ["random", "uncertainty"]
        """,
    )
    plan = make_plan(read, Store(tmp_path / "store").open())
    ((task, method, reason),) = [(r.task.name, r.method.elicitation, r.reason) for r in plan.refusals]
    assert (task, method) == ("low_rank", "uncertainty") and "cannot choose context pairs" in reason
    assert [(t.task.name, t.method.elicitation) for t in plan.trials] == [
        ("low_rank", "random"),
        ("attributes", "random"),
        ("attributes", "uncertainty"),
    ]


def test_linear_methods_sit_out_where_items_have_no_numbers():
    text_only = TaskFacts(feature_dim=None, has_text=True, has_seconds=False, has_truth=False)
    for name in ("shared", "per_user", "spectral", "mixed_logit", "rfm"):
        assert "numeric features" in registry.make_instance("method", name, {}).refuses(text_only)
    assert registry.make_instance("method", "chance", {}).refuses(text_only) is None


def test_adding_a_method_leaves_the_rest_finished(tiny):
    file, plan, store = tiny
    file.write_text(file.read_text() + '\n[[methods]]\nname = "per_user"\nscale = 3.0\n[[methods]]\nname = "per_user"')
    grown = make_plan(read_suite(file), store)
    left = unfinished_trials(grown.trials, store)
    assert len(left) == 3 and all(t.method.scale == 3.0 for t in left)
    assert {t.key for t in plan.trials} < {t.key for t in grown.trials}


def test_forecast(tiny):
    _, plan, store = tiny
    told = describe_plan(plan, store)
    assert told["trials"] == told["finished"] == 18 and told["seconds_left"] == 0
    assert told["tasks"][0]["people"] == 3 * 10  # each of three seeds draws ten new people
    shift = (told["tasks"][0]["detectable"] - 0.01) / (0.2 * (1 + 9 * 0.05) / (30 * 10)) ** 0.5  # 0.01: the margin
    needed = scipy.stats.t.isf(0.025 / 3, 2)  # three methods that are no controls, three seeds
    assert scipy.stats.nct.sf(needed, 2, shift) == pytest.approx(0.8, abs=1e-4)
    one = make_plan(dataclasses.replace(plan.suite, seeds=(0,)), store)
    assert describe_plan(one, store)["tasks"][0]["detectable"] is None


def test_every_suite_of_the_project_can_be_read():
    files = sorted((registry.PROJECT_ROOT / "jobs" / "suites").glob("*.toml"))
    assert len(files) >= 2
    for file in files:
        read = read_suite(file)
        assert (
            read.tasks and all(field_values(t) for t in read.tasks) and len(read.seeds) >= 3
        )  # fewer have no interval


def test_a_tuned_method_is_timed_by_its_own_base(tmp_path):
    """The seconds of `rfm tuned` do not estimate those of `spectral tuned`, though both are trials of `tuned`."""
    file = tmp_path / "two.toml"
    small = '{ name = "low_rank", n_users = 20, new_users = 10, pairs_per_user = 10, shots = [0, 5] }'
    file.write_text(
        f'seeds = 1\ncontrols = false\ntasks = [{small}]\nmethods = [{{ name = "rfm" }}, {{ name = "spectral" }}]\n'
        "[tune]\ntrials = 1\n"
    )
    store = Store(tmp_path / "store").open()
    plan = make_plan(read_suite(file), store)
    tuned = {t.method.base.name: t for t in plan.trials if t.method.name == "tuned"}
    assert all(done for _, done in finish_trials([tuned["rfm"]], store))
    seconds = estimate_seconds(list(tuned.values()), store)
    taken = store.read_manifest("trials", tuned["rfm"].key)["facts"]["seconds"]
    assert seconds == {tuned["rfm"]: taken, tuned["spectral"]: tuned["spectral"].method.estimated_seconds}
