"""The board: hand-worked numbers, missing trials, one seed, flags, and a self-contained page."""

import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.board import flags
from harness.board.board import setting_labels
from harness.board.make import make_board
from harness.board.results import load_scores
from harness.registry import make_instance
from harness.report.page.charts import task_charts
from harness.report.page.html import write_html
from harness.report.page.looks import looks_of_methods
from harness.report.page.scripts import draw_static
from harness.report.terminal import print_board
from harness.report.words import format_interval, format_number
from harness.scores import stats
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite


def row(board, label):
    return next(r for r in board.tasks[0].rows if r.label == label)


def test_scores_are_means_over_people_and_seeds(tiny):
    """Scores equal means recomputed from the stored tables with polars alone."""
    _, plan, store = tiny
    board = make_board(plan, store)
    mine = [t for t in plan.trials if t.method.name == "per_user"]
    tables = [load_scores(store, t.task_key, store.read_manifest("trials", t.key)) for t in mine]
    test = pl.concat(tables).filter(panel="test", shots=4, swapped=False)
    assert row(board, "per_user").curves["accuracy"][4].value == pytest.approx(test["accuracy"].mean())
    assert row(board, "per_user").curves["auc"][4].value == pytest.approx(test["auc"].mean())
    swapped = pl.concat(tables).filter(panel="test", shots=4, swapped=True)
    assert row(board, "per_user").swapped == pytest.approx(swapped["accuracy"].mean())
    point = row(board, "per_user").curves["accuracy"][4]
    seeds = [t.filter(panel="test", shots=4, swapped=False)["accuracy"].mean() for t in tables]
    half = 4.302653 * np.std(seeds, ddof=1) / np.sqrt(3)  # people nested in seeds: the t interval of three seed means
    assert (point.low, point.high) == pytest.approx((point.value - half, point.value + half), abs=1e-6)


def test_gains_are_paired(tiny):
    _, plan, store = tiny
    board = make_board(plan, store)
    gain = row(board, "spectral").gain
    assert gain.value == pytest.approx(
        row(board, "spectral").curves["accuracy"][4].value - row(board, "shared").curves["accuracy"][4].value
    )
    users = row(board, "spectral").users
    assert users["gain"].mean() == pytest.approx(gain.value)
    assert row(board, "spectral").worse.naive == pytest.approx((users["gain"] < 0).mean())
    told = board.tasks[0].differences.filter(shots=4, a="spectral", b="shared").to_dicts()[0]
    assert (
        told["value"] == pytest.approx(gain.value) and told["low"] > gain.low
    )  # the board's limits hold for all at once
    chance = board.tasks[0].differences.filter(shots=4, a="chance", b="shared").to_dicts()[0]
    assert chance["low"] == pytest.approx(row(board, "chance").gain.low) and row(board, "chance").p is None


def test_privileged_methods_are_never_ranked(tiny):
    _, plan, store = tiny
    board = make_board(plan, store)
    bayes = row(board, "bayes")
    assert bayes.privileged and bayes.rank is None and bayes.p is None and bayes.curves["accuracy"][4].low is not None
    assert sorted(r.rank[0] for r in board.tasks[0].rows if r.rank) == sorted(
        r.rank[0] for r in board.tasks[0].rows if not r.privileged
    )


def test_an_incomplete_method_is_shown_and_not_ranked(tiny, capsys):
    _, plan, store = tiny
    gone = next(t for t in plan.trials if t.method.name == "spectral" and t.seed == 1)
    (store.root / "trials" / f"{gone.key}.json").unlink()
    store.record_failure(gone.key, gone.identity, "ValueError: lost", "")
    board = make_board(plan, store)
    spectral = row(board, "spectral")
    assert (
        spectral.rank is None
        and spectral.gain is None
        and "1 of 3 seeds failed: ValueError: lost" in spectral.incomplete
    )
    assert spectral.curves["accuracy"][4].low is None
    assert sorted(r.rank[2] for r in board.tasks[0].rows if r.rank)[-1] == 4  # of four complete methods
    labels = [r.label for r in board.tasks[0].rows]
    assert (
        labels.index("bayes") == labels.index("spectral") - 1 == 4
    )  # ranked, then lines of the truth, then incomplete
    print_board(board)
    assert "incomplete: spectral: 1 of 3 seeds failed: ValueError: lost" in capsys.readouterr().out


def test_one_seed_has_no_interval(tiny, tmp_path, capsys):
    file, _, store = tiny
    file.write_text(file.read_text().replace("seeds = 3", "seeds = 1"))
    board = make_board(make_plan(read_suite(file), store), store)
    assert board.tasks[0].note == "one seed" and row(board, "per_user").curves["accuracy"][4].low is None
    assert row(board, "spectral").rank[1:] == (1, 5) and row(board, "spectral").p is None
    print_board(board)
    assert "no interval: one seed" in capsys.readouterr().out


def test_mixed_code_and_divergence_are_flagged(tiny):
    _, plan, store = tiny
    trial = plan.trials[0]
    path = store.root / "trials" / f"{trial.key}.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["code"] = "another"
    path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "seal"}))
    store.commit("trials", trial.key, trial.identity, {"predictions.safetensors": b"other"}, {})
    flags = " ".join(make_board(plan, store).tasks[0].flags)
    assert (
        "2 different versions of the code" in flags
        and "another" in flags
        and f"a second run of the trial {trial.key} gave another result" in flags
    )


@pytest.mark.parametrize("flag", [flags.flag_equal_options, flags.flag_tied_labels])
def test_one_pair_in_two_hundred_is_flagged_and_fewer_are_not(flag):
    assert flag(0.0049) == [] and len(flag(0.005)) == 1 and "0.5%" in flag(0.005)[0]


def test_the_caveat_of_a_task_is_on_its_board(tiny, monkeypatch):
    _, plan, store = tiny
    caveat = "gains come from the domain, not the person"
    monkeypatch.setattr(type(plan.suite.tasks[0]), "caveat", caveat)
    assert make_board(plan, store).tasks[0].flags[0] == caveat


def test_a_method_that_reads_nobody_is_flagged(tmp_path):
    """A method that stores something about people and answers everybody alike is named; one that reads people is not."""
    (tmp_path / "deaf.py").write_text(
        '"""Deaf, for a test."""\nimport torch\nfrom harness.methods.per_user import PerUser\n'
        "class Deaf(PerUser):\n    def score(self, state, users, query):\n"
        "        return torch.from_numpy(query.gap[:, 0]) + 1e-9 * super().score(state, users, query)\n"
    )
    registry.add_plugins([tmp_path / "deaf.py"])
    file = tmp_path / "suite.toml"
    file.write_text('seeds = 3\n[[tasks]]\nname = "low_rank"\nn_users = 60\n[[methods]]\nname = "deaf"\n')
    store = Store(tmp_path / "store").open()
    plan = make_plan(read_suite(file), store)
    list(finish_trials(plan.trials, store))
    said = [flag for flag in make_board(plan, store).tasks[0].flags if "reads nobody" in flag]
    assert said == ["deaf reads nobody: with another person's answers it gives another answer to 0.0% of the queries"]


def test_a_changed_source_file_is_flagged(tiny, tmp_path):
    """Old results stay when a method's file changes and its settings do not, and the board has a flag."""
    file, _, store = tiny
    plugin = tmp_path / "mine.py"
    text = '"""Mine, for a test."""\nfrom harness.methods.per_user import PerUser\nclass Mine(PerUser):\n    pass\n'
    plugin.write_text(text)
    registry.add_plugins([plugin])
    file.write_text(file.read_text() + '\n[[methods]]\nname = "mine"')
    plan = make_plan(read_suite(file), store)
    list(finish_trials(plan.trials, store))
    assert make_board(plan, store).tasks[0].flags == ()
    plugin.write_text(text + "# another thought\n")
    assert make_board(plan, store).tasks[0].flags == ()
    plugin.write_text(text.replace("pass", "scale = 2.0"))
    (flag,) = make_board(plan, store).tasks[0].flags
    assert "method mine: its code, or code that it imports, has changed" in flag and "version" in flag


def test_every_method_of_an_unrun_suite_is_incomplete(tiny, tmp_path):
    file, _, _ = tiny
    board = make_board(make_plan(read_suite(file), Store(tmp_path / "empty").open()), Store(tmp_path / "empty"))
    assert board.tasks[0].verdict == "no verdict yet: 5 of 5 methods have trials that have not run"
    assert all("not run yet" in r.incomplete for r in board.tasks[0].rows)
    assert write_html(board, Store(tmp_path / "empty")).exists()


def test_a_missing_verdict_names_its_reason(tiny):
    """The board says whether `shared` has missing trials, has no trials on the task, or is alone."""
    _, plan, store = tiny

    def verdict(names):
        methods = tuple(m for m in plan.suite.methods if m.name in names)
        trials = tuple(t for t in plan.trials if t.method.name in names)
        kept = dataclasses.replace(plan, suite=dataclasses.replace(plan.suite, methods=methods), trials=trials)
        return make_board(kept, store).tasks[0].verdict

    assert verdict(["shared", "bayes"]) == "no verdict: only shared has a rank"
    assert (
        verdict(["per_user", "chance"]) == "no verdict: shared, the baseline of every gain, has no trials on this task"
    )
    gone = next(t for t in plan.trials if t.method.name == "shared")
    (store.root / "trials" / f"{gone.key}.json").unlink()
    assert verdict(["shared", "chance"]) == "no verdict yet: 1 of 2 methods have trials that have not run"
    store.record_failure(gone.key, gone.identity, "ValueError: lost", "")
    assert verdict(["shared", "chance"]) == "no verdict: shared, the baseline of every gain, has missing trials"


def test_a_gain_and_a_loss_that_are_sure_one_by_one_may_not_be_so_together():
    from harness.board.verdict import verdict_text

    rng = np.random.default_rng(0)
    person, seed = np.arange(600), np.repeat(np.arange(3), 200)
    top = np.array([0.6, 0.7])[:, None] + 0.02 * rng.normal(size=(2, 600))
    gains = stats.gains_over_reference(top, person, seed, 0)
    losses = stats.swap_losses(top, top - [[0], [0.1]], person, seed, gains)
    said = verdict_text(gains, losses._replace(gain_low=np.array([0, 0.005])), 0.01, ["shared", "other"])
    assert said.startswith("better, perhaps not personal") and "and loses 0.100" in said
    assert said.endswith("that both exceed the margin cannot be told for all methods at once")


def test_a_gain_that_survives_the_swap_is_not_personal():
    """The verdict tells a better reward for all from a personal one, on 200 people under 5 seeds."""
    from harness.board.verdict import verdict_text

    rng = np.random.default_rng(0)
    person, seed = np.arange(1000), np.repeat(np.arange(5), 200)

    def noisy(means, spread=0.02):
        return np.array(means)[:, None] + spread * rng.normal(size=(len(means), 1000))

    def verdict(own, swapped, names, spread=0.02):
        top = noisy(own)
        gains = stats.gains_over_reference(top, person, seed, 0)
        losses = None if swapped is None else stats.swap_losses(top, noisy(swapped, spread), person, seed, gains)
        return verdict_text(gains, losses, 0.01, names)

    both = verdict([0.6, 0.66, 0.64], [0.6, 0.66, 0.6], ["shared", "better", "personal"])
    assert both.startswith("personalising pays: personal gains +0.04") and "loses 0.0" in both
    told = verdict([0.6, 0.66], [0.6, 0.655], ["shared", "better"])
    assert told.startswith("better, but not personal: better gains +0.06")
    told = verdict([0.6, 0.66], [0.6, 0.63], ["shared", "better"], spread=1)  # a loss of .03 that noise may explain
    assert told.startswith("better, perhaps not personal: better gains +0.06")
    assert verdict([0.6, 0.66], None, ["shared", "alone"]).startswith("better, perhaps not personal")


def test_verdicts_name_the_margin(tmp_path):
    file = tmp_path / "gain.toml"
    text = (
        'seeds = 3\nmargin = {}\n[[tasks]]\nname = "low_rank"\nn_users = 40\nnew_users = 20\nfeature_dim = 6\nrank = 2\n'
        "pairs_per_user = 30\nshots = [0, 10]\nqueries = 20\n"
    )
    store = Store(tmp_path / "store").open()
    verdicts = []
    for margin in (0.01, 0.4, 0.8):
        file.write_text(text.format(margin))
        plan = make_plan(read_suite(file), store)
        list(finish_trials(plan.trials, store))
        verdicts.append(make_board(plan, store).tasks[0].verdict)
    assert verdicts[0].startswith("personalising pays") and "margin 0.01" in verdicts[0]
    assert verdicts[1].startswith("nothing to personalise here") and verdicts[2].startswith(
        "nothing to personalise here"
    )


def test_the_page_stands_alone_and_is_not_redrawn(tiny, monkeypatch):
    _, plan, store = tiny
    board = make_board(plan, store)
    page = write_html(board, store)
    text = page.read_text()
    links = set(re.findall(r'href="([^#"][^"]*)"', text))  # to papers; nothing is loaded from them
    assert all(link.startswith("https://arxiv.org/abs/") for link in links) and "<link" not in text
    assert not re.search(r'\bsrc\s*=\s*"', text) and "@import" not in text and "url(http" not in text
    charts = set(re.findall(r'data-chart="([^"]+)"', text))
    assert charts == {"task0-0", "task0-1", "task0-2", "cost-0"} and 'name="viewport"' in text
    for label in ("per_user", "mixed_logit", "bayes"):
        assert label in text
    before = page.stat().st_mtime_ns
    monkeypatch.setattr("harness.report.page.html.render_page", lambda *_: pytest.fail("drawn again"))
    assert write_html(board, store).stat().st_mtime_ns == before
    monkeypatch.undo()
    renamed = dataclasses.replace(board, suite=dataclasses.replace(board.suite, title="another title"), tasks=())
    assert "another title" in write_html(renamed, store).read_text()


def test_hostile_names_are_escaped(tiny):
    file, _, store = tiny
    file.write_text(file.read_text().replace('"tiny"', "'<script>alert(1)</script>'"))
    page = write_html(make_board(make_plan(read_suite(file), store), store), store).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_figures_are_the_same_twice(tiny):
    _, plan, store = tiny
    board = make_board(plan, store)
    looks = looks_of_methods(setting_labels(list(board.suite.methods)))
    once, again = (task_charts(board.tasks[0], looks) for _ in range(2))
    assert once == again and [draw_static(c.spec) for c in once] == [draw_static(c.spec) for c in again]


def test_labels_tell_settings_apart():
    methods = [make_instance("method", "rfm", {}), make_instance("method", "rfm", {"dim": 8})]
    assert list(setting_labels(methods).values()) == ["rfm(dim=32)", "rfm(dim=8)"]
    assert list(setting_labels(methods[:1]).values()) == ["rfm"]


def test_long_values_are_cut_in_labels_unless_labels_would_then_be_equal():
    queries = [
        "SELECT *\n FROM data WHERE " + " AND ".join(f"x{i} > {i}" for i in range(99)) + end for end in ("", ";")
    ]
    short, semicolon = (registry.make_instance("task", "choices", {"query": query}) for query in queries)
    assert len(setting_labels([short])[short]) < 80 and len(setting_labels([short, semicolon])[semicolon]) < 80
    assert (
        setting_labels([short])[short].startswith("choices(query=SELECT * FROM data WHERE")
        and "…" in setting_labels([short])[short]
    )
    middle = registry.make_instance("task", "choices", {"query": queries[0].replace("x50", "y50")})
    both = setting_labels([short, middle])
    assert both[short] != both[middle] and "y50" in both[middle]


def test_numbers_read_as_in_papers(tiny):
    assert [format_number(0.8734), format_number(-0.0512, signed=True), format_number(1.25), format_number(None)] == [
        ".873",
        "-.051",
        "1.250",
        "",
    ]
    _, plan, store = tiny
    assert re.fullmatch(
        r"\.\d{3} \(\.\d{3} \.\d{3}\)", format_interval(row(make_board(plan, store), "per_user").curves["accuracy"][4])
    )


def test_the_board_as_json_is_plain(tiny):
    _, plan, store = tiny
    told = json.loads(json.dumps(make_board(plan, store).as_dict()))
    assert {r["label"] for r in told["tasks"][0]["rows"]} == {
        "chance",
        "shared",
        "per_user",
        "spectral",
        "mixed_logit",
        "bayes",
    }
