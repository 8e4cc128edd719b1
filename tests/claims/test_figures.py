"""Figures of claims and sweeps: they draw the numbers that claims measure, and say which numbers are missing."""

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from harness.board.board import setting_labels
from harness.board.make import make_board
from harness.board.results import load_scores
from harness.claims.figures.kinds import figures_of_claim, read_figures
from harness.claims.figures.of_learning import preference_cosines, principal_components
from harness.claims.judge import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    HOLDS_IN_PART,
    NOT_TESTABLE,
    CheckResult,
    JudgedClaim,
)
from harness.claims.measures import measure_check
from harness.claims.page import write_claims_page
from harness.claims.reproduce import Chapter
from harness.claims.results import Results
from harness.claims.schema import Check, Claim, Selection
from harness.data import Items, Pairs
from harness.errors import UserError
from harness.registry import make_instance
from harness.report import terminal, words
from harness.report.page import charts, html, sweeps
from harness.report.page.looks import looks_of_methods
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import Plan, make_plan
from harness.trials.suite import read_suite

SWEPT = """
title = "swept"
seeds = 3
controls = false
[[tasks]]
name = "low_rank"
n_users = [20, 30]
pairs_per_user = [10, 20]
new_users = 10
feature_dim = 4
rank = 2
shots = [0, 4, 8]
queries = 10
[[methods]]
name = "shared"
[[methods]]
name = "per_user"
[[methods]]
name = "pref"
rank = [1, 2]
[[methods]]
name = "bayes"
"""
CONCEPTS = """
title = "concepts"
seeds = 3
controls = false
[[tasks]]
name = "concepts"
K = [1, 2]
Q = 6
feature_dim = 6
queries = 20
[[methods]]
name = "dpo_head"
records = 16
"""
SMALL = {"n_users": 20, "pairs_per_user": 10}


def finished(folder, name, text):
    file, store = folder / f"{name}.toml", Store(folder / "store").open()
    file.write_text(text)
    plan = make_plan(read_suite(file), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    return Results(plan, store)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("swept"), "swept", SWEPT)


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("concepts"), "concepts", CONCEPTS)


def claim(*tables, **fields):
    said = {"id": "T1", "title": "a title", "source": "a paper", "published": "a number", "cannot": "not asked"}
    return Claim(**(said | fields), figures=tables)


def draw(results, **table):
    """Return the matplotlib figure and the reasons for what is missing."""
    (made,) = read_figures(claim(table))
    figure = Figure(layout="constrained")
    return figure, made.draw_figure(figure, results)


def line(axes, label):
    return next(x for x in axes.lines if x.get_label() == label)


def accuracy(results, method, shots, **fields):
    """Return the mean over all people and seeds, directly from the stored tables."""
    trials = [t for t in results.plan.trials if t.method.name == method]
    trials = [t for t in trials if all(getattr(t.method, k, getattr(t.task, k, None)) == v for k, v in fields.items())]
    tables = [load_scores(results.store, t.task_key, results.store.read_manifest("trials", t.key)) for t in trials]
    assert len(tables) == 3
    return pl.concat(tables).filter(panel="test", shots=shots, swapped=False)["accuracy"].mean()


def learned(results, trial):
    return safetensors.numpy.load(
        results.store.read_verified(results.store.read_manifest("trials", trial.key), "learned.safetensors")
    )


def test_shots_draws_what_claims_measure(swept):
    published = {"shots": [0, 6], "values": [0.5, 0.7], "label": "as published"}
    methods = ["per_user", {"name": "pref", "rank": 2, "label": "PReF"}, "bayes"]
    figure, missing = draw(swept, kind="shots", task=SMALL, methods=methods, published=published)
    (axes,) = figure.axes
    drawn = line(axes, "per_user").get_ydata()
    assert drawn == pytest.approx([accuracy(swept, "per_user", n, **SMALL) for n in (0, 4, 8)]) and not missing
    assert line(axes, "PReF").get_ydata()[2] == pytest.approx(accuracy(swept, "pref", 8, rank=2, **SMALL))
    band = axes.collections[0].get_paths()[0].vertices
    for x, shots in enumerate((0, 4, 8)):
        _, low, high, *_ = measure_check(Check("", Selection(SMALL, "per_user", shots=shots)), swept)
        at = np.unique(band[band[:, 0] == x, 1])
        assert (at[0], at[-1]) == pytest.approx((max(low, 0), min(high, 1)))
    marks = line(axes, "as published")
    assert list(marks.get_xdata()) == [0, 1.5] and marks.get_linestyle() == "None"  # 6 shots: half-way from 4 to 8
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"per_user", "PReF", "as published"}
    assert [t.get_text() for t in axes.texts] == ["bayes"]  # at the end of a grey line


def test_panels_differ_in_dash_and_mark(swept):
    figure, _ = draw(swept, kind="shots", task=SMALL, methods=["per_user"], panels=["test", "seen"])
    test, seen = (line(figure.axes[0], f"per_user, {panel}") for panel in ("test", "seen"))
    assert test.get_linestyle() != seen.get_linestyle() and seen.get_markerfacecolor() == "none"
    value = measure_check(Check("", Selection(SMALL, "per_user", "seen", 4)), swept)[0]
    assert seen.get_ydata()[1] == pytest.approx(value) and not np.allclose(test.get_ydata(), seen.get_ydata())


def test_along_a_field_of_the_task_or_the_method(swept):
    figure, _ = draw(swept, kind="along", field="pairs_per_user", by="n_users", methods=["per_user", "bayes"], shots=4)
    drawn = line(figure.axes[0], "per_user, n users 30")
    assert list(drawn.get_xdata()) == [10, 20]
    expected = [accuracy(swept, "per_user", 4, n_users=30, pairs_per_user=n) for n in (10, 20)]
    assert drawn.get_ydata() == pytest.approx(expected)
    figure, _ = draw(swept, kind="along", field="rank", metric="error", task=SMALL, methods=["pref", "shared"])
    expected = [1 - accuracy(swept, "pref", 8, rank=n, **SMALL) for n in (1, 2)]
    assert line(figure.axes[0], "pref").get_ydata() == pytest.approx(expected)
    level = line(figure.axes[0], "shared").get_ydata()
    assert level == pytest.approx([1 - accuracy(swept, "shared", 8, **SMALL)] * 2)


def test_along_tells_settings_of_a_method_apart(swept):
    task = {"n_users": 20}
    figure, _ = draw(swept, kind="along", field="pairs_per_user", by="rank", task=task, methods=["pref", "per_user"])
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["pref, rank 1", "pref, rank 2", "per_user"]
    expected = [accuracy(swept, "pref", 8, rank=1, n_users=20, pairs_per_user=n) for n in (10, 20)]
    assert line(figure.axes[0], "pref, rank 1").get_ydata() == pytest.approx(expected)


def test_along_wants_one_setting_at_each_value(swept):
    with pytest.raises(UserError, match="several settings of per_user have the same pairs_per_user"):
        draw(swept, kind="along", field="pairs_per_user", methods=["per_user"])
    with pytest.raises(UserError, match="has only one value"):
        draw(swept, kind="along", field="feature_dim", task=SMALL)


def test_spread_has_a_dot_per_seed(swept):
    figure, _ = draw(swept, kind="spread", task=SMALL, methods=["per_user", {"name": "pref", "rank": 1}])
    axes = figure.axes[0]
    dots = next(x for x in axes.lines if len(x.get_xdata()) == 3).get_xdata()
    assert np.mean(dots) == pytest.approx(accuracy(swept, "per_user", 8, **SMALL)) and len(np.unique(dots)) > 1
    assert (
        axes.texts[0].get_text()
        == f"{words.format_number(np.mean(dots))} ± {words.format_number(np.std(dots, ddof=1))}"
    )


def test_latents_show_every_test_user_by_mode(swept):
    figure, missing = draw(swept, kind="latents", task=SMALL, methods=["per_user", "shared"])
    assert missing == ["shared learned the same for all users"] and len(figure.axes) == 1
    trial = next(t for t in swept.plan.trials if t.method.name == "per_user" and t.task.pairs_per_user == 10)
    held = learned(swept, trial)["users/0"]
    prepared = open_prepared_task(swept.store, trial.task_key)
    mode = prepared.truth.users[prepared.splits.panels["test"].query.people].argmax(1)
    expected = PCA(2).fit_transform(held)
    for m in (0, 1):
        drawn = line(figure.axes[0], f"mode {m}").get_xydata()
        assert np.abs(drawn) == pytest.approx(np.abs(expected[mode == m]), abs=1e-5)


def test_simplex_draws_people_by_their_true_weights(swept):
    figure, missing = draw(swept, kind="simplex", task=SMALL, methods=["per_user"], aspect=1)
    (axes,) = figure.axes
    assert not missing and [t.get_text() for t in figure.legends[0].get_texts()] == ["0 shots", "4 shots", "8 shots"]
    share, right = [], []
    for trial in (t for t in swept.plan.trials if t.method.name == "per_user" and fits(t.task)):
        table = load_scores(swept.store, trial.task_key, swept.store.read_manifest("trials", trial.key))
        rows = table.filter(panel="test", shots=8, swapped=False)
        weights = np.abs(open_prepared_task(swept.store, trial.task_key).truth.users[rows["person"].to_numpy()])
        share += list(weights[:, 1] / weights.sum(1))
        right += rows["accuracy"].to_list()
    drawn = line(axes, "8 shots").get_xydata()
    assert len(share) == 30 and 3 < len(drawn) <= 10
    for x, y in drawn:
        assert y == pytest.approx(np.mean([r for s, r in zip(share, right, strict=True) if abs(s - x) <= 0.05]))


def fits(task):
    return all(getattr(task, field) == value for field, value in SMALL.items())


def test_a_line_has_the_points_there_are(swept):
    """A line has fewer points where training users have too few answers for the largest number of shots."""
    part = Results(swept.plan, swept.store)
    for trial in part.plan.trials:
        part.score_table(trial)
        part.tables[trial.key] = part.tables[trial.key].filter((pl.col("panel") != "seen") | (pl.col("shots") < 8))
    figure, missing = draw(part, kind="shots", task=SMALL, methods=["per_user"], panels=["test", "seen"])
    assert list(line(figure.axes[0], "per_user, seen").get_xdata()) == [0, 1]
    assert len(line(figure.axes[0], "per_user, test").get_xdata()) == 3 and "too few answers for 8" in missing[0]


def test_components_of_rows_of_one_number():
    xy, share = principal_components(np.array([1.0, 2.0, 4.0]))
    assert np.abs(xy[:, 0]) == pytest.approx([4 / 3, 1 / 3, 5 / 3]) and not xy[:, 1].any()
    assert share == pytest.approx([1, 0])


def test_spectrum_stands_beside_the_curve(swept):
    figure, _ = draw(swept, kind="spectrum", field="rank", task=SMALL, methods=["pref"], metric="auc")
    left, right = figure.axes
    trials = [t for t in swept.plan.trials if t.method == make_instance("method", "pref", {"rank": 1})]
    trials = [t for t in trials if t.task.n_users == 20 and t.task.pairs_per_user == 10]
    assert len(left.lines) == len(trials) == 3
    spectrum = learned(swept, trials[0])["state/spectrum"]
    assert left.lines[0].get_ydata() == pytest.approx(spectrum[:4] / spectrum[0])
    value = measure_check(Check("", Selection(SMALL, {"name": "pref", "rank": 2}, metric="auc")), swept)[0]
    assert line(right, "pref").get_ydata()[1] == pytest.approx(value)


def test_cosines_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    items = Items(rng.normal(1, 1, (30, 5)).astype(np.float32))
    user = np.repeat(np.arange(6, dtype=np.int32), 8)
    left, right = rng.integers(15, size=48).astype(np.int32), rng.integers(15, 30, size=48).astype(np.int32)
    label = rng.choice([0, 0.25, 1], 48).astype(np.float32)
    found = preference_cosines(Pairs(user, np.arange(6), left, right, label, items))
    rows = [user == u for u in range(6)]
    weight = label[:, None]
    likes = weight * items.features[left] + (1 - weight) * items.features[right]
    preferred = np.stack([likes[r].mean(0) for r in rows])
    toward = np.stack([((2 * weight - 1) * (items.features[left] - items.features[right]))[r].mean(0) for r in rows])
    for name, means in (("preferred", preferred), ("centred", preferred - preferred.mean(0)), ("direction", toward)):
        np.testing.assert_allclose(found[name], cosine_similarity(means), atol=1e-5)


def test_cosines_are_drawn_of_training_users(swept):
    figure, _ = draw(swept, kind="cosines", task=SMALL)
    trial = next(t for t in swept.plan.trials if t.task.n_users == 20 and t.task.pairs_per_user == 10)
    expected = preference_cosines(open_prepared_task(swept.store, trial.task_key).splits.train)
    drawn = [axes.images[0].get_array() for axes in figure.axes[:3]]
    assert [a.shape for a in drawn] == [(20, 20)] * 3
    np.testing.assert_allclose(drawn[2], expected["direction"])


def test_margins_lie_between_the_limits_of_the_task(concepts):
    figure, _ = draw(concepts, kind="margins", task={"K": 2}, until=100)
    trial = next(t for t in concepts.plan.trials if t.task.K == 2)
    state = learned(concepts, trial)
    axes, shown = figure.axes[0], state["state/times"] <= 100
    median = np.median(state["state/margins"], axis=1)[shown]
    assert line(axes, "median").get_ydata() == pytest.approx(median, rel=1e-5) and 3 < len(median) < 17
    lower, upper = (x.get_ydata() for x in axes.lines if x.get_label() == "limits")
    assert upper[1] == pytest.approx(5 * 0.01 * state["state/times"][1] / 2) and lower[1] == pytest.approx(
        upper[1] / 40
    )
    assert np.isnan(upper[-1])  # the theorem ends at tau_1
    figure, _ = draw(concepts, kind="margins")
    assert [axes.get_title() for axes in figure.axes] == ["K 1", "K 2"]


def test_curves_are_means_over_seeds(concepts):
    figure, missing = draw(concepts, kind="curves", curves=["loss", "margin", "nothing"], over="state/times")
    loss, margin, nothing = figure.axes
    trials = [t for t in concepts.plan.trials if t.task.K == 1]
    logged = np.array([concepts.store.read_manifest("trials", t.key)["facts"]["curves"]["margin"] for t in trials])
    assert line(margin, "K 1").get_ydata() == pytest.approx(logged.mean(0)) and len(loss.lines) == 2
    assert line(margin, "K 1").get_xdata() == pytest.approx(learned(concepts, trials[0])["state/times"])
    assert not nothing.lines and missing[0] == "dpo_head on concepts logs no curve 'nothing'"


def test_a_figure_without_trials_says_why(swept, tmp_path):
    tables = [{"kind": kind} for kind in ("shots", "spread", "latents", "cosines")]
    tables = [table | {"task": SMALL, "methods": ["per_user"]} for table in tables]
    nothing = Results(swept.plan, Store(tmp_path / "empty").open())
    for caption, svg in figures_of_claim(claim(*tables[:3]), nothing):
        assert not svg and caption.startswith("No figure: per_user on low_rank, seed 0, ha")
    drawn = figures_of_claim(claim(*tables), swept)
    assert all(svg.startswith("<svg") and svg.endswith("</svg>\n") for _, svg in drawn)
    assert drawn == figures_of_claim(claim(*tables), swept)


def test_captions_tell_figures_of_one_claim_apart(swept):
    one, other = ({"kind": "shots", "methods": "bayes", "task": SMALL | {"n_users": n}} for n in (20, 30))
    captions = [caption for caption, _ in figures_of_claim(claim(one, other, other | {"caption": "Mine."}), swept)]
    assert [c.partition(" Task: ")[2] for c in captions] == ["n users 20.", "n users 30.", ""]
    assert "Task" not in figures_of_claim(claim(one), swept)[0][0]


def test_a_method_without_trials_is_left_out(swept):
    plan = Plan(swept.suite, tuple(t for t in swept.plan.trials if t.method.name != "shared"), (), {})
    part = Results(plan, swept.store)
    ((caption, svg),) = figures_of_claim(claim({"kind": "shots", "task": SMALL, "caption": "Mine."}), part)
    assert (
        caption == "Mine. Not drawn: shared does not run on low_rank: not in the plan."
        and ">per_user<" in svg
        and ">shared<" not in svg
    )


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "shot"}, "did you mean 'shots'"),
        ({}, "one of shots, along"),
        ({"kind": "shots", "metrics": "auc"}, "did you mean 'metric'"),
        ({"kind": "shots", "published": {"value": [1]}}, "did you mean 'values'"),
        ({"kind": "along"}, "harness/claims/figures/of_scores.py"),
        (
            {"kind": "along", "field": "rank", "published": {"values": [1], "shots": [0]}},
            "`shots` for a figure of kind shots",
        ),
        ({"kind": "shots", "published": {"values": [1, 2], "shots": [0]}}, "one for each"),
        ({"kind": "shots", "metric": 3}, "text"),
        ({"kind": "along", "field": "rank", "log": "yes"}, "true or false"),
    ],
)
def test_what_is_misspelt_is_a_mistake(table, told):
    with pytest.raises(UserError, match="claim T1, figure 1") as mistake:
        read_figures(claim(table))
    assert told in mistake.value.hint


def test_the_page_holds_every_claim_and_escapes(swept, tmp_path):
    odd = "<script>alert(1)</script>"
    check = CheckResult(odd, 0.9, 0.8, 0.95, (0.7, float("inf")), 0.01, "with care", HOLDS)
    beside = CheckResult("a control", None, None, None, None, 0.0, "", "", "not yet")
    drawn = {"kind": "shots", "task": SMALL, "methods": ["per_user", "bayes"], "caption": odd}
    found = [
        JudgedClaim(
            claim(drawn, id="A1", title=odd),
            "paper_one",
            "swept",
            HOLDS_IN_PART,
            "with care",
            (check,),
            (beside,),
            3,
        ),
        *(
            JudgedClaim(claim(id=f"B{i}"), "two", "swept", v, "", (), ())
            for i, v in enumerate((HOLDS, DOES_NOT_HOLD, CANNOT_TELL))
        ),
        JudgedClaim(claim(id="C1", cannot="people"), "two", "elsewhere", NOT_TESTABLE, "people", (), ()),
    ]
    store = Store(tmp_path / "store").open()
    page = write_claims_page(
        found, [Chapter("paper_one", swept.suite, (), Results(swept.plan, store))], store, [], True
    )
    assert page.name == "claims-quick.html"
    # nothing is finished in that store, so the figure says why
    assert "No figure: per_user on low_rank" in page.read_text()
    text = write_claims_page(
        found, [Chapter("paper_one", swept.suite, (), swept)], swept.store, ["one"], False
    ).read_text()
    assert (
        "<script" not in text and text.count("&lt;script&gt;") == 4
    )  # in the list, the heading, the check, the figure
    assert (
        not re.search(r'(?:src|href)\s*=\s*"(?!#|papers)', text) and "url(http" not in text and text.count("<svg") == 1
    )
    assert ".900 (.800 .950)" in text and ".700 or more (±.010)" in text and "no number: not yet" in text
    anchors = set(re.findall(r'href="#([^"]+)"', text)) - set(re.findall(r'href="#(m[0-9a-f]{10}|DejaVu[^"]*)"', text))
    assert {"swept-A1", "swept-B0", "elsewhere-C1"} <= anchors <= set(re.findall(r'id="([^"]+)"', text))
    for verdict in (HOLDS, HOLDS_IN_PART, DOES_NOT_HOLD, CANNOT_TELL, NOT_TESTABLE):
        assert re.search(rf'class="badge [\w-]+">. {verdict}<', text)


def settings(**grids):
    """Return stand-ins for a board's task settings, with what `find_sweeps` reads."""
    return [SimpleNamespace(task=task) for task in read(**grids)]


def read(**grids):
    names, values = list(grids), np.meshgrid(*grids.values(), indexing="ij")
    rows = zip(*(v.ravel().tolist() for v in values), strict=True)
    return [make_instance("task", "low_rank", dict(zip(names, row, strict=True))) for row in rows]


def test_sweeps_are_found():
    def found(tasks):
        return [(fields, len(group)) for _, fields, group in sweeps.find_sweeps(SimpleNamespace(tasks=tasks))]

    assert found(settings(n_users=[500])) == []
    assert found(settings(n_users=[10, 20])) == [(("n_users",), 2)]
    grid = settings(n_users=[10, 20], rank=[1, 2, 3])
    assert found(grid) == [(("n_users", "rank"), 6)]
    cross = settings(n_users=[10, 20, 500]) + settings(rank=[1, 2])  # both through the default of 500 and 5
    assert sorted(found(cross)) == [(("n_users",), 3), (("rank",), 3)]
    assert found(settings(n_users=[10, 20], rank=[1, 2], feature_dim=[8, 16])) == [
        (("n_users", "feature_dim"), 8),
        (("n_users", "rank"), 8),
        (("feature_dim", "rank"), 8),
    ]
    assert found(grid + settings(queries=[5, 10])) == [(("n_users", "rank"), 6), (("queries",), 2)]


def test_heat_maps_hold_the_scores_of_the_rows(swept):
    board = make_board(swept.plan, swept.store)
    ((name, fields, tasks),) = sweeps.find_sweeps(board)
    assert (name, set(fields), len(tasks)) == ("low_rank", {"n_users", "pairs_per_user"}, 4)
    maps = sweeps.values_by_method(tasks, ("n_users", "pairs_per_user"), sweeps.row_accuracy)
    assert maps["per_user"][0, 1] == pytest.approx(accuracy(swept, "per_user", 8, n_users=30, pairs_per_user=10))
    drawn, gained = (chart.spec["data"]["values"] for chart in sweeps._heat_maps(tasks, fields, list(maps)))
    of_one = {(v["x"], v["y"]): v["text"] for v in drawn if v["method"] == "per_user"}
    (first, second), shown = (
        ([str(v) for v in sorted({getattr(t.task, f) for t in tasks})] for f in fields),
        maps["per_user"],
    )
    turned = shown if fields[0] == "n_users" else shown.T
    assert of_one == {(first[x], second[y]): words.format_number(value) for (y, x), value in np.ndenumerate(turned)}
    assert {v["method"] for v in gained} == {"per_user", "pref(rank=1)", "pref(rank=2)"}
    gains = sweeps.values_by_method(tasks, fields, sweeps.row_gain)
    assert set(gains) == {"per_user", "pref(rank=1)", "pref(rank=2)"}


def test_a_method_looks_the_same_all_over_a_board(swept, monkeypatch):
    board = make_board(swept.plan, swept.store)
    labels = setting_labels(list(board.suite.methods))
    looks = looks_of_methods(labels)
    assert len(set(looks.values())) == 4 and "bayes" not in looks
    assert looks["pref(rank=1)"].color == looks["pref(rank=2)"].color != looks["per_user"].color
    for task in board.tasks:
        for chart in charts.task_charts(task, looks):
            scale = (
                chart.spec["layer"][-1]["encoding"].get("color", {}).get("scale")
                or chart.spec["layer"][0]["encoding"]["color"]["scale"]
            )
            assert (
                dict(zip(scale["domain"], scale["range"], strict=True)).items()
                <= {label: look.color for label, look in looks.items()}.items()
            )


def test_many_settings_are_a_line_each_and_folded(swept, monkeypatch, capsys):
    board = make_board(swept.plan, swept.store)
    page = html.write_html(board, swept.store)
    drawn = re.findall(r'data-chart="(\w+)-\d', page.read_text())
    assert Counter(drawn) == {"sweep0": 2, "cost": 1} | {f"task{i}": 3 for i in range(4)}
    assert '<details id="task' not in page.read_text()
    page.unlink()
    for shown_by in (terminal, html):
        monkeypatch.setattr(shown_by, "MAX_TASKS_IN_FULL", 3)
    terminal.print_board(board)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(
        re.search(r"low_rank: n users \d+, pairs per user \d+ .* \.\d{3} ", x) for x in lines[1:]
    )
    text = html.write_html(board, swept.store).read_text()
    assert text.count('<details id="task') == 4
