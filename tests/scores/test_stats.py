"""The board's statistics: coverage and error rates on simulated equal methods over people x seeds."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import special
from scipy import stats as scipy_stats

from harness.scores import stats

# --- designs: each gives person[C], seed[C] -------------------------------------------------------------------------


def folds(rng, people, seeds):
    """Return five folds, shuffled again every five seeds: each person is tested once in five seeds."""
    orders = [rng.permutation(people) for _ in range(seeds // 5)]
    cells = [(p, 5 * r + f) for r, order in enumerate(orders) for f in range(5) for p in order[f::5]]
    return np.array(cells).T


def fifth(rng, people, seeds):
    """Return a random fifth of people for each seed."""
    chosen = [rng.choice(people, people // 5, replace=False) for _ in range(seeds)]
    return np.concatenate(chosen), np.repeat(np.arange(seeds), people // 5)


def fresh(rng, people, seeds):
    """Return new people for each seed, as a simulator does."""
    return np.arange(people * seeds), np.repeat(np.arange(seeds), people)


def crossed(rng, people, seeds):
    """Return all people in every seed."""
    return np.tile(np.arange(people), seeds), np.repeat(np.arange(seeds), people)


def uneven(rng, people, seeds):
    """Return new people for each seed, few under most seeds and many under one: 4, 4, 4, 30 and 60 for 5 seeds."""
    counts = [people // 25 or 1] * (seeds - 2) + [people // 3, 2 * people // 3]
    return np.arange(sum(counts)), np.repeat(np.arange(seeds), counts)


DESIGNS = {
    "31 people, 5 folds": (folds, 31, 5),
    "31 people, a fifth, 5 seeds": (fifth, 31, 5),
    "31 people, a fifth, 10 seeds": (fifth, 31, 10),
    "42 people, 5 folds, 10 seeds": (folds, 42, 10),
    "simulator, 200 people, 5 seeds": (fresh, 200, 5),
    "42 people in all of 5 seeds": (crossed, 42, 5),
}
MIXES = {  # shares of people, seeds and cells in the variance of the mean
    "noise": (0, 0, 1),
    "people": (0.99, 0, 0.01),
    "seeds": (0, 0.99, 0.01),
    "people and noise": (0.5, 0, 0.5),
    "few seeds": (0, 0.06, 0.94),
    "seeds and noise": (0, 0.5, 0.5),
    "people and seeds": (0.5, 0.49, 0.01),
    "all": (0.45, 0.1, 0.45),
}


def equal_methods(rng, rows, person, seed, mix):
    """Draw values[rows, C] with true mean 0, whose means have variance 1 with the shares of the mix."""
    cells = len(person)
    values = np.zeros((rows, cells))
    for share, group in zip(mix, (person, seed, np.arange(cells)), strict=True):
        counts = np.bincount(group)
        values += np.sqrt(share / (counts**2).sum()) * cells * rng.standard_normal((rows, len(counts)))[:, group]
    return values


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_truth(design, mix):
    rng = np.random.default_rng(1)
    make, people, seeds = DESIGNS[design]
    rows, repeats = (2000, 2) if make is fresh else (1000, 8)  # one standard error: 0.35 % and 0.25 %
    covered = []
    for _ in range(repeats):  # the random splits differ too
        person, seed = make(rng, people, seeds)
        low, high = stats.estimate_means(equal_methods(rng, rows, person, seed, MIXES[mix]), person, seed).interval()
        covered.append((low < 0) & (high > 0))
    assert 0.93 <= np.mean(covered) <= 0.97, np.mean(covered)


@pytest.mark.parametrize("mix", ["noise", "seeds", "seeds and noise"])
@pytest.mark.parametrize("people", [100, 60])
def test_intervals_are_wide_enough_where_seeds_test_unequal_numbers(people, mix):
    """With S/(S-1) and S-1 degrees of freedom, 95 % intervals covered 76 to 88 % here."""
    person, seed = uneven(None, people, 5)
    low, high = stats.estimate_means(
        equal_methods(np.random.default_rng(21), 8000, person, seed, MIXES[mix]), person, seed
    ).interval()
    assert np.mean((low < 0) & (high > 0)) > 0.94


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "people", "seeds"),
    [(fresh, 10, 3), (fresh, 10, 5), (folds, 31, 5), (folds, 31, 10), (fresh, 50, 5), (uneven, 90, 5)],
)
def test_personalising_pays_is_rarely_said_falsely(make, people, seeds, monkeypatch):
    """At most 5 % of 500 boards say so where one method has a gain and no personal part, and another the reverse.

    Both are at the edge: the first loses exactly the margin by the swap, the second gains exactly the margin.
    """
    from harness.board.verdict import verdict_text

    monkeypatch.setattr(stats, "BOOTSTRAP_DRAWS", 500)
    rng = np.random.default_rng([people, seeds])

    def accuracy(mean):
        spread = 0.08 * rng.standard_normal(person.max() + 1)[person] + 0.03 * rng.standard_normal(seeds)[seed]
        return rng.binomial(20, np.clip(mean + spread, 0, 1)) / 20

    said = []
    for _ in range(500):
        person, seed = make(rng, people, seeds)
        own = np.stack([accuracy(mean) for mean in (0.6, 0.75, 0.61, 0.6)])
        swapped = np.stack([own[0], *(accuracy(mean) for mean in (0.74, 0.41, 0.6))])
        gains = stats.gains_over_reference(own, person, seed)
        losses = stats.swap_losses(own, swapped, person, seed, gains)
        said.append(
            verdict_text(gains, losses, 0.01, ["shared", "common", "little", "none"]).startswith("personalising")
        )
    assert np.mean(said) <= 0.05, np.mean(said)


def test_percentiles_of_the_pigeonhole_bootstrap_do_not():
    """Percentile intervals of the pigeonhole bootstrap have the wrong coverage, so they are not used."""
    rng = np.random.default_rng(2)
    person, seed = fresh(rng, 40, 5)
    covered = {}
    for mix in ("seeds", "noise"):
        values = equal_methods(rng, 400, person, seed, MIXES[mix])
        weights = (
            rng.multinomial(200, np.full(200, 1 / 200), 500)[:, person] * rng.multinomial(5, [0.2] * 5, 500)[:, seed]
        )
        low, high = np.quantile(values @ (weights / weights.sum(1, keepdims=True)).T, [0.025, 0.975], axis=1)
        covered[mix] = np.mean((low < 0) & (high > 0))
    assert covered["seeds"] < 0.9 and covered["noise"] > 0.98, covered


def test_nested_people_give_the_t_interval_of_the_seed_means():
    rng = np.random.default_rng(3)
    person, seed = fresh(rng, 12, 5)
    values = rng.normal(size=(3, 60)) + rng.normal(size=(3, 5))[:, seed]
    ours = stats.estimate_means(values, person, seed)
    theirs = scipy_stats.ttest_1samp(values.reshape(3, 5, 12).mean(2), 0, axis=1)
    np.testing.assert_allclose(ours.interval(), theirs.confidence_interval())
    np.testing.assert_allclose(ours.p_values(), theirs.pvalue)


def test_variance_is_that_of_two_way_clusters():
    rng = np.random.default_rng(4)
    person, seed = fifth(rng, 31, 10)
    values = rng.normal(size=len(person)) + 2 * rng.normal(size=31)[person]

    def variance(groups):
        with_groups = {"groups": groups, "use_correction": False}
        return sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds=with_groups).bse[0] ** 2

    one_way, two_way = variance(seed), variance(np.column_stack([person, seed]))
    people = len(np.unique(person))
    expected = 10 / 9 * (one_way + people / (people - 1) * (two_way - one_way))
    assert two_way > one_way  # otherwise this would only test the floor at 0
    np.testing.assert_allclose(stats.estimate_means(values[None], person, seed).se[0] ** 2, expected)


def test_degrees_of_freedom_count_repeated_people():
    rng = np.random.default_rng(17)
    person, seed = fifth(rng, 31, 10)
    values = rng.normal(size=(5, len(person))) + 2 * rng.normal(size=(5, 31))[:, person]
    every = stats.paired_differences(values, person, seed)
    seeds_alone = stats.paired_differences(values, np.arange(len(person)), seed).se ** 2  # no person occurs twice
    times = np.bincount(person)
    repeats = times * (times - 1)
    person_df = repeats.sum() ** 2 / (repeats**2).sum() - 1
    assert 5 < person_df < 20  # far fewer than 30: most people occur at most twice

    def satterthwaite(part, whole):
        return whole**2 / (part**2 / 9 + (whole - part) ** 2 / person_df)

    a, b = np.triu_indices(5, 1)
    part, whole = seeds_alone[a, b], every.se[a, b] ** 2
    own = satterthwaite(part, whole)
    np.testing.assert_allclose(every.df[a, b], own)
    np.testing.assert_allclose(every.family_df[a, b], np.minimum(own, satterthwaite(part.sum(), whole.sum())))
    assert (every.family_df < every.df).any()


def test_variance_is_right_on_average():
    rng = np.random.default_rng(5)
    for make, people, seeds in DESIGNS.values():
        person, seed = make(rng, people, seeds)
        se = stats.estimate_means(equal_methods(rng, 4000, person, seed, (0.6, 0.2, 0.2)), person, seed).se
        assert np.mean(se**2) == pytest.approx(1, abs=0.08), make.__name__


def test_differences_are_estimates_of_the_differences():
    rng = np.random.default_rng(6)
    person, seed = fifth(rng, 31, 5)
    values = rng.normal(size=(4, len(person))) + rng.normal(size=31)[person]
    every = stats.paired_differences(values, person, seed)
    for a in range(4):
        alone = stats.estimate_means(values[a] - values, person, seed)
        for name in ("value", "se", "df"):
            np.testing.assert_allclose(getattr(every, name)[a], getattr(alone, name), atol=1e-12)
    assert (np.diag(every.p_values()) == 1).all()


def test_one_seed_gives_no_interval():
    values = np.random.default_rng(7).random((3, 20))
    person, seed = np.arange(20), np.zeros(20, int)
    gained = stats.gains_over_reference(values, person, seed)
    assert gained.note == "one seed"
    for field in ("se", "low", "high", "joint_low", "joint_high", "p", "adjusted"):
        assert np.isnan(getattr(gained, field)).all(), field
    np.testing.assert_allclose(gained.value, values.mean(1) - values[0].mean())
    ranked = stats.rank_intervals(values, person, seed)
    assert ranked.best.tolist() == [1, 1, 1] and ranked.worst.tolist() == [3, 3, 3] and ranked.note == "one seed"
    assert stats.gain_verdict(gained, 0.01)[::2] == ("cannot tell", None)
    assert stats.estimate_means(values, np.zeros(20, int), np.arange(20) % 5).note == "one person"


@pytest.mark.parametrize("values, people", [([[0.5, np.nan]], 2), ([[0.5, 0.5]], 3)])
def test_holes_and_wrong_lengths_are_refused(values, people):
    with pytest.raises(ValueError, match="finite"):
        stats.estimate_means(values, np.arange(people), [0, 1])


boards = some.tuples(some.integers(0, 10**6), some.integers(2, 5), some.integers(4, 12), some.integers(2, 6))


@settings(max_examples=40, deadline=None)
@given(boards)
def test_order_names_and_constants_do_not_matter(board):
    number, methods, people, seeds = board
    rng = np.random.default_rng(number)
    person, seed = np.nonzero(rng.random((people, seeds)) < 0.7)
    if min(len(np.unique(person)), len(np.unique(seed))) < 2:
        return
    values = rng.normal(size=(methods, len(person))) + rng.normal(size=(methods, people))[:, person]
    first = stats.paired_differences(values, person, seed)
    cells, rows, names = rng.permutation(len(person)), rng.permutation(methods), rng.permutation(people)
    shift = rng.normal(size=(methods, 1))
    again = stats.paired_differences((3 * values + shift)[np.ix_(rows, cells)], names[person][cells], seed[cells] + 100)
    pick = np.ix_(rows, rows)
    np.testing.assert_allclose(again.se, 3 * first.se[pick], atol=1e-9)
    np.testing.assert_allclose(again.df, first.df[pick], rtol=1e-5)
    np.testing.assert_allclose(again.value, (3 * first.value + shift - shift.T)[pick], atol=1e-9)
    np.testing.assert_allclose(first.value, -first.value.T)
    cell_order = stats.rank_intervals(values[:, cells], person[cells], seed[cells])
    ranked = stats.rank_intervals(values, person, seed)
    assert all((a == b).all() for a, b in zip(ranked[:3], cell_order[:3], strict=True))
    assert (ranked.best <= ranked.rank).all() and (ranked.rank <= ranked.worst).all()


# --- many comparisons -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_familywise_error_is_kept(monkeypatch):
    """Joint limits, adjusted p-values and rank intervals each err on about 5 % of boards of seven methods, in any design and mix."""
    monkeypatch.setattr(stats, "BOOTSTRAP_DRAWS", 500)  # for speed, at 1 % of accuracy
    rng = np.random.default_rng(8)
    wrong = {}
    for design, mix in [
        ("31 people, 5 folds", "seeds"),
        ("31 people, a fifth, 5 seeds", "seeds and noise"),
        ("31 people, a fifth, 10 seeds", "all"),
        ("42 people in all of 5 seeds", "all"),
        ("42 people, 5 folds, 10 seeds", "people"),
    ]:
        make, people, seeds = DESIGNS[design]
        for _ in range(200):
            person, seed = make(rng, people, seeds)
            equal = equal_methods(rng, 7, person, seed, MIXES[mix])
            gained = stats.gains_over_reference(equal, person, seed)
            excluded = (gained.joint_low > 0) | (gained.joint_high < 0)
            told_apart = stats.rank_intervals(equal, person, seed).worst < 7
            wrong.setdefault((design, mix), []).append(
                (excluded.any(), (gained.adjusted < 0.05).any(), told_apart.any())
            )
    each = np.array([np.mean(boards, 0) for boards in wrong.values()])
    assert each.max() < 0.12, each  # 5 % and 4.5 standard errors of 1.5 %
    # 5 % and 3 standard errors of 1 %, draws included.
    assert ((each.mean(0) > 0.02) & (each.mean(0) < 0.08)).all(), each


def test_rank_intervals_hold_the_true_ranks(monkeypatch):
    monkeypatch.setattr(stats, "BOOTSTRAP_DRAWS", 500)
    rng = np.random.default_rng(15)
    true = np.array([0, 0, 2, 2, 8])
    person, seed = fifth(rng, 31, 10)
    held, width = [], []
    for _ in range(150):
        ranked = stats.rank_intervals(equal_methods(rng, 5, person, seed, MIXES["all"]) + true[:, None], person, seed)
        held.append(((ranked.best <= [4, 4, 2, 2, 1]) & (ranked.worst >= [5, 5, 3, 3, 1])).all())
        width.append(ranked.worst - ranked.best)
    assert np.mean(held) > 0.9  # 95 % less 3 standard errors
    # The clear winner is found, and equal methods are not separated.
    assert np.mean(width, 0)[4] < 1 < np.mean(width, 0)[:4].min()


@pytest.mark.parametrize("loud, level", [([1, 0.01], 0.05), ([0.01, 1], 1 - 0.95**0.2)])
def test_joint_level_knows_how_comparisons_hang_together(loud, level):
    """Five gains over a noisy reference are one comparison; over a noiseless one they are independent (Šidák)."""
    person, seed = fresh(np.random.default_rng(18), 2, 300)
    values = np.array([loud[0]] + [loud[1]] * 5)[:, None] * np.random.default_rng(19).normal(size=(6, 600))
    found = stats.simultaneous_level(values, person, seed, (np.arange(1, 6), np.zeros(5, int)))
    assert found == pytest.approx(level, rel=0.3)  # two standard errors


def test_blocks_bound_the_memory_and_change_no_draw(monkeypatch):
    """With many methods the draws are made block by block; the numbers are those of one block."""
    rng = np.random.default_rng(0)
    person, seed = crossed(rng, 20, 4)
    values, pairs = rng.normal(size=(6, len(person))), np.triu_indices(6, 1)
    whole = stats.smallest_p_draws(values, person, seed, pairs)
    monkeypatch.setattr(
        stats, "MAX_DRAWN_PAIRS", 7 * stats.BOOTSTRAP_DRAWS + 1
    )  # blocks of 7 pairs, then of 1,866 draws
    np.testing.assert_array_equal(stats.smallest_p_draws(values, person, seed, pairs), whole)
    monkeypatch.setattr(stats, "MAX_DRAWN_PAIRS", 40)  # of one pair, then of 2 draws
    np.testing.assert_array_equal(stats.smallest_p_draws(values, person, seed, pairs), whole)


@settings(max_examples=50, deadline=None)
@given(some.integers(0, 10**6), some.integers(1, 30), some.floats(1, 60))
def test_the_smallest_p_is_that_of_all_pairs(number, pairs, most):
    """Few p-values are computed; a smaller t with many more degrees of freedom may have the smallest."""
    rng = np.random.default_rng(number)
    t, df = rng.gamma(1, 2, (20, pairs)).round(1), rng.uniform(1, 1 + most, pairs)
    np.testing.assert_array_equal(stats._smallest_p(t, df), (2 * special.stdtr(df, -t)).min(1))


def test_two_methods_need_no_correction():
    rng = np.random.default_rng(9)
    person, seed = folds(rng, 31, 10)
    gained = stats.gains_over_reference(rng.random((2, len(person))), person, seed)
    np.testing.assert_allclose(gained.joint_low, gained.low, rtol=0.1)
    assert gained.adjusted[1] == pytest.approx(gained.p[1], abs=0.03)


@settings(max_examples=25, deadline=None)
@given(some.integers(0, 10**6), some.integers(3, 6), some.floats(0, 0.2))
def test_limits_p_values_and_ranks_tell_one_story(number, methods, gain):
    """p is below 5 % exactly where limits exclude 0, and where one does, the reference cannot be first."""
    rng = np.random.default_rng(number)
    person, seed = folds(rng, 31, 5)
    values = rng.random((methods, len(person))) + gain * np.arange(methods)[:, None]
    gained = stats.gains_over_reference(values, person, seed)
    excluded = (gained.joint_low > 0) | (gained.joint_high < 0)
    assert ((gained.adjusted < 0.05) == excluded)[gained.family].all()
    ranked = stats.rank_intervals(values, person, seed, gains=gained)
    assert (ranked.best[0] > 1) == (gained.joint_low > 0).any()
    assert (ranked.worst[0] < methods) == (gained.joint_high < 0).any()


def test_adjusted_p_of_independent_gains_is_sidaks():
    person, seed = fresh(np.random.default_rng(18), 2, 300)
    noise = np.random.default_rng(19).normal(size=(6, 600))
    gained = stats.gains_over_reference(np.array([0.01, 1, 1, 1, 1, 1])[:, None] * noise, person, seed)
    np.testing.assert_allclose(gained.adjusted[1:], 1 - (1 - gained.p[1:]) ** 5, atol=0.04)  # 3.5 errors of 2,000 draws


def test_a_control_outside_the_family_changes_no_verdict():
    """Two weak and noisy controls on the board, in the family or outside it."""
    rng = np.random.default_rng(20)
    person, seed = folds(rng, 31, 5)
    values = 0.1 * rng.normal(size=(5, len(person))) + np.array([0.5, 0.6, 0.55, 0.4, 0.3])[:, None]
    values[3:] += rng.normal(size=(2, len(person)))
    family = np.array([False, True, True, False, False])
    alone = stats.gains_over_reference(values[:3], person, seed)
    beside = stats.gains_over_reference(values, person, seed, family=family)
    for name in ("value", "joint_low", "joint_high", "adjusted"):
        np.testing.assert_allclose(getattr(beside, name)[1:3], getattr(alone, name)[1:3], atol=1e-12)
    assert stats.gain_verdict(beside, 0.01) == stats.gain_verdict(alone, 0.01)
    assert np.isnan(beside.adjusted[3:]).all() and (beside.joint_low == beside.low)[3:].all()
    wider = stats.gains_over_reference(values, person, seed)
    assert (wider.joint_low < beside.joint_low)[1:3].all()


def test_clear_order_is_found_and_ties_share_a_rank():
    rng = np.random.default_rng(10)
    person, seed = folds(rng, 42, 10)
    values = np.array([0.7, 0.5, 0.6, 0.5])[:, None] + 0.02 * rng.normal(size=(4, len(person)))
    values[3] = values[1]
    ranked = stats.rank_intervals(values, person, seed)
    assert ranked.rank.tolist() == [1, 3, 2, 3]
    assert ranked.best.tolist() == [1, 3, 2, 3] and ranked.worst.tolist() == [1, 4, 2, 4]
    gained = stats.gains_over_reference(values, person, seed, reference=1)
    assert gained.adjusted[0] < 1e-3 and gained.p[1] == gained.p[3] == gained.adjusted[3] == 1


# --- verdict --------------------------------------------------------------------------------------------------------


def board(people, gain, seed=0):
    rng = np.random.default_rng(seed)
    person, of_seed = fresh(rng, people, 10)
    values = 0.1 * rng.normal(size=(3, len(person))) + np.array([0.6, 0.6, 0.6 + gain])[:, None]
    return stats.gains_over_reference(values, person, of_seed)


def test_verdicts():
    assert stats.gain_verdict(board(400, 0.05), 0.01) == ("gain", 2, None)
    assert stats.gain_verdict(board(400, 0), 0.01).text == "nothing to personalise here"
    assert stats.gain_verdict(board(4, 0.02), 0.01).text == "cannot tell"


@pytest.mark.parametrize(
    "value, half, people",
    [
        ([0, 0.02, 0.005], 0.04, 1600),  # 0.01 above the margin, so the half-width must shrink to a quarter
        ([0, 0.005, -0.01], 0.02, 1600),  # all below: the nearest, 0.005 below, needs the most people
        ([0, 0.01, -0.01], 0.02, None),  # on the margin: no number of people is enough
    ],
)
def test_the_stated_number_of_people_brings_a_limit_to_the_margin(value, half, people):
    value, half = np.array(value), np.array([0, half, half])
    nothing = np.full(3, np.nan)
    family = np.array([False, True, True])
    limits = stats.Gains(value, *[nothing] * 3, value - half, value + half, *[nothing] * 2, family, 0, 100, None)
    needed = stats.gain_verdict(limits, 0.01).people
    assert needed == people or abs(needed - people) <= 1  # rounded up


@pytest.mark.parametrize(("seeds", "comparisons"), [(5, 1), (5, 6), (10, 6)])
def test_detectable_difference_is_found_as_often_as_promised(seeds, comparisons):
    """By the board's own limits: new people for each seed, and methods whose errors are independent of each other."""
    rng = np.random.default_rng(11)
    people, asked, disagree, icc = 60, 10, 0.3, 0.2
    least = stats.detectable_difference(people * seeds, asked, disagree, icc, seeds, comparisons)
    person, seed = fresh(rng, people, seeds)
    found = []
    for _ in range(80):
        shape = (comparisons, len(person))
        noise = np.sqrt(icc) * rng.normal(size=shape) + np.sqrt((1 - icc) / asked) * rng.normal(size=shape)
        values = np.vstack([np.zeros(len(person)), np.sqrt(disagree) * noise])
        values[1] += least
        found.append(stats.gains_over_reference(values, person, seed).joint_low[1] > 0)
    assert 0.68 < np.mean(found) < 0.95  # .8, 2.7 standard errors below; max-t and pooled errors find a little more


def test_seeds_that_agree_by_chance_give_no_limits_without_width():
    """Three seeds of five people whose means are all .3: the people differ, so the limits have a width."""
    gain = np.array([0.1, 0.2, 0.3, 0.4, 0.5] * 3)
    found = stats.estimate_means(gain[None], np.arange(15), np.repeat(np.arange(3), 5))
    spread = np.sqrt(stats.LEAST_VARIANCE * ((gain - 0.3) ** 2).sum()) / 15
    assert found.se[0] == pytest.approx(spread) and found.p_values()[0] > 1e-4
    low, high = found.interval()
    assert high[0] - low[0] == pytest.approx(2 * scipy_stats.t.ppf(0.975, 2) * spread)


def test_limits_of_gain_and_loss_are_t_intervals_at_one_joint_level():
    """One method: its gain and its swap loss are two comparisons, between no correction and Bonferroni's."""
    rng = np.random.default_rng(0)
    person, seed = np.tile(np.arange(40), 6), np.repeat(np.arange(6), 40)
    values = np.stack([0.7 + 0.1 * rng.normal(size=240), 0.6 + 0.1 * rng.normal(size=240)])
    swapped = values - 0.2 + 0.05 * rng.normal(size=values.shape)
    gains = stats.gains_over_reference(values, person, seed, reference=1)
    found = stats.swap_losses(values, swapped, person, seed, gains)
    every = stats.paired_differences(np.stack([values[0], swapped[0], values[1]]), person, seed)
    for other, value, low in ((1, found.value[0], found.low[0]), (2, gains.value[0], found.gain_low[0])):
        assert value == pytest.approx(every.value[0, other])
        width = (value - low) / every.se[0, other]
        df = every.family_df[0, other]
        assert scipy_stats.t.ppf(0.975, df) <= width <= scipy_stats.t.ppf(1 - 0.05 / 4, df) + 1e-9
    assert found.high[0] - found.value[0] == pytest.approx(found.value[0] - found.low[0])
    assert np.isnan(found.value[1]) and np.isnan(found.low[1])


def test_two_people_under_three_seeds_have_an_interval_and_one_person_has_none():
    rng = np.random.default_rng(0)
    for people, note in ((2, None), (1, "one person")):
        found = stats.estimate_means(
            rng.random((1, 3 * people)), np.tile(np.arange(people), 3), np.repeat(range(3), people)
        )
        assert found.note == note and np.isfinite(found.se).all() == (note is None)
