"""The board's page in a real browser: figures, sorting, filters, addresses, people and downloads."""

import base64
import dataclasses
import gzip
import html
import io
import json
import re
from urllib.parse import urlencode
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.board.make import make_board
from harness.registry import PROJECT_ROOT, list_names, load_class, make_instance
from harness.report.board_frames import scores_frame
from harness.report.page import charts, cite
from harness.report.page.charts import frontier, task_charts
from harness.report.page.contents import latex_table, overview
from harness.report.page.html import render_page
from harness.report.page.looks import look_number, looks_of_methods
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tests.browser import BROWSER, in_browser

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
HOSTILE = "</script><script>hacked=1</script>"

SUITE = f"""
title = '{HOSTILE}'
seeds = 3
tasks = [
  {{ name = "low_rank", n_users = 60, new_users = 20, pairs_per_user = 20, shots = [0, 5] }},
  {{ name = "two_modes", n_users = 60, feature_dim = 2 }},
  {{ name = "raters", scenario = "two_camps", n_users = 40, new_users = 20, pairs_per_user = 40, shots = [0, 5] }},
]
methods = [{{ name = "per_user" }}, {{ name = "pref", rank = [1, 2] }}, {{ name = "oracle" }}]
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.toml").write_text(SUITE)
    store = Store(folder / "store").open()
    plan = make_plan(read_suite(folder / "page.toml"), store)
    list(finish_trials(plan.trials, store))
    return make_board(plan, store)


@pytest.fixture(scope="module")
def page(board):
    return render_page(board)


@pytest.fixture
def look(page, tmp_path):
    """Return what a script returns in the page; fail where the console has errors."""

    def looked(script, fragment="", width=1280):
        (tmp_path / "page.html").write_text(page)
        found, errors = in_browser(tmp_path / "page.html", script, fragment, width)
        assert errors == []
        return found

    return looked


@needs_browser
def test_the_page_allows_no_other_script(page, tmp_path):
    """A script that is not the page's own is refused, and the page works all the same."""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", "<script>document.title = 'hacked'</script></body>"))
    found, errors = in_browser(file, "return [document.title, document.querySelectorAll('#results tbody tr').length];")
    assert len(errors) == 1 and "Content Security Policy" in errors[0]
    assert "hacked" not in found[0].replace(HOSTILE, "") and found[1] > 5


@needs_browser
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_cut_off_and_every_figure_is_drawn(look, width):
    script = """
        for (const part of document.querySelectorAll("details")) part.open = true;
        for (const place of document.querySelectorAll("[data-chart]")) await draw(place);
        await new Promise((f) => setTimeout(f, 500));
        const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest(".scroll, figure.wide, figure.scrolled, .vega-actions, title, script"));
        return {
            inner: innerWidth,
            body: document.documentElement.scrollWidth - document.documentElement.clientWidth,
            wide: wide.map((e) => e.tagName + "." + e.className).slice(0, 5),
            charts: document.querySelectorAll("[data-chart]").length,
            drawn: [...document.querySelectorAll("[data-chart]")].filter((e) => e.querySelector("svg")?.getBBox().width > 100).length,
            hacked: typeof hacked,
        };"""
    found = look(script, width=width)
    assert found["inner"] == width
    assert found["body"] <= 0 and found["wide"] == []
    assert found["charts"] == found["drawn"] == 5 + 3 * 3
    assert found["hacked"] == "undefined"


@needs_browser
def test_a_link_shows_what_its_sender_saw(board, look):
    """What is chosen is written into the address, and an address chooses it."""
    choose = """
        const form = document.getElementById("filters");
        form.elements.task.value = form.elements.task.options[1].value;
        form.elements.shots.value = "every";
        form.dispatchEvent(new Event("input"));
        const table = jQuery("#results").DataTable();
        table.order([6, "asc"]).draw();
        return { hash: location.hash, texts: table.rows({ search: "applied", order: "applied" }).data().toArray().map((row) => row.cells[6][1]) };"""
    chosen = look(choose)
    assert "shots=every" in chosen["hash"] and "sort=accuracy%3Aasc" in chosen["hash"]
    read = """
        const table = jQuery("#results").DataTable();
        return table.rows({ search: "applied", order: "applied" }).data().toArray().map((row) => row.cells[6][1]);"""
    seen = look(read, chosen["hash"])
    assert seen == chosen["texts"]
    numbers = [float(text.split(" ")[0]) for text in seen]
    assert numbers == sorted(numbers) and len(numbers) == len(board.tasks[0].task.shots) * len(board.tasks[0].rows)


@needs_browser
def test_tables_sort_by_their_numbers(look):
    """Ranks such as `10 [9-12]`, gains with signs, and p-values below .001 are sorted as numbers."""
    script = """
        const table = document.createElement("table");
        table.innerHTML = "<thead><tr><th>rank</th><th>gain</th><th>p</th><th>name</th></tr></thead><tbody>"
            + "<tr><td>10 [9-12]</td><td>+.002 (-.1 +.1)</td><td>.032</td><td>b</td></tr>"
            + "<tr><td>2 [1-3]</td><td>-.300</td><td>&lt;.001</td><td>a</td></tr>"
            + "<tr><td>privileged</td><td></td><td></td><td>c</td></tr></tbody>";
        document.body.append(table);
        sortable(table);
        const found = {};
        for (const i of [0, 1, 2, 3]) {
            jQuery(table).DataTable().order([i, "asc"]).draw();
            found[i] = [...table.tBodies[0].rows].map((row) => row.cells[3].textContent).join("");
        }
        return found;"""
    assert look(script) == {"0": "cab", "1": "cab", "2": "cab", "3": "abc"}


@needs_browser
def test_a_persons_part_shows_their_own_scores(board, page, look):
    script = """
        return { says: document.getElementById("person-says").textContent,
                 rows: [...document.querySelectorAll("#person-rows tr")].map((tr) => [...tr.cells].map((td) => td.textContent)) };"""
    task = board.tasks[0]
    users = {row.label: row.users for row in task.rows if row.users is not None}
    person = users["shared"]["person"][3]
    label = page[page.index('href="#task0">') + 14 :].partition("<")[0]

    found = look(script, f"#{urlencode({'of': html.unescape(label), 'person': person})}")
    assert found["says"].startswith(f"Person {person} was asked")
    told = {label: (float(accuracy), float(gain)) for label, accuracy, gain in found["rows"]}
    assert told.keys() == users.keys()
    for label, table in users.items():
        own = table.filter(person=person)
        assert told[label] == (pytest.approx(own["accuracy"][0], abs=6e-4), pytest.approx(own["gain"][0], abs=1.1e-3))


@needs_browser
@pytest.mark.parametrize("address", ["#method1", "#at=method1&family=simulated"])
def test_an_address_opens_the_folded_part_that_it_names(look, address):
    script = """
        const found = [...document.querySelectorAll("#methods details")].map((part) => part.open);
        document.querySelector('#methods a[href="#task1"]').click();
        return { open: found, hash: location.hash, top: Math.abs(document.getElementById("task1").getBoundingClientRect().top) };"""
    found = look(script, address)
    assert found["open"] == [i == 1 for i in range(len(found["open"]))]
    assert "at=task1" in found["hash"] and ("family" in found["hash"]) == ("family" in address) and found["top"] < 5


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_no_pair_beats_one_of_the_frontier_and_all_others_are_beaten(pairs):
    costs, scores = zip(*pairs, strict=True)
    found = frontier(costs, scores)

    def beaten(i):
        return any(
            c <= costs[i] and s >= scores[i] and ((c, s) != pairs[i] or (j < i and j in found))
            for j, (c, s) in enumerate(pairs)
        )

    assert {pairs[i] for i in found} == {pair for i, pair in enumerate(pairs) if not beaten(i)}
    assert len({pairs[i] for i in found}) == len(found)


def test_the_cost_figure_marks_the_frontier_of_each_cost(page):
    chart = json.loads(unpacked(page, "data"))["charts"]["cost-0"]
    values = chart["data"]["values"]
    for task in {v["task"] for v in values}:
        own = [v for v in values if v["task"] == task]
        for cost in ("fit_seconds", "bytes_per_user"):
            marked = [v for v in own if v.get(f"front_{cost}")]
            assert max(v["value"] for v in own) == max(v["value"] for v in marked)
            assert min(v[cost] for v in own) == min(v[cost] for v in marked)


def unpacked(page, name):
    return gzip.decompress(base64.b64decode(re.search(rf'id="{name}">([^<]*)<', page)[1])).decode()


def test_downloads_hold_the_boards_numbers(board, page):
    files = json.loads(unpacked(page, "data"))["files"]
    scores = pl.read_csv(io.StringIO(files["scores.csv"]["text"]))
    assert scores["gain"].to_list() == scores_frame(board)["gain"].to_list()
    curves = pl.read_parquet(io.BytesIO(base64.b64decode(files["curves.parquet"]["base64"])))
    row = next(r for r in board.tasks[0].rows if r.label == "per_user")
    own = curves.filter(task=board.tasks[0].label, method="per_user", metric="accuracy", shots=5)
    assert own["value"][0] == pytest.approx(row.curves["accuracy"][5].value)
    assert files["references.bib"]["text"].count("@") >= 3 and "shenfeld2025pref" in files["references.bib"]["text"]
    lines = latex_table(board).splitlines()
    assert lines[3].count("&") == lines[5].count("&") == len(overview(board)[0]) and r"low\_rank" in lines[5]


def test_the_published_page_shows_no_single_person(board):
    page = render_page(board, with_people=False)
    data = json.loads(unpacked(page, "data"))
    assert data["people"] == {} and '"person"' not in json.dumps(data["charts"])
    assert '"person"' in json.dumps(json.loads(unpacked(render_page(board), "data"))["charts"])


def test_the_overview_shows_each_gain_with_its_direction(board):
    labels, rows = overview(board)
    for task, cells in rows:
        by_label = {row.label: row for row in task.rows}
        for label, cell in zip(labels, cells, strict=True):
            gain = by_label[label].gain
            assert cell.value == gain.value and cell.sure == (gain.low > 0 or gain.high < 0)
            assert (cell.shade.startswith("gained") == (gain.value > 0)) or cell.shade == ""
            assert f"{task.shots} shots" in cell.hint


def test_the_readmes_picture_is_the_pages_first_figure(board, page, monkeypatch):
    """An image of its own, with every method's name in it."""
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / ".docs"))
    import picture

    svg = picture.first_figure(page)
    texts = {e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {row.label for row in board.across.rows} <= texts
    with pytest.raises(ValueError, match="at least three tasks"):
        picture.first_figure(render_page(dataclasses.replace(board, across=None)))


def test_methods_whose_long_labels_begin_alike_have_a_mark_each(board):
    """Vega-Lite takes equal labels for one method, so labels are cut when they are drawn and not before."""
    task = board.tasks[0]
    rows = [dataclasses.replace(row, label=f"{'long, ' * 10}{i}") for i, row in enumerate(task.rows)]
    looks = looks_of_methods({row.method: row.label for row in rows})
    curves, ranks, gains, *_ = task_charts(dataclasses.replace(task, rows=tuple(rows)), looks)
    ranked = {row.label for row in rows if row.rank}
    for chart in (curves, ranks):
        assert {value["method"] for value in chart.spec["data"]["values"]} == ranked
    assert len({value["method"] for value in gains.spec["data"]["values"]}) == len(ranked) - 1  # all but `shared`


def test_the_mark_of_a_method_is_its_gain_also_where_not_all_people_are_drawn(board, monkeypatch):
    monkeypatch.setattr(charts, "MAX_PEOPLE_TICKS", 5)
    task = board.tasks[0]
    spec = task_charts(task, looks_of_methods({row.method: row.label for row in task.rows}))[2].spec
    means = {v["method"]: v["value"] for v in spec["layer"][-1]["data"]["values"]}
    assert means == {r.label: pytest.approx(r.gain.value, abs=1e-4) for r in task.rows if r.worse is not None}
    assert len(spec["data"]["values"]) <= 5 * len(means)


def test_every_work_that_is_named_can_be_cited():
    papers = [load_class(kind, name).paper for kind in ("task", "method") for name in list_names(kind)]
    keys = {cite.citation_key(paper) for paper in papers if paper}
    assert keys == set(cite.references())
    assert (
        cite.citation_key("Bose et al. 2025, LoRe") == "bose2025lore" and cite.citation_key("Train 2009") == "train2009"
    )
    assert cite.works_of(["somebody's own"]) == []


def test_a_method_has_one_look_everywhere():
    """The look depends on the method alone; settings and tuned variants keep its colour."""
    a, b, other = (make_instance("method", *given) for given in (("pref", {}), ("pref", {"rank": 2}), ("rfm", {})))
    looks = looks_of_methods({a: "a", b: "b", other: "c"})
    assert looks["c"] == looks_of_methods({other: "c"})["c"] != looks["a"]
    assert looks["a"].color == looks["b"].color and looks["a"] != looks["b"]
    shipped = [make_instance("method", name, {}) for name in list_names("method") if name != "tuned"]
    numbers = [look_number(m) for m in shipped if not m.privileged]
    assert len(set(numbers)) == len(numbers)
