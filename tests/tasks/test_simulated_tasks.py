"""Simulated tasks agree with closed forms: conflict rates, Bayes errors, ceilings, first-passage times."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest

from harness.errors import UserError
from harness.registry import make_instance
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.correlated_aspects import CorrelatedAspects, draw_scores
from tasks.model_raters import ModelRaters
from tasks.raters import Raters
from tasks.response_times import ResponseTimes, simulate_decisions
from tasks.two_modes import mode_diagnostics


def accuracy(task, method, seed=0, panel="test"):
    """Return {shots: accuracy} on the observed labels, macro-averaged over users."""
    data = task.build(seed)
    trial = Trial(task, make_instance("method", method, {}), seed, "test", "test")
    scores = run_trial(trial, task.split(data, seed), data.truth).scores.to_pandas()
    return scores[(scores.panel == panel) & ~scores.swapped].groupby("shots").accuracy.mean()


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_aspects_conflict_as_often_as_they_say(rate):
    y = draw_scores(np.random.default_rng(0), np.full(40_000, rate))
    gap = y[::2] - y[1::2]
    conflicting = (gap[:, 0] > 0) != (gap[:, 1] > 0)
    assert abs(conflicting.mean() - rate) <= 4.5 * np.sqrt(rate * (1 - rate) / 20_000)
    assert np.allclose(np.cov(y.T), [[1, np.cos(np.pi * rate)], [np.cos(np.pi * rate), 1]], atol=0.04)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 1.0])
def test_bayes_error_from_one_context_pair_is_the_papers(rate):
    task = CorrelatedAspects(
        n_users=20_000, pairs_per_user=1, context_conflict_rate=rate, shots=(0, 1, 3), queries=2
    )  # 2,000 test users
    found = accuracy(task, "bayes")
    paper = 1 / 4 + np.arcsin(np.cos(np.pi * rate)) / (2 * np.pi)
    for shots, error in {0: 0.5, 1: paper, 3: (1 - rate) ** 3 / 2}.items():
        assert abs(1 - found[shots] - error) <= 4.5 * 0.5 / np.sqrt(2000)


def test_readings_tell_a_found_mode_from_noise():
    task = CorrelatedAspects(n_users=1000, pairs_per_user=1)
    data = task.build(0)
    splits = task.split(data, 0)
    mode = data.truth.users[splits.panels["test"].query.people].argmax(1)
    noise = np.random.default_rng(0).normal(size=(len(mode), 3))
    found = mode_diagnostics(splits, data.truth, (torch.from_numpy(noise + 10 * mode[:, None]),))
    assert found["probe_accuracy"] > 0.99 and found["silhouette"] > 0.7
    blind = mode_diagnostics(splits, data.truth, (torch.from_numpy(noise),))
    assert blind["probe_accuracy"] < 0.7 and abs(blind["silhouette"]) < 0.1
    assert mode_diagnostics(splits, data.truth, (torch.ones(len(mode), 2),)) == {}
    assert mode_diagnostics(splits, data.truth, ()) == {} == mode_diagnostics(splits, None, (torch.from_numpy(noise),))


@pytest.mark.parametrize(("truth", "ceiling"), [("linear", 0.905), ("tanh", 0.952)])
def test_raters_ceilings(truth, ceiling):
    task = Raters(truth=truth, scenario="independent_signs", shots=(0,), pairs_per_user=1)
    assert abs(accuracy(task, "oracle")[0] - ceiling) < 0.012  # 4,000 answers have sd .005, and seeds differ


def test_raters_signs_by_scenario():
    names = ("same_sign", "independent_signs", "two_camps")
    draws = {name: np.sign(Raters(scenario=name).draw_rater_weights(np.random.default_rng(0), 200)) for name in names}
    assert (draws["same_sign"] == 1).all()
    assert (draws["two_camps"][::2] == 1).all() and (draws["two_camps"][1::2] == -1).all()
    assert abs(draws["independent_signs"].mean()) < 0.1
    weights = Raters().draw_rater_weights(np.random.default_rng(0), 50)
    assert np.allclose(np.linalg.norm(weights, axis=1), 4)


def cdf(drift, grid):
    """Return the distribution function of the exit time from (-1, 1) by the method of images."""
    k = np.arange(-30, 31)[:, None]
    images = (-1.0) ** k * (2 * k + 1) * np.exp(-((2 * k + 1) ** 2) / (2 * grid))
    density = np.cosh(drift) * np.exp(-(drift**2) * grid / 2) * images.sum(0) / np.sqrt(2 * np.pi * grid**3)
    return cumulative_trapezoid(density, grid, initial=0)


@pytest.mark.parametrize("drift", [0.0, 0.7, -2.5])
def test_decisions_follow_the_diffusion(drift):
    n = 200_000
    answer, time = simulate_decisions(np.random.default_rng(1), np.full(n, drift))
    grid = np.linspace(1e-3, 30, 300_001)
    assert abs(cdf(drift, grid)[-1] - 1) < 1e-4
    assert kstest(time, lambda t: np.interp(t, grid, cdf(drift, grid))).pvalue > 1e-3
    p = 1 / (1 + np.exp(-2 * drift))
    assert abs(answer.mean() - p) < 4.5 * np.sqrt(p * (1 - p) / n)
    mean = np.tanh(drift) / drift if drift else 1.0
    assert abs(time.mean() - mean) < 4.5 * time.std() / np.sqrt(n)
    variance = (np.tanh(drift) - drift / np.cosh(drift) ** 2) / drift**3 if drift else 2 / 3
    assert abs(time.var() / variance - 1) < 0.03
    assert abs(np.corrcoef(answer, time)[0, 1]) < 4.5 / np.sqrt(n)  # side and time are independent


def test_decisions_agree_with_small_steps():
    """Euler steps agree, with the boundary moved out by .5826 sqrt(dt) for missed crossings (Siegmund 1985)."""
    rng, n, dt, drift = np.random.default_rng(2), 4000, 1e-3, 0.8
    v, time = np.zeros(n), np.zeros(n)
    inside = np.ones(n, bool)
    while inside.any():
        v[inside] += drift * dt + np.sqrt(dt) * rng.normal(size=inside.sum())
        time[inside] += dt
        inside &= np.abs(v) < 1 - 0.5826 * np.sqrt(dt)
    assert kstest(time, simulate_decisions(rng, np.full(20_000, drift))[1]).pvalue > 1e-3


def test_fewer_annotators_are_the_first_of_many():
    built = {m: ResponseTimes(n_users=20, new_users=5, n_demonstrations=30, annotators=m).build(7) for m in (1, 2, 3)}
    labels, times = ({m: m * getattr(d.pairs, c) for m, d in built.items()} for c in ("label", "seconds"))
    for more in (2, 3):
        assert np.array_equal(built[more].pairs.items.features, built[1].pairs.items.features)
        answer = labels[more] - labels[more - 1]
        assert np.isin(answer.round(4), (0, 1)).all() and 0 < answer.mean() < 1
        assert (times[more] - times[more - 1]).min() > 0.01
    first, second = times[1], times[2] - times[1]
    assert not np.allclose(first, second)


def test_shifted_people_are_others():
    task = ResponseTimes(n_users=300, new_users=100, n_demonstrations=10)
    data = task.build(0)
    splits = task.split(data, 0)
    splits.check_for_leaks()
    theta = {name: data.truth.users[panel.query.people] for name, panel in splits.panels.items()}
    known = np.linalg.svd(data.truth.users[splits.train.people])[2][:2]  # the span of the two means
    assert np.linalg.norm(theta["test"].mean(0) @ known.T) > 1.5
    assert np.linalg.norm(theta["shifted"].mean(0) @ known.T) < 0.4
    assert abs(np.linalg.norm(theta["shifted"].mean(0)) - 3) < 0.2
    values = np.linalg.eigvalsh(np.cov(data.pairs.gap.T))
    assert abs(values[-1] / values[0] - 3) < 0.3


def table(tmp_path, change=lambda t: t, name="scores.csv"):
    rng = np.random.default_rng(3)
    words = np.array(["red", "green", "blue", "tall", "small", "old", "new", "kind", "sharp", "soft"])
    rows = pl.DataFrame(
        {
            "prompt": [f"p{i // 4}" for i in range(80)],
            "response": [" ".join(rng.choice(words, 5)) for _ in range(80)],
            **{f"m{k}": rng.normal(size=80).round(1) for k in range(5)},
        }
    )
    file = tmp_path / name
    rows = change(rows)
    rows.write_csv(file) if name.endswith("csv") else rows.write_parquet(file)
    return rows, str(file)


SMALL = ModelRaters(encoder="tfidf-svd-4", pairs_per_user=60, shots=(0, 5), queries=10)


def test_every_score_column_is_left_out_once(tmp_path):
    rows, file = table(tmp_path)
    task = replace(SMALL, file=file)
    data = task.build(0)
    assert data.pairs.n_users == 5 and data.pairs.items.features.shape == (80, 4)
    text = data.pairs.items.text.to_pandas()
    left, right = text.iloc[data.pairs.left], text.iloc[data.pairs.right]
    assert (left.prompt.to_numpy() == right.prompt.to_numpy()).all()
    score = {(r["prompt"], r["response"]): [r[f"m{k}"] for k in range(5)] for r in rows.to_dicts()}
    for a, b, u, label in zip(left.to_numpy(), right.to_numpy(), data.pairs.user, data.pairs.label, strict=True):
        assert (score[tuple(a)][u] > score[tuple(b)][u]) == bool(label)
        assert score[tuple(a)][u] != score[tuple(b)][u]
    tested = []
    for seed in range(5):
        splits = task.split(data, seed)
        splits.check_for_leaks()
        tested += splits.panels["test"].query.people.tolist()
        assert len(splits.train.people) == 3
    assert sorted(tested) == [0, 1, 2, 3, 4]
    assert data.content_digest() == task.build(1).content_digest()  # pairs do not depend on the seed


@pytest.mark.parametrize("features", [False, True])
def test_no_response_is_shown_and_asked(tmp_path, features):
    """Parts are disjoint by prompt, or by response where there is no prompt."""

    def change(t):
        return t.drop("prompt", "response").with_columns(pl.Series("feature_a", np.arange(80.0)))

    _, file = table(tmp_path, change if features else lambda t: t)
    task = replace(SMALL, file=file)
    data = task.build(0)
    for seed in (0, 1, 5):
        splits = task.split(data, seed)
        test, seen = splits.panels["test"], splits.panels["seen"]
        assert (np.diff(test.context.offsets) == 5).all() and len(test.query) >= 5
        groups = splits.train, test.context, test.query
        used = [set(p.left) | set(p.right) for p in groups]
        if not features:
            prompt = data.pairs.items.text["prompt"].to_numpy()
            used = [set(prompt[list(items)]) for items in used]
            assert set(prompt[seen.query.left]) <= set(prompt) - used[0] - used[2]
        assert sum(map(len, used)) == len(set.union(*used))
    other, again = task.split(data, 0).panels["test"], task.split(data, 5).panels["test"]
    assert other.query.people == again.query.people and not np.array_equal(other.context.left, again.context.left)


@pytest.mark.parametrize("features", [False, True])
def test_equal_responses_are_one_with_their_mean_scores(tmp_path, features):
    def change(t):
        if features:
            t = t.drop("response").with_columns(pl.Series("feature_a", np.arange(80.0)))
        return pl.concat([t, t[:40].with_columns(pl.col("^m.$") + pl.Series(np.arange(40)))])

    rows, file = table(tmp_path, change)
    task = replace(SMALL, file=file)
    for seed in range(5):
        task.split(task.build(seed), seed).check_for_leaks()
    merged = task.read_ratings()
    assert len(merged) == 80
    assert np.allclose(
        merged["m2"], (rows["m2"][:80].to_numpy() + np.r_[rows["m2"][80:].to_numpy(), rows["m2"][40:80]]) / 2
    )


def test_a_score_may_turn_to_decimals_late(tmp_path):
    # polars infers types from the first 100 rows
    lines = [f"r{i},{i},{i % 7},{i % 5},{i % 3 + 0.5 * (i > 110)}" for i in range(120)]
    (tmp_path / "late.csv").write_text("\n".join(["response,m0,m1,m2,m3", *lines]))
    assert ModelRaters(file=str(tmp_path / "late.csv")).read_ratings()["m3"][-1] == 2.5
    (tmp_path / "late.csv").rename(tmp_path / "LATE.CSV")
    assert ModelRaters(file=str(tmp_path / "LATE.CSV")).read_ratings()["m3"][-1] == 2.5


def test_numbers_of_prompts_are_no_rater(tmp_path):
    _, file = table(tmp_path, lambda t: t.with_columns(prompt=pl.int_range(80) // 4))
    data = replace(SMALL, file=file).build(0)
    assert data.users["id"].to_pylist() == ["m0", "m1", "m2", "m3", "m4"]


def test_a_table_may_name_raters_and_bring_features(tmp_path):
    def change(t):
        return t.drop("prompt", "response").with_columns(pl.Series("feature_a", np.arange(80.0)), id=pl.lit(1))

    _, file = table(tmp_path, change, "scores.parquet")
    task = replace(SMALL, file=file, raters=("m0", "m1", "m2", "m4"))
    data = task.build(0)
    assert data.pairs.n_users == 4 and data.pairs.items.text is None
    assert sorted(data.pairs.items.features[:, 0]) == list(range(80))
    before = task.files_digest()
    table(tmp_path, change, "scores.parquet")
    assert task.files_digest() == before
    table(tmp_path, lambda t: change(t).with_columns(m0=pl.col("m0") + 1), "scores.parquet")
    assert task.files_digest() != before


@pytest.mark.parametrize(
    ("change", "fields", "said"),
    [
        (lambda t: t, {"raters": ("m0", "m1", "m2", "m9")}, "no column 'm9'"),
        (
            lambda t: t,
            {"raters": ("m0", "m1", "m2", "response")},
            r"row 0 \(counting from 0\) of column response holds '.*', which is not a finite number",
        ),
        (lambda t: t.drop("m0", "m1"), {}, "too few"),
        (lambda t: t.drop("response"), {}, "neither columns feature_"),
        (
            lambda t: t.with_columns(m2=pl.when(pl.int_range(80) == 7).then(None).otherwise("m2")),
            {},
            r"row 7 \(counting from 0\) of column m2",
        ),
        (
            lambda t: t.with_columns(m2=pl.when(pl.int_range(80) == 7).then(pl.lit("n/a")).otherwise("m2")),
            {},
            r"row 7 \(counting from 0\) of column m2 holds 'n/a'",
        ),
        (
            lambda t: t.with_columns(response=pl.when(pl.int_range(80) == 7).then(None).otherwise("response")),
            {},
            r"row 7 \(counting from 0\) of column response is empty",
        ),
        (
            lambda t: t.with_columns(prompt=pl.when(pl.int_range(80) > 8).then(None).otherwise("prompt")),
            {},
            r"row 9 \(counting from 0\) of column prompt is empty",
        ),
        (
            lambda t: t.with_columns(prompt=pl.int_range(80).cast(pl.String) + "p"),
            {},
            "have the same prompt and different scores",
        ),
        (lambda t: t.with_columns(m2=pl.lit(1)), {}, "different scores of m2"),
        (lambda t: t[:0], {}, "has no rows"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, change, fields, said):
    _, file = table(tmp_path, change)
    with pytest.raises(UserError, match=said) as caught:
        replace(SMALL, file=file, **fields).build(0)
    assert file in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "empty.csv: the file is empty"),
        ("ragged.csv", b"a,b\n1,2,3\n", "line 2 has 3 columns"),
        ("twice.csv", b"m0,m0\n1,2\n", "two columns are named m0"),
        ("broken.parquet", b"PAR1", "cannot be read"),
        ("scores.txt", b"m0,m1\n1,2\n", ".txt is no file type"),
    ],
)
def test_a_file_that_is_no_table_says_so(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        ModelRaters(file=str(tmp_path / name)).build(0)
    with pytest.raises(UserError, match="'m0' twice"):
        ModelRaters(raters=("m0", "m1", "m0", "m2"))


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ModelRaters(file=str(tmp_path / "none.csv")).files_digest()
    assert ModelRaters().files_digest() == ""
