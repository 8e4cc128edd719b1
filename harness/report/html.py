"""The board as one self-contained HTML file with figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from harness.atomic import write_atomically
from harness.board import learned_axes
from harness.board.board import REFERENCE_METHOD, Board
from harness.board.learned_axes import LearnedAxes
from harness.inference import generate
from harness.report.board_figures import figures_of_sweeps, task_figures
from harness.report.plots import looks_of_methods
from harness.report.words import (
    MAX_TASKS_IN_FULL,
    distinct_task_labels,
    format_interval,
    format_number,
    format_p_value,
    format_rank,
    format_share,
    largest_candidate_count,
    shorten_text,
    task_remarks,
    written_tables,
)
from harness.store.store import Store
from harness.task import Task
from harness.trials.write_texts import MAX_PEOPLE, MAX_PROMPTS

PAGE_CODE_FOLDERS = (
    Path(__file__).parent,
    Path(learned_axes.__file__).parent,
)  # a change in these folders makes a page anew
COLUMN_EXPLANATIONS = {
    "rank": "as scored, and in brackets the ranks it may have (95 %, all methods at once)",
    "accuracy": "share of observed labels predicted, mean over people, 95 % interval over people and seeds; "
    "a tie scores one half",
    "gain": f"paired gain in accuracy over {REFERENCE_METHOD}, 95 % interval; p adjusted over all methods (Holm)",
    "swapped": "accuracy when a user is answered with another user's state: "
    "a gain that survives the swap is not personal",
    "worse": f"share of people with lower accuracy than under {REFERENCE_METHOD}",
    "AUC": "over both orders of each pair, mean over people",
    "log loss, Brier, ECE": "after one temperature fitted on validation users; log loss in nats; ECE is the debiased "
    "root mean square gap over ten bins of equal mass, its interval over seeds",
    "worst tenth": "mean accuracy of the worst tenth of people: as scored (selects on noise), what that would read if "
    "all people were alike, and by a beta-binomial model of true accuracies",
    "best of n": "a method chooses one of a prompt's n candidates for every person; all methods have the same ones, but "
    "those that ask a language model, which would be asked too often, choose none. "
    "Gain: in true utility over a random candidate, 1 where the best of all is always chosen (a ratio of means). Beats "
    f"random, beats {REFERENCE_METHOD}: probability of being preferred to one of all candidates at random, or to what "
    f"{REFERENCE_METHOD} chooses of as many; a tie is one half. Worse: share of people worse off than with those. Peak: the n "
    "beyond which choosing among more is surely worse, if any (over-optimisation)",
    "written": f"a policy writes to the first {MAX_PEOPLE} people and the first {MAX_PROMPTS} of the candidates' prompts, and so "
    "does the model it started from, its reference, with the same random draws. Gain: in true utility to the person, "
    "over the reference's text; beats it: how often that is preferred to the reference's text, a tie one half; mean "
    "user: the same text's gain for the average of all users, what adapting to one costs or brings the others (left out where "
    "opposite users are as common, so that it is nothing); swapped: "
    "for this person, of the text that was written for another. Normalised: as for the best of n, of the same people and "
    "prompts, beside what the method's own reward gains by choosing among their candidates; above 1 is better than all of them. KL: nats of a response, of "
    "the policy from its reference. Fluency: log-probability of a token under the reference, in nats. Stopped: share of "
    "responses that ended by themselves. In brackets: the change against the reference",
    "cost": "fit: seconds to train; adapt: microseconds per new user; bytes kept per user; peak memory of the process",
}


def write_html(board: Board, store: Store, axis_namer: str | None = None) -> Path:
    """Writes `boards/<suite>.html` in the store unless it shows this very board already; returns its path.

    axis_namer: the language model that names the axes of what was learned. Raises NotCachedError where it has to be asked first.
    """
    path = store.board_page(board.suite.name)
    named = generate.parse_generator(learned_axes.with_namer_options(axis_namer)).canonical_name if axis_namer else None
    shown = hashlib.sha256(json.dumps([board.suite.title, board.as_dict(), named]).encode())
    for file in sorted(f for folder in PAGE_CODE_FOLDERS for f in folder.iterdir() if f.suffix in (".py", ".html")):
        shown.update(file.read_bytes())
    stamp = f"<!-- {shown.hexdigest()} -->"
    if path.exists() and path.read_text().startswith(stamp):
        return path
    html = render_page(
        board,
        {} if len(board.tasks) > MAX_TASKS_IN_FULL else learned_axes.find_learned_axes(board, store, axis_namer),
        axis_namer,
    )
    write_atomically(path, f"{stamp}\n{html}")
    return path


def render_page(board: Board, readings: dict[Task, LearnedAxes] | None = None, axis_namer: str | None = None) -> str:
    """The HTML page. Readings quote the data: without any it does not, and may leave the store."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = {
        "format_number": format_number,
        "format_interval": format_interval,
        "format_p_value": format_p_value,
        "format_rank": format_rank,
        "task_remarks": task_remarks,
        "words": COLUMN_EXPLANATIONS,
        "names": distinct_task_labels([task.task for task in board.tasks]),
        "many": len(board.tasks) > MAX_TASKS_IN_FULL,
        "looks": looks_of_methods(board),
        "learned_axes": readings or {},
        "axis_namer": axis_namer,
        "shorten_text": shorten_text,
        "largest_candidate_count": largest_candidate_count,
        "format_share": format_share,
        "written_tables": written_tables,
    }
    return environment.get_template("board.html").render(
        board=board, reference=REFERENCE_METHOD, figures=task_figures, sweeps=figures_of_sweeps, **helpers
    )
