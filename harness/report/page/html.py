"""The board as one self-contained HTML file: tables for every reader, and figures, sorting and filters with scripts."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import date
from pathlib import Path

from harness.atomic import write_atomically
from harness.board import examples, learned_axes
from harness.board.board import REFERENCE_METHOD, Board, setting_labels
from harness.board.examples import PersonExample
from harness.board.learned_axes import LearnedAxes
from harness.inference import generate
from harness.report.page.charts import across_charts, cost_chart, part_chart, task_charts, variants_chart
from harness.report.page.contents import method_cards, overview, page_data, variant_cells
from harness.report.page.looks import looks_of_methods
from harness.report.page.marks import Chart
from harness.report.page.scripts import content_hash, draw_static, library_scripts, packed, table_styles
from harness.report.page.sweeps import sweep_charts
from harness.report.words import (
    MAX_TASKS_IN_FULL,
    across_remarks,
    across_table,
    distinct_task_labels,
    format_interval,
    format_number,
    format_p_value,
    format_rank,
    format_share,
    format_worse,
    largest_candidate_count,
    people_and_seeds,
    shorten_text,
    task_remarks,
    titles_of_rating_scores,
    variants_remarks,
    written_tables,
)
from harness.store.store import Store
from harness.task import Task
from harness.trials.suite import shipped_suite
from harness.trials.write_texts import MAX_PEOPLE, MAX_PROMPTS

MAX_QUOTED_TASKS = 30  # of a board whose page quotes texts: each takes up to a second and 30 KB
# A page is made again when one of these files in these folders changes.
PAGE_CODE_SUFFIXES = (".py", ".html", ".js", ".bib")
PAGE_CODE_FOLDERS = (Path(__file__).parent, Path(__file__).parent.parent, Path(learned_axes.__file__).parent)
TEMPLATE_HELPERS = (  # functions that the template calls by their names
    format_number,
    format_interval,
    format_p_value,
    format_rank,
    task_remarks,
    people_and_seeds,
    shorten_text,
    largest_candidate_count,
    titles_of_rating_scores,
    format_share,
    format_worse,
    written_tables,
    variants_remarks,
    across_table,
    across_remarks,
)
COLUMN_EXPLANATIONS = {
    "rank": "the rank by score; in brackets the best and the worst rank that the data allow. A method is placed above or "
    f"below {REFERENCE_METHOD} where the limits of its gain exclude 0, and above or below another method where all pairs "
    "of methods are tested at once at 95 %. Not ranked: privileged methods, which read the ground truth of a simulator, and incomplete methods, "
    "which have trials without a result",
    "accuracy": "share of observed labels that are predicted, averaged over people, with a 95 % interval over people "
    "and seeds; a tie scores one half",
    "gain": f"paired gain in accuracy over {REFERENCE_METHOD}, with 95 % limits and p-values that hold for all methods "
    "of the suite at once (max-t): limits exclude 0 exactly where p is below .05. Controls, such as chance, are not among "
    "them: their limits hold for each alone, and they have no p",
    "swapped": "accuracy when each user's queries are answered with what the method learned about another user; a gain "
    "that remains after this swap is not personal",
    "worse %": f"share of people with lower accuracy than under {REFERENCE_METHOD}; in brackets the share to expect by chance if "
    "the method's gain were the same for all people. Truly worse %: a model's estimate of the share of people whose true accuracy "
    "is lower by more than .005; a dash where it is not sure that people's true gains differ",
    "AUC": "over both orders of each pair, averaged over people",
    "log loss, Brier, ECE": "after scaling by one temperature fitted on validation users; log loss in nats; ECE is the "
    "debiased root mean square calibration gap over ten bins of equal mass, with an interval over seeds",
    "rank correlation, error on the scale": "of predicted ratings, where the pairs are made of ratings: Spearman's correlation "
    "with a person's ratings, and the root mean square error of each rating predicted by a line through the person's other "
    "ratings, in units of the scale",
    "worst tenth": "mean accuracy of the tenth of people with the lowest scores, in three columns. Worst tenth: as "
    "scored, which is too low, since people are selected for bad luck too. If all alike: the value to expect if all "
    "people had the same true accuracy. Modelled: an estimate for the tenth with the lowest true accuracies, by a "
    "beta-binomial model",
    "best of n": "for every person, a method chooses one of a prompt's n candidate responses. All methods have the "
    "same candidates. Methods that ask a language model make no choices, since comparing candidates would take too "
    "many questions. Normalised gain: gain in true utility over a random candidate, divided by that of the best of "
    "all candidates (both averaged first), so it is 1 if the best one is always chosen. Win rate: probability that "
    "the choice is preferred to a random one of all candidates, or to the choice of "
    f"{REFERENCE_METHOD} among the same n; a tie is one half. Worse: share of people for whom the choice is on average "
    "worse than that alternative. Peak: the n with the largest gain; left empty unless the gain at the largest n is "
    "significantly lower (over-optimisation)",
    "texts by policies": f"a policy writes texts for the first {MAX_PEOPLE} people and the first {MAX_PROMPTS} prompts "
    "that have candidates, and so does its reference model (the model it started from), with the same random draws. "
    "Gain: true utility of the policy's text to the person, minus that of the reference model's text. Win rate: how "
    "often the person prefers the policy's text to that of the reference model; a tie is one half. Swapped: the gain "
    "to the person from a text that was written for another person. Mean user: the gain to the average user from the "
    "same texts, which shows what adapting to one person brings or costs the others. It is left out where opposite "
    "users are equally common, since the average user then has no preferences. Normalised gain: on the scale of the "
    "best of n, where 0 is a random candidate and 1 the best one; a text above 1 is better than every candidate. The "
    "columns next to it are the best of n by the same method's reward, for the same people and prompts. KL: "
    "divergence of the policy from its reference model, in nats per response. Fluency: log-probability under the "
    "reference model, in nats per token. Stopped: share of responses that end by themselves",
    "across tasks": "wins: the probability of a higher accuracy than another method drawn at random, on a task drawn at "
    "random; a tie is one half, and settings of one task count together as one. Its limits are over tasks and hold for the row alone, so they may not overlap where ranks cannot be told apart, which is "
    "asked for all pairs at once. A variant, with its rank in brackets, is compared as if it stood in the place of the method as it is. The rank is by wins; in brackets the "
    "best and the worst rank that the tasks allow, for all methods at once. Gains are interquartile means over a family's settings, whose number is in brackets (of one or two the plain mean), with "
    "limits over their people and seeds, for the row alone: share is of the possible gain, from the reference to the line of the best that can be reached, where "
    "that is known on all tasks of the family; gain is in accuracy. A method without a result on some task is left out",
    "variants": "a tuned method is a variant of the same method as it is; the change is the difference in accuracy at the "
    "largest number of shots, for the same people, pairs and seeds. The limits on one setting hold for that change alone; those "
    "of the mean are over people and seeds of these settings, and do not speak of other tasks",
    "cost": "fit: seconds to train; adapt: microseconds per new user; bytes stored per user; peak memory in MB",
}


def write_html(board: Board, store: Store, axis_namer: str | None = None) -> Path:
    """Write `boards/<suite>.html` in the store unless it already shows this board, and return its path.

    axis_namer: the language model that names the learned axes. Raises NotCachedError where its answers are not in the
    store.
    """
    path = store.board_page(store.name_of_suite(board.suite.name, board.suite.file))
    stamp = _stamp(board, axis_namer)
    if path.exists() and path.read_text("utf-8").partition("\n")[0] == stamp:
        return path
    axes, people = None, None
    if len(board.tasks) <= MAX_QUOTED_TASKS:
        axes = learned_axes.find_learned_axes(board, store, axis_namer)
        people = examples.find_examples(board, store)
    write_atomically(path, f"{stamp}\n{render_page(board, axes, axis_namer, people)}")
    return path


def published_page(board: Board) -> str:
    """Return the page that may leave the store: without learned axes and examples, which quote texts, and without people."""
    return render_page(board, with_people=False)


def _is_folded(board: Board) -> bool:
    """Return whether a board has so many tasks that its page has their tables folded."""
    return len(board.tasks) > MAX_TASKS_IN_FULL


def _suite_to_name(board: Board) -> str:
    """Return how a command names the board's suite: a shipped one by its name, another by its file, without folders."""
    file = Path(board.suite.file)
    return file.stem if shipped_suite(Path(file.stem)) == file.absolute() else file.name or board.suite.name


def _shared_flags(board: Board) -> list[tuple[str, int]]:
    """Return the flags that concern at least half of several settings, with how many; each setting shows its own too."""
    found = Counter(flag for task in board.tasks for flag in task.flags).most_common()
    return [(flag, count) for flag, count in found if 2 * count >= len(board.tasks) > 1]


def _stamp(board: Board, axis_namer: str | None) -> str:
    """Return the first line of a page: the digest of what it shows and of the code that draws it."""
    namer = generate.parse_generator(learned_axes.with_namer_options(axis_namer)).canonical_name if axis_namer else None
    digest = hashlib.sha256(f"{board.content_digest} {namer}".encode())
    files = sorted(f for folder in PAGE_CODE_FOLDERS for f in folder.iterdir() if f.suffix in PAGE_CODE_SUFFIXES)
    for file in files:
        digest.update(file.read_bytes())
    return f"<!-- {digest.hexdigest()} -->"


def render_page(
    board: Board,
    axes: dict[Task, LearnedAxes] | None = None,
    axis_namer: str | None = None,
    people: dict[Task, tuple[PersonExample, ...]] | None = None,
    with_people: bool = True,
) -> str:
    """Return the HTML page, with the learned axes of tasks and the examples of people where they are given.

    with_people: whether scores of single people are on the page.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {helper.__name__: helper for helper in TEMPLATE_HELPERS}
    methods = setting_labels(list(board.suite.methods))
    looks = looks_of_methods(methods)
    labels = distinct_task_labels([task.task for task in board.tasks])
    places: dict[str, list[tuple[str, Chart]]] = {}  # part of the page -> its charts with their names

    def place(part: str, charts: list[Chart]) -> None:
        places[part] = [(f"{part}-{i}", chart) for i, chart in enumerate(charts)]

    place("across", across_charts(board, looks) if board.across else [])
    parts = board.across.parts if board.across else {}
    for name, part in parts.items():
        place(f"across-{name}", [part_chart(name, part, looks)])
    changed = variants_chart(board, looks)
    place("variants", [changed] if changed else [])
    cost = cost_chart(board, list(labels.values()), looks)
    place("cost", [cost] if cost else [])
    for i, task in enumerate(board.tasks):
        place(f"task{i}", task_charts(task, looks, with_people))
    sweeps = sweep_charts(board, looks)
    for i, (_, charts) in enumerate(sweeps):
        place(f"sweep{i}", charts)
    specs = {name: chart.described_spec for part in places.values() for name, chart in part}
    data = page_data(board, specs, list(labels.values()), with_people)
    own = Path(__file__).with_name("board.js").read_text("utf-8")
    libraries = library_scripts()
    shown = {
        "column_explanations": COLUMN_EXPLANATIONS,
        "task_labels": labels,
        "folded": _is_folded(board),
        "learned_axes": axes or {},
        "axis_namer": axis_namer,
        "examples": people or {},
        "places": places,
        "static": {name: draw_static(chart.described_spec) for name, chart in places["across"][:1]},
        "sweep_headings": [heading for heading, _ in sweeps],
        "overview": overview(board),
        "variant_cells": variant_cells(board),
        "cards": method_cards(board, methods),
        "looks": looks,
        "with_people": with_people,
        "suite_file": _suite_to_name(board),
        "shared_flags": _shared_flags(board),
        "made": date.today().isoformat(),
        "codes": sorted({code for task in board.tasks for code in task.code}),
        "libraries": {name: packed(text) for name, text in libraries.items()},
        "data": packed(data),
        "table_styles": packed(table_styles()),
        "script": own,
        "allowed_scripts": " ".join(map(content_hash, [own, *libraries.values()])),
    }
    return environment.get_template("page/board.html").render(board=board, reference=REFERENCE_METHOD, **shown)
