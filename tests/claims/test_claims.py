"""Claims: numbers equal scipy's and hand-worked ones, verdicts are right, and every shipped claim file is valid."""

import json
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from harness import registry
from harness.claims import judge as judging
from harness.claims import page as page_module
from harness.claims import reproduce, schema
from harness.claims.figures.kinds import check_figures
from harness.claims.judge import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    HOLDS_IN_PART,
    NOT_TESTABLE,
    VACUOUS,
    CheckResult,
    judge_claim,
)
from harness.claims.measures import Measurement, measure_check
from harness.claims.results import NoNumberError, Results, SelectedValues, paired_difference
from harness.claims.schema import Check, Claim, Selection
from harness.cli.verbs import app
from harness.errors import UnavailableError, UserError
from harness.inference.jobs import NotCachedError
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.prepare import prepare_task
from harness.trials.suite import read_suite

FILES = sorted(schema.CLAIMS_FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return a finished suite that sweeps a task's field and two methods."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "swept.toml").write_text("""
title = "swept"
seeds = 4
controls = false
[[tasks]]
name = "low_rank"
n_users = 20
new_users = 10
pairs_per_user = [10, 20, 40]
feature_dim = 4
rank = 2
shots = [0, 4]
queries = 10
[[methods]]
name = "per_user"
[[methods]]
name = "spectral"
rank = [1, 2]
""")
    store = Store(folder / "store").open()
    plan = make_plan(read_suite(folder / "swept.toml"), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    return Results(plan, store)


def column(results, method, pairs, shots, metric="accuracy", **fields):
    """Return float64[4]: the metric's mean over people for each seed, read directly from the store."""
    import pyarrow as pa

    found = {}
    for trial in results.plan.trials:
        ours = trial.method.name == method and trial.task.pairs_per_user == pairs
        if ours and all(getattr(trial.method, k) == v for k, v in fields.items()):
            manifest = results.store.read_manifest("trials", trial.key)
            table = pa.ipc.open_file(pa.py_buffer(results.store.read_verified(manifest, "scores.arrow"))).read_all()
            rows = table.to_pandas().query(f"panel == 'test' and shots == {shots} and not swapped")
            found[trial.seed] = rows[metric].mean()
    return np.array([found[s] for s in sorted(found)])


def few(pairs):
    return {"name": "low_rank", "pairs_per_user": pairs}


def close(found, value, low, high):
    assert found[:3] == pytest.approx((value, low, high), abs=1e-9)


def interval(values):
    return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


def test_a_score_alone_is_the_textbook_interval_where_people_are_nested_in_seeds(swept):
    values = column(swept, "per_user", 20, 4)
    found = measure_check(Check("", Selection(few(20), "per_user", shots=4)), swept)
    close(found, values.mean(), *interval(values))
    error = measure_check(Check("", Selection(few(20), "per_user", shots=4, metric="error")), swept)
    assert error[0] == pytest.approx(1 - values.mean())


def test_differences_ratios_and_spread(swept):
    a = column(swept, "spectral", 40, 4, rank=2)
    b = column(swept, "per_user", 40, 4)
    one, other = Selection(few(40), {"name": "spectral", "rank": 2}), Selection(few(40), "per_user")
    close(measure_check(Check("", one, minus=other), swept), (a - b).mean(), *interval(a - b))
    ratio = measure_check(Check("", one, over=other), swept)
    assert np.log(ratio[:3]) == pytest.approx((np.log(a / b).mean(), *interval(np.log(a / b))))
    gap = measure_check(Check("", Selection(few(40), "per_user", shots=4, less=({"shots": 0},))), swept)
    close(gap, (b - column(swept, "per_user", 40, 0)).mean(), *interval(b - column(swept, "per_user", 40, 0)))
    elsewhere = Selection(few(10), "per_user")
    c = column(swept, "per_user", 10, 4)
    close(measure_check(Check("", one, minus=elsewhere), swept), (a - c).mean(), *interval(a - c))
    value, *limits = measure_check(Check("", one, "spread", over=other), swept)[:3]
    assert value == pytest.approx(a.std() / b.std())
    for limit in limits:  # there Pitman's test of equal variances has a p-value of 5 %
        assert stats.pearsonr(a / limit + b, a / limit - b).pvalue == pytest.approx(0.05)
    wide = measure_check(Check("", one, minus=other), swept, 0.99)
    assert wide[1:3] == pytest.approx(stats.t.interval(0.99, 3, (a - b).mean(), stats.sem(a - b)))


def test_a_ratio_needs_numbers_above_0(swept):
    with pytest.raises(NoNumberError, match="0 or negative"):
        change = Selection(few(40), "per_user", shots=4, less=({"shots": 4},))
        measure_check(Check("", change, over=Selection(few(40), "per_user")), swept)
    with pytest.raises(NoNumberError, match="at least three seeds, with different"):
        measure_check(Check("", change, "spread", over=Selection(few(40), "per_user")), swept)


def test_differences_of_differences(swept):
    """A list of `less` is applied in order: the gain from shots, minus that of a method with half the rank."""
    gain = [column(swept, "spectral", 40, 4, rank=r) - column(swept, "spectral", 40, 0, rank=r) for r in (2, 1)]
    less = ({"shots": 0}, {"method": {"name": "spectral", "rank": 1}})
    both = Selection(few(40), {"name": "spectral", "rank": 2}, shots=4, less=less)
    close(measure_check(Check("", both), swept), (gain[0] - gain[1]).mean(), *interval(gain[0] - gain[1]))


def folds(rng, seeds, same, training, test):
    """Scores of 42 people in a five-fold cross-validation, those in training and those tested; no gap in truth.

    People differ by .1, seeds by `same` on both panels and by `training` or `test` on one.
    """
    fold, people = rng.permutation(42) % 5, rng.normal(0, 0.1, 42)
    common, panels = rng.normal(0, same, seeds), ([], [])
    for s in range(seeds):
        trained = (fold != s % 5) & (fold != (s + 1) % 5)
        for rows, who, own in zip(panels, (trained, fold == s % 5), (training, test), strict=True):
            who = np.flatnonzero(who)
            value = people[who] + common[s] + rng.normal(0, own) + rng.normal(0, 0.05, len(who))
            rows.append(pl.DataFrame({"person": who, "seed": np.full(len(who), s), "value": value}))
    return [SelectedValues.of_cells(pl.concat(rows)) for rows in panels]


@pytest.mark.parametrize("effects", [(0, 0, 0), (0.03, 0, 0), (0, 0.03, 0.03), (0.03, 0.02, 0.02)])
def test_panels_of_the_same_people_are_paired_over_people_and_seeds(effects):
    """95 % limits cover about 95 %; limits over seeds alone cover as much and are wider."""
    rng, covered, width, alone = np.random.default_rng(0), [], [], []
    for _ in range(600):
        a, b = folds(rng, 10, *effects)
        found = measure_check(Check("", Selection(method="a"), minus=Selection(method="b")), Panels(a, b))
        covered.append(found[1] <= 0 <= found[2])
        width.append(found[2] - found[1])
        alone.append(np.ptp(interval(a.value - b.value)))
    assert 0.92 <= np.mean(covered) <= 0.98  # 600 draws: a standard error of .009
    assert np.mean(width) < 0.8 * np.mean(alone)


class Panels:
    """A stand-in for Results that returns one of two given SelectedValues."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def selected_values(self, selection):
        return self.a if selection.method == "a" else self.b


def test_paired_panels_have_the_difference_of_means():
    a, b = folds(np.random.default_rng(0), 5, 0, 0, 0)
    found = paired_difference(a, b).cells
    seen, test = (v.cells.group_by("person").agg(pl.col("value").mean()).sort("person")["value"] for v in (a, b))
    assert found["person"].sort().to_list() == list(range(42)) and found["value"].mean() == pytest.approx(
        (seen - test).mean(), abs=0.01
    )
    assert paired_difference(b, a).cells["value"].mean() == pytest.approx(-found["value"].mean())
    other = SelectedValues.of_cells(b.cells.with_columns(pl.col("person") + 1000))
    assert paired_difference(a, other).cells is None
    again = paired_difference(
        paired_difference(a, b), paired_difference(a, b)
    )  # as where two methods' gaps are compared
    assert len(again.cells) == 42 and not again.value.any()


def test_trend_is_least_squares_over_the_sweep(swept):
    check = Check("", Selection("low_rank", "per_user"), "trend", along="pairs_per_user")
    curves = np.stack([column(swept, "per_user", n, 4) for n in (10, 20, 40)])
    slopes = np.array([stats.linregress([0, 1 / 3, 1], curves[:, s]).slope for s in range(4)])
    close(measure_check(check, swept), slopes.mean(), *interval(slopes))
    for of, along, told in (
        (Selection(few(10), "per_user"), "pairs_per_user", "no sweep"),
        (Selection("low_rank"), "name", "no sweep"),
    ):
        with pytest.raises(UserError, match=told):
            measure_check(Check("", of, "trend", along=along), swept)
    with pytest.raises(UserError, match="matches 3 task settings"):  # the suite has several settings of each rank
        measure_check(Check("", Selection("low_rank", "spectral"), "trend", along="rank"), swept)
    with pytest.raises(UserError, match="matches 3 method settings"):
        measure_check(Check("", Selection("low_rank"), "trend", along="pairs_per_user"), swept)


class Curves:
    """A stand-in for Results with per_user's curve over shots, and the goal at one number of shots."""

    def __init__(self, shots, curve, goal):
        self.task, self.curve, self.goal = SimpleNamespace(shots=shots), dict(zip(shots, curve, strict=True)), goal

    def single_setting(self, kind, wanted):
        return self.task

    def selected_values(self, selection):
        found = np.array(self.goal if selection.method == "goal" else self.curve[selection.shots])
        return SelectedValues(np.arange(len(found)), found)


def answers(*arguments, at=5):
    check = Check("", Selection(method="c", metric="auc"), "answers", over=Selection(method="goal", shots=at))
    return measure_check(check, Curves(*arguments))


def test_answers_needed_are_interpolated_on_the_mean_curve():
    """A mean curve of .5, .6, .8 at 0, 5, 10 answers reaches .75 at 8.75, and the limits are those of t tests."""
    noise = np.array([-0.02, 0.0, 0.02, 0.01, -0.01])
    curve = [0.5 + noise, 0.6 - noise, 0.8 + noise[::-1]]
    value, low, high, note, *_ = answers((0, 5, 10), curve, [0.75] * 5)
    assert value == pytest.approx(8.75 / 5, abs=1e-3) and not note
    for limit, sign in ((low, -1), (high, 1)):
        share = limit - 1
        ahead = (1 - share) * curve[1] + share * curve[2] - 0.75
        assert stats.ttest_1samp(ahead, 0).pvalue == pytest.approx(0.05, abs=4e-3) and np.sign(ahead.mean()) == sign


def test_answers_never_enough_are_a_lower_bound():
    """A goal that is not reached gives a lower bound, without upper limit."""
    noise = np.array([-0.02, 0.0, 0.02, 0.01, -0.01])
    value, low, high, note, *_ = answers((0, 5, 10), [0.5 + noise, 0.6 + noise, 0.7 - noise], [0.9] * 5)
    assert (value, low, high) == (2, 2, np.inf) and note == "a lower bound: not reached with 10 answers"
    assert (
        judging._verdict_on_range(Measurement(value, low, high), (25, np.inf), 0) == CANNOT_TELL
        and judging._verdict_on_range(Measurement(value, low, high), (1.5, np.inf), 0) == HOLDS
    )
    value, low, high, note, *_ = answers((0, 5, 10), [0.5 + noise, 0.6 + noise, 0.7 - noise], [0.705] * 5)
    assert (
        value == 2 and 1.8 < low < 2 and high == np.inf
    )  # nearly reached, so the lower limit is below the largest number of answers
    with pytest.raises(NoNumberError, match="at one shot or more"):
        answers((0, 5), [noise, noise], noise, at=0)


def test_a_goal_that_no_answers_reach_needs_none():
    value, low, high, *_ = answers((0, 5, 10), [[0.5, 0.51, 0.49], [0.6, 0.61, 0.6], [0.8, 0.7, 0.9]], [0.3] * 3)
    assert (value, low) == (0, 0) and high == 0


def test_logged_curves_and_diagnostics(swept):
    """Claims can use diagnostics of the task, and the last point of a curve of a network's fit."""
    manifests = {}

    class Noted(Results):
        def trial_manifest(self, trial):
            facts = {"readings": {"cosine": 0.1 * trial.seed}, "curves": {"loss": [9.0, 1.0 + trial.seed]}}
            return manifests.setdefault(trial.key, {"facts": facts})

    noted = Noted(swept.plan, swept.store)
    seeds = np.arange(4)
    close(
        measure_check(Check("", Selection(few(10), "per_user", metric="diagnostic:cosine")), noted),
        0.15,
        *interval(seeds / 10),
    )
    close(
        measure_check(Check("", Selection(few(10), "per_user", metric="curve:loss")), noted),
        2.5,
        *interval(1.0 + seeds),
    )
    with pytest.raises(NoNumberError, match="no diagnostic 'nonsense'; it has: cosine"):
        measure_check(Check("", Selection(few(10), "per_user", metric="diagnostic:nonsense")), noted)


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        ({"panel": "shifted"}, "no panel shifted; it has: seen, test, validation"),
        ({"metric": "diagnostic:r2"}, "no diagnostic 'r2'"),
        ({"metric": "curve:loss"}, "no curve 'loss'; it has: none"),
    ],
)
def test_what_is_known_only_after_the_run_cannot_be_told(swept, selection, why):
    check = Check("says", Selection(few(10), "per_user", **selection), expected=(0.0, 1.0))
    found = judge_claim(Claim("X", "", "", "", checks=(check,)), "", swept)
    assert found.verdict == CANNOT_TELL and why in found.checks[0].note


def test_a_panel_without_the_largest_shots_cannot_be_told(swept):
    trial = next(t for t in swept.plan.trials if t.method.name == "per_user" and t.task.pairs_per_user == 10)
    short = swept.score_table(trial).filter((pl.col("panel") != "seen") | (pl.col("shots") == 0))
    part = Results(swept.plan, swept.store, {trial.key: short})
    check = Check("", Selection(few(10), "per_user", "seen"), expected=(0.0, 1.0))
    assert (
        "too few answers for 4 shots" in judge_claim(Claim("X", "", "", "", checks=(check,)), "", part).checks[0].note
    )
    assert measure_check(Check("", Selection(few(10), "per_user")), part)[0] > 0.5


def test_a_claim_of_several_checks_has_limits_that_hold_at_once(swept):
    plain = Check("", Selection(few(20), "per_user"), expected=(0.0, 1.0))
    values = column(swept, "per_user", 20, 4)
    for count in (1, 2, 5):
        found = judge_claim(
            Claim("X", "", "", "", checks=(plain,) * count, beside=(replace(plain, expected=None),)), "", swept
        )
        for check, level in [*((c, 1 - 0.05 / count) for c in found.checks), (found.beside[0], 0.95)]:
            expected = stats.t.interval(level, 3, values.mean(), stats.sem(values))
            assert check.level == level and (check.low, check.high) == pytest.approx(expected)
        assert ("; 97.5 %)" in page_module.format_result(found.checks[0])) == (count == 2)
        assert "%" not in page_module.format_result(found.beside[0])


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.8, 0.9, HOLDS),
        (0.79, 0.9, HOLDS),
        (0.7, 0.85, CANNOT_TELL),
        (0.6, 0.7, DOES_NOT_HOLD),
        (None, None, CANNOT_TELL),
        (0.9, np.inf, CANNOT_TELL),
    ],
)
def test_a_check_is_judged_by_its_whole_interval(low, high, text):
    assert judging._verdict_on_range(Measurement(0.85, low, high), (0.8, 1.0), 0.01) == text


def found(verdict, part=""):
    return CheckResult("", 0.5, 0.4, 0.6, (0.0, 1.0), 0.0, part, verdict)


@pytest.mark.parametrize(
    ("checks", "text", "reason"),
    [
        ([found(HOLDS), found(HOLDS)], HOLDS, ""),
        ([found(HOLDS), found(DOES_NOT_HOLD), found(CANNOT_TELL)], DOES_NOT_HOLD, ""),
        ([found(HOLDS), found(CANNOT_TELL)], CANNOT_TELL, ""),
        ([found(HOLDS), found(VACUOUS)], VACUOUS, ""),
        ([found(HOLDS, "a"), found(HOLDS, "b")], HOLDS, ""),
        ([found(HOLDS, "a"), found(DOES_NOT_HOLD, "b")], HOLDS_IN_PART, "holds: a; does not hold: b"),
        ([found(HOLDS, "a"), found(CANNOT_TELL, "b"), found(HOLDS, "c")], HOLDS_IN_PART, "holds: a, c; cannot tell: b"),
        ([found(HOLDS, "a"), found(DOES_NOT_HOLD, "a"), found(DOES_NOT_HOLD, "b")], DOES_NOT_HOLD, ""),
        ([found(CANNOT_TELL, "a"), found(DOES_NOT_HOLD, "b")], DOES_NOT_HOLD, "cannot tell: a; does not hold: b"),
        # a check without a part belongs to every part
        ([found(DOES_NOT_HOLD), found(HOLDS, "a")], DOES_NOT_HOLD, ""),
        ([found(CANNOT_TELL), found(HOLDS, "a"), found(HOLDS, "b")], CANNOT_TELL, ""),
    ],
)
def test_verdicts(checks, text, reason):
    assert judging.verdict_on_claim(tuple(checks)) == (text, reason)


def test_a_claim_says_where_its_people_and_seeds_are_too_few(swept):
    """The published gain of .3 over no answers is found for sure, one of .02 beyond a smallest difference of .01 hardly."""
    of, less = Selection(few(40), "per_user", shots=4), Selection(few(40), "per_user", shots=0)
    for published, told in ((0.9, False), (0.02, True)):
        check = Check("", of, minus=less, expected=(0.01, np.inf), published_value=published)
        judged = judge_claim(Claim("X", "", "", "", checks=(check,)), "", swept)
        assert ("fewer than 80%" in judged.power_note) == told
        assert any(line.startswith("power: ") for line in page_module.source_lines(judged)) == told


def test_a_share_below_a_bound_of_one_or_more_is_vacuous(swept, monkeypatch):
    """A share of wrong answers minus a bound: what the bound says is known before the share is."""
    check = Check(
        "",
        Selection(few(20), "per_user", metric="error"),
        minus=Selection(few(20), "per_user"),
        expected=(-np.inf, -0.01),
    )
    known = Results.selected_values

    def with_bound(bound):
        return lambda self, wanted: (
            SelectedValues(np.arange(4), np.full(4, bound)) if wanted.metric == "accuracy" else known(self, wanted)
        )

    for bound, verdict in ((2104.0, VACUOUS), (1.02, VACUOUS), (0.99, HOLDS), (0.0, DOES_NOT_HOLD)):
        monkeypatch.setattr(Results, "selected_values", with_bound(bound))
        assert judge_claim(Claim("X", "", "", "", checks=(check,)), "", swept).verdict == verdict


@pytest.mark.parametrize(
    ("expected", "extra"),
    [
        ("[0, inf]", 'minus = { method = "true_subspace" }'),
        ("[-inf, 0]", "less = { shots = 0 }"),
        ("[1, inf]", 'over = { method = "true_subspace" }'),
        ("[-inf, 1]", 'measure = "spread", over = { method = "true_subspace" }'),
        ("[1, inf]", 'measure = "answers", over = { method = "true_subspace" }'),
        ("[0, inf]", 'measure = "trend", along = "rank"'),
    ],
)
def test_a_comparison_that_equals_would_meet_is_refused(shelf, expected, extra):
    of = 'of = { method = "chance" }'
    changed = of.replace(" }", f", {extra} }}") if extra.startswith("less") else f"{of}, {extra}"
    text = CLAIM.replace(f"{of}, expected = [0.9, inf]", f"{changed}, expected = {expected}", 1)
    assert text != CLAIM
    (shelf / "tiny.toml").write_text(text)
    with pytest.raises(UserError, match="is met by two that are equal") as mistake:
        reproduce.shipped_claims()
    assert "smallest difference" in mistake.value.hint


def test_power_is_the_share_of_new_draws_that_would_hold():
    """Five seeds of a known truth, drawn again 4,000 times: the t intervals that lie in the range."""
    rng, level, least = np.random.default_rng(3), 0.99, 0.05
    draws = 0.2 + 0.1 * rng.standard_normal((4000, 5))
    half = stats.t.ppf((1 + level) / 2, 4) * draws.std(1, ddof=1) / np.sqrt(5)
    held = (draws.mean(1) - half >= least).mean()
    measured = Measurement(0.0, -1.0, 1.0, se=0.1 / np.sqrt(5), df=4)
    assert measured.power(0.2, least, np.inf, level) == pytest.approx(held, abs=0.03)
    ratio = measured._replace(logarithmic=True)
    assert ratio.power(np.exp(0.2), np.exp(least), np.inf, level) == measured.power(0.2, least, np.inf, level)
    assert measured._replace(se=None).power(0.2, least, np.inf, level) is None


CLAIM = """
title = "tiny"
paper = "somebody"
seeds = 3
controls = false
[quick]
seeds = 3
tasks.low_rank = { queries = 5 }
[[tasks]]
name = "low_rank"
n_users = 20
new_users = 10
pairs_per_user = 20
feature_dim = 4
rank = 2
shots = [0, 4]
queries = 10
[[methods]]
name = "chance"
[[methods]]
name = "true_subspace"
[[claims]]
id = "X1"
title = "Knowing <nothing> is chance"
source = "Somebody 2026, table 1"
published = ".5"
checks = [{ says = "chance", of = { method = "chance" }, expected = [0.5, 0.5], tolerance = 1e-9 }]
beside = [{ says = "the line", of = { method = "true_subspace" } }]
[[claims]]
id = "X2"
title = "Everybody is perfect"
source = "Somebody 2026, table 2"
published = "1"
checks = [{ says = "chance", of = { method = "chance" }, expected = [0.9, inf] }]
[[claims]]
id = "X3"
title = "People said so"
source = "Somebody 2026, table 3"
published = "many"
cannot = "it needs people"
"""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "tiny.toml").write_text(CLAIM)
    for function in (reproduce.shipped_claims, reproduce.choose_claims):
        monkeypatch.setattr(function, "__defaults__", (folder,))
    return folder


def command(*words):
    return CliRunner().invoke(app, ["reproduce", *words])


def test_reproduce_prints_every_claim_with_source_value_interval_and_controls(shelf, tmp_path):
    listed = command().stdout
    assert "somebody" in listed and "X2" in listed and not (tmp_path / "store").exists()
    store = ("--local", "--store", str(tmp_path / "store"))
    out = command("somebody", *store)
    assert out.exit_code == 0
    for words in (
        "X1",
        "holds",
        "Somebody 2026, table 1",
        "published: .5",
        "does not hold",
        "the line",
        "it needs people",
    ):
        assert words in out.stdout
    every = json.loads(command("somebody", *store, "--json").stdout)
    assert [c["verdict"] for c in every] == [HOLDS, DOES_NOT_HOLD, NOT_TESTABLE]
    assert every[1]["checks"][0]["expected"] == [0.9, None]  # JSON knows no infinity
    (alone,) = json.loads(command("X2", *store, "--json").stdout)
    assert alone == every[1]
    (quick,) = json.loads(command("X1", "--quick", *store, "--json").stdout)
    assert quick["beside"][0]["value"] != every[0]["beside"][0]["value"]  # five queries, not ten


def test_what_can_be_judged_is_shown_before_the_error_of_a_run_that_ended_early(shelf, tmp_path, monkeypatch):
    def run_trials(trials, store, **options):
        assert options["trial_minutes"] == 7
        list(finish_trials([t for t in trials if t.method.name == "chance"], store))
        raise UserError("2 trials did not run: Ray is gone", "start Ray again")

    monkeypatch.setattr("harness.api.run_trials", run_trials)
    ended = command("somebody", "--store", str(tmp_path / "store"), "--trial-minutes", "7")
    assert isinstance(ended.exception, UserError) and "Ray is gone" in ended.exception.message
    assert "does not hold" in ended.stdout


def test_a_page_for_some_claims_does_not_replace_that_of_all(shelf, tmp_path):
    store = ("--local", "--store", str(tmp_path / "store"))
    for words in (["--all"], ["X1", "X2"], ["X1", "--quick"], ["--all", "--quick"], [str(shelf / "tiny.toml")]):
        assert command(*words, *store).exit_code == 0
    pages = {page.stem: page.read_text() for page in (tmp_path / "store" / "boards").iterdir()}
    names = {"claims", "claims-X1-X2", "claims-X1-quick", "claims-quick", "claims-tiny"}
    own = next(name for name in pages if name.startswith("claims-tiny-"))  # with a digest of its path
    pages["claims-tiny"] = pages.pop(own)
    inventories = {name: pages.pop(name) for name in list(pages) if name.startswith("papers")}
    assert pages.keys() == names
    assert inventories.keys() == {name.replace("claims", "papers", 1) for name in names - {"claims-tiny"} | {own}}
    assert 'href="papers-X1-quick.html"' in pages["claims-X1-quick"]
    assert 'href="claims-X1-quick.html"' in inventories["papers-X1-quick"]
    assert {name for name, page in pages.items() if "it needs people" in page} == {
        "claims",
        "claims-quick",
        "claims-tiny",
    }
    assert {name for name, page in pages.items() if "Everybody" not in page} == {"claims-X1-quick"}


def test_claims_of_ones_own_are_a_path(shelf, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(CLAIM.replace("X", "Z"))
    assert reproduce.choose_claims([str(mine), "X1"]) == {mine: {"Z1", "Z2", "Z3"}, shelf / "tiny.toml": {"X1"}}
    assert reproduce.choose_claims([str(mine), "Z1"]) == {mine: {"Z1"}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.toml").write_text(CLAIM)
    with pytest.raises(UserError, match="two suites are called mine"):
        reproduce.choose_claims([str(mine), str(tmp_path / "other" / "mine.toml")])
    assert reproduce.choose_claims([str(shelf / ".." / "claims" / "tiny.toml"), "X2"]) == {shelf / "tiny.toml": {"X2"}}
    mine.write_text(CLAIM.partition("[[claims]]")[0])
    with pytest.raises(UserError, match=r"mine\.toml has no claims"):
        reproduce.choose_claims([str(mine)])
    with pytest.raises(UserError, match=r"nobody\.toml does not exist"):
        reproduce.choose_claims([str(tmp_path / "nobody.toml")])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('method = "chance"', 'methd = "chance"', "unknown key 'methd'"),
        ("expected = [0.9, inf]", "tolerance = 0.1", "has no expected range"),
        ('cannot = "it needs people"', "", "needs either checks or a reason"),
        ('id = "X1"', 'note = "no id"', "id is missing"),
        ('id = "X1"', 'id = "X2"', "two claims are called X2"),
        ('says = "chance", of', 'measure = "median", says = "chance", of', "no measure 'median'"),
        ("expected = [0.9, inf]", "expected = 0.5", "is not a range"),
        ("expected = [0.9, inf]", "expected = [0.5]", "is not a range"),
        ("expected = [0.9, inf]", "expected = [0, 0.5, 1]", "is not a range"),
        ("expected = [0.9, inf]", "expected = [1, 0]", "is not a range"),
        ("expected = [0.9, inf]", 'expected = ["a", "b"]', "expected 1 is 'a'"),
        ("tolerance = 1e-9", 'tolerance = "x"', "tolerance is 'x'"),
        ("tolerance = 1e-9", "tolerance = -1", "must be finite, and 0 or more"),
        ("tolerance = 1e-9", "along = 3", "along is 3"),
        ("tolerance = 1e-9", 'along = "rank"', "the measure `value` takes no `along`"),
        ("tolerance = 1e-9", 'measure = "answers"', "the measure `answers` needs `over`"),
        ("tolerance = 1e-9", 'measure = "spread"', "the measure `spread` needs `over`"),
        ("tolerance = 1e-9", 'measure = "trend"', "the measure `trend` needs `along`"),
        ("tolerance = 1e-9", 'measure = "trend", along = "rank", minus = {}', "the measure `trend` takes no `minus`"),
        ("tolerance = 1e-9", "minus = {}, over = {}", "not both"),
        (
            "tolerance = 1e-9",
            'measure = "answers", over = { metric = "error" }',
            "needs a metric that is better when larger",
        ),
        ("checks = [", "checks = 3 # [", "checks 1 is 3, not a table"),
        ('method = "true_subspace" } }', 'method = "true_subspace" }, expected = [0, 1] }', "which is never judged"),
        ('of = { method = "chance"', 'of = { metric = "readin:r2", method = "chance"', "no metric 'readin:r2'"),
        ('of = { method = "chance"', 'of = { metric = "acuracy", method = "chance"', "no metric 'acuracy'"),
        ('of = { method = "chance"', 'of = { shots = "4", method = "chance"', "shots is '4'"),
        ('of = { method = "chance"', 'of = { shots = -1, method = "chance"', "below 0"),
        ('of = { method = "chance"', "of = { method = 3", "method is 3"),
        (
            'of = { method = "chance"',
            'of = { less = { less = {} }, method = "chance"',
            "`less` contains another `less`",
        ),
        ('of = { method = "chance"', 'of = { less = [{ pannel = "seen" }], method = "chance"', "unknown key 'pannel'"),
        ('of = { method = "chance"', 'of = { less = 3, method = "chance"', "less 1 is 3"),
        ("tolerance = 1e-9 }]", 'tolerance = 1e-9 }]\nfigures = "x"', "figures 1 is 'x'"),
        ("tolerance = 1e-9 }]", 'tolerance = 1e-9 }]\nfigures = { kind = "shots", metric = 3 }', "metric is 3"),
        (
            "tolerance = 1e-9 }]",
            'tolerance = 1e-9 }]\nfigures = { kind = "shots", published = [1] }',
            "published 1 is 1, not a table",
        ),
    ],
)
def test_what_a_claim_says_wrongly_is_a_mistake(shelf, old, new, told):
    text = CLAIM.replace(old, new, 1)
    assert text != CLAIM
    (shelf / "tiny.toml").write_text(text)
    with pytest.raises(UserError, match=told) as mistake:
        reproduce.shipped_claims()
    assert mistake.value.hint


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('of = { method = "chance"', 'of = { method = "chanse"', "'chanse', which is not in the suite"),
        ('of = { method = "chance"', "of = { panel = 'test'", "names no method, and matches 2 method settings"),
        (
            "tolerance = 1e-9",
            'minus = { method = "chance", metric = "brier" }',
            "accuracy and brier cannot be compared",
        ),
        ("tolerance = 1e-9", 'over = { method = "chance", metric = "brier" }', "accuracy and brier cannot be compared"),
        ("of = { method", 'of = { less = { metric = "brier" }, method', "accuracy and brier cannot be compared"),
        ('of = { method = "chance"', 'of = { task = { rank = 9 }, method = "chance"', "which is not in the suite"),
        ('of = { method = "chance"', 'of = { shots = 3, method = "chance"', "is not scored at 3 shots"),
        (
            'of = { method = "chance"',
            'of = { less = [{}, { shots = 3 }], method = "chance"',
            "is not scored at 3 shots",
        ),
        ("tolerance = 1e-9", 'measure = "trend", along = "rank"', "no sweep along 'rank'"),
        ("tasks.low_rank = { queries = 5 }", "tasks = 3", "quick.tasks = 3 is neither"),
        ("tasks.low_rank = { queries = 5 }", "tasks.low_rank = 3", "is neither"),
        (
            "tasks.low_rank = { queries = 5 }",
            "tasks.lowrank = { queries = 5 }",
            "names 'lowrank', which is not in the suite",
        ),
        ("tasks.low_rank = { queries = 5 }", "queries = 5", "unknown key 'queries' in quick"),
        ("[quick]\nseeds = 3", "[quick]\nseeds = 3.5", "quick.seeds = 3.5 is neither"),
        (
            "tolerance = 1e-9 }]",
            'tolerance = 1e-9 }]\nfigures = { kind = "shots", methods = "no" }',
            "'no', which is not in",
        ),
        ("tolerance = 1e-9 }]", 'tolerance = 1e-9 }]\nfigures = { kind = "shots", metric = "r" }', "no metric 'r'"),
        (
            "tolerance = 1e-9 }]",
            'tolerance = 1e-9 }]\nfigures = { kind = "along", field = "rank" }',
            "has only one value",
        ),
    ],
)
def test_what_the_suite_lacks_is_told_before_anything_runs(shelf, tmp_path, old, new, told):
    (shelf / "tiny.toml").write_text(CLAIM.replace(old, new, 1))
    out = command("--all", "--local", "--store", str(tmp_path / "store"))
    assert isinstance(out.exception, UserError) and told in out.exception.message
    assert not list((tmp_path / "store" / "tasks").iterdir())


def test_a_share_may_be_compared_with_a_reading(shelf):
    text = CLAIM.replace("tolerance = 1e-9", 'minus = { method = "chance", metric = "diagnostic:bound" }', 1)
    (shelf / "tiny.toml").write_text(text)
    judging.check_selections(read_suite(shelf / "tiny.toml"), schema.read_claims(shelf / "tiny.toml")[1])


def test_a_panel_that_the_task_lacks_is_told_before_any_trial(shelf, tmp_path):
    (shelf / "tiny.toml").write_text(CLAIM.replace("of = { method", 'of = { panel = "sen", method', 1))
    out = command("--all", "--local", "--store", str(tmp_path / "store"))
    assert "X1, 'chance': low_rank has no panel 'sen'" in out.exception.message and "'seen'" in out.exception.hint
    assert not list((tmp_path / "store" / "trials").iterdir())


def test_mistakes_name_their_file_and_what_was_meant(shelf, tmp_path):
    (shelf / "tiny.toml").write_text(CLAIM.replace('of = { method = "chance"', 'of = { method = "chanse"', 1))
    out = command("X1", "--store", str(tmp_path / "store"))
    told = "tiny: X1, 'chance': the selection names the method 'chanse', which is not in the suite"
    assert (out.exception.message, out.exception.hint) == (told, "did you mean 'chance'?")
    (shelf / "tiny.toml").write_text(CLAIM.replace("tolerance = 1e-9 }]", "tolerance = 1e-9 }]\nfigures = [{}]", 1))
    with pytest.raises(UserError, match=r"tiny.toml: claim X1, figure 1: `kind` is missing"):
        reproduce.shipped_claims()


def test_all_takes_no_names_and_a_data_folder_exists(shelf, tmp_path):
    store = ("--store", str(tmp_path / "store"))
    assert "leave out --all" in command("--all", "X1", *store).exception.hint
    assert "does not exist" in command("X1", "--data", str(tmp_path / "none"), *store).exception.message


def test_a_suite_without_quick_settings_says_that_it_runs_in_full(shelf, tmp_path):
    store = ("--quick", "--local", "--store", str(tmp_path / "store"))
    out = command("X1", *store)
    assert "in full" not in out.stderr and "1 suite: 6 trials" in out.stderr
    quick, tables = CLAIM.index("[quick]"), CLAIM.index("[[tasks]]")
    (shelf / "tiny.toml").write_text(CLAIM[:quick] + CLAIM[tables:])
    assert "tiny.toml has no quick settings: it runs in full" in command("X1", *store).stderr


def test_what_is_finished_can_be_read_where_nothing_can_be_written(shelf, tmp_path, monkeypatch):
    def refuse(store):
        raise UserError(f"the store {store.root} cannot be written", "name another")

    store = ("--local", "--store", str(tmp_path / "store"))
    assert command("X1", *store).exit_code == 0
    monkeypatch.setattr(Store, "open", refuse)
    out = command("X2", *store)
    assert out.exit_code == 0 and "does not hold" in out.stdout and "none: the store" in out.stderr
    (shelf / "tiny.toml").write_text(
        CLAIM.replace('name = "chance"', 'name = "shared"').replace('"chance"', '"shared"')
    )
    assert "cannot be written" in command("X2", *store).exception.message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.93149, ".931"),
        (-2.34e-4, "-.00023"),
        (4.96e-4, ".00050"),
        (5.1e-4, ".001"),
        (-1e-17, ".000"),
        (2104, "2,104"),
    ],
)
def test_numbers_near_0_are_not_all_alike(value, text):
    assert page_module.format_value(value) == text


def test_limits_of_a_share_are_told_within_0_and_1(swept, monkeypatch):
    monkeypatch.setattr(judging, "measure_check", lambda *_: Measurement(0.998, 0.991, 1.006))
    share = Check("", Selection(few(10), "per_user"), expected=(0.9, 1.0))
    gain = Check("", Selection(few(10), "per_user", less=({"shots": 0},)), expected=(0.9, 1.0))
    ((a,), (b,)) = (judge_claim(Claim("X", "", "", "", checks=(c,)), "", swept).checks for c in (share, gain))
    assert (a.high, b.high) == (1.0, 1.006)


def test_wrong_names_have_hints(shelf):
    with pytest.raises(UserError) as mistake:
        reproduce.choose_claims(["x2"])
    assert mistake.value.hint == "did you mean 'X2'?"
    with pytest.raises(UserError, match="no paper or claim 'sombody'") as mistake:
        reproduce.choose_claims(["sombody"])
    assert "did you mean" in mistake.value.hint
    (shelf / "more.toml").write_text(CLAIM)
    with pytest.raises(UserError, match=r"tiny\.toml: more\.toml already has a claim X1"):
        reproduce.shipped_claims()


def test_a_suite_that_cannot_be_built_is_a_mistake_not_a_verdict(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(registry.load_class("task", "low_rank"), "build", lambda self, seed: 1 / 0)
    out = command("--all", "--local", "--store", str(tmp_path / "store"))
    assert (
        isinstance(out.exception, UserError)
        and "task low_rank: build raised ZeroDivisionError" in out.exception.message
    )


def test_data_that_is_not_at_hand_costs_only_its_own_claims(shelf, tmp_path, no_data, monkeypatch):
    text = CLAIM.replace('name = "low_rank"', 'name = "snacks"').replace("X", "Y")
    for line in ("n_users = 20", "new_users = 10", "pairs_per_user = 20", "feature_dim = 4", "rank = 2"):
        text = text.replace(line, "")
    (shelf / "people.toml").write_text(text.replace("tasks.low_rank = { queries = 5 }", ""))
    monkeypatch.setenv("MANYMINDS_DATA", str(tmp_path))
    told = json.loads(command("--all", "--local", "--store", str(tmp_path / "store"), "--json").stdout)
    verdicts = {c["id"]: c["verdict"] for c in told}
    assert verdicts == {
        "X1": HOLDS,
        "X2": DOES_NOT_HOLD,
        "X3": NOT_TESTABLE,
        "Y1": CANNOT_TELL,
        "Y2": CANNOT_TELL,
        "Y3": NOT_TESTABLE,
    }
    assert "ClitheroDataset.csv" in next(c["reason"] for c in told if c["id"] == "Y1")
    out = command("Y1", "Y2", "--local", "--store", str(tmp_path / "store"))  # none of the selected claims can run
    assert isinstance(out.exception, UserError) and "ClitheroDataset.csv" in out.exception.message
    (shelf / "none.toml").write_text(
        CLAIM[: CLAIM.index("[[claims]]")]
    )  # also where another suite without claims could run
    wanted = {shelf / "none.toml": set(), shelf / "people.toml": {"Y1", "Y2"}}
    with pytest.raises(UnavailableError, match=r"ClitheroDataset\.csv"):
        reproduce.plan_chapters(wanted, Store(tmp_path / "store"), quick=False)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_shipped_claims_and_figures_select_what_their_suites_have(file):
    read = schema.read_claims(file)[1]
    for quick in (False, True):
        suite = read_suite(file, quick)
        judging.check_selections(suite, read)
        check_figures(suite, read)
    assert "paper" in tomllib.loads(file.read_text())


def test_ids_are_unique():
    assert reproduce.shipped_claims().keys() == set(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_tasks_of_every_shipped_claim_can_be_prepared(file, tmp_path):
    """With the quick settings, and with the registered seeds; what needs data or a model that is not here is skipped."""
    store = Store(tmp_path / "store").open()
    for suite in (read_suite(file, quick=True), read_suite(file)):
        for task in suite.tasks:
            try:
                prepare_task(store, task, suite.seeds[0])
            except (UnavailableError, NotCachedError) as missing:
                pytest.skip(missing.message)


def test_nothing_is_judged_where_a_claim_cannot_be_tested():
    """Such a claim is neither on the paper's own material nor on a stand-in."""
    cannot = [
        judging.JudgedClaim(claim, paper, "", NOT_TESTABLE)
        for _, (paper, claims) in reproduce.shipped_claims().items()
        for claim in claims
        if claim.cannot
    ]
    assert cannot and {judged.ground for judged in cannot} == {"nothing was judged"}
