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

# a page is made again when a file in these folders changes
PAGE_CODE_FOLDERS = (Path(__file__).parent, Path(learned_axes.__file__).parent)
COLUMN_EXPLANATIONS = {
    "rank": "the rank by score, and in brackets all ranks that are possible at 95 % for all methods at once. "
    "Privileged methods read the ground truth of a simulator and are not ranked; incomplete ones have missing trials",
    "accuracy": "share of observed labels that are predicted, averaged over people, with a 95 % interval over people "
    "and seeds; a tie scores one half",
    "gain": f"paired gain in accuracy over {REFERENCE_METHOD}, with a 95 % interval; p is adjusted over all methods "
    "(Holm)",
    "swapped": "accuracy when each user's queries are answered with another user's state; "
    "a gain that survives the swap is not personal",
    "worse": f"share of people with lower accuracy than under {REFERENCE_METHOD}",
    "AUC": "over both orders of each pair, averaged over people",
    "log loss, Brier, ECE": "after scaling by one temperature fitted on validation users; log loss in nats; ECE is the "
    "debiased root mean square calibration gap over ten bins of equal mass, with an interval over seeds",
    "worst tenth": "mean accuracy of the worst tenth of people: as scored (which selects on noise); the value expected "
    "if all people were alike; and by a beta-binomial model of true accuracies",
    "best of n": "a method chooses one of a prompt's n candidates for every person. All methods have the same "
    "candidates; methods that ask a language model make no choices, since these would take too many questions. "
    "Gain: in true utility over a random candidate; 1 if the best of all candidates is always chosen (a ratio of "
    f"means). Beats random, beats {REFERENCE_METHOD}: probability of being preferred to a random one of all "
    f"candidates, or to the choice of {REFERENCE_METHOD} among the same n; a tie is one half. Worse: share of people "
    "worse off than with that alternative. Peak: the n with the largest gain, if the largest n is significantly worse "
    "(over-optimisation)",
    "texts by policies": f"a policy writes texts for the first {MAX_PEOPLE} people and the first {MAX_PROMPTS} prompts "
    "that have candidates, and so does its reference model (the model it started from), with the same random draws. "
    "Gain: in true utility to the person, over the reference model's text. Win rate: how often the person prefers the "
    "policy's text to that of the reference model; a tie is one half. Swapped: the gain to this person of a text that "
    "was written for another person. Mean user: the gain of the same text to the average of all users, which shows "
    "what adapting to one person costs or brings the others (left out where opposite users are equally common, since "
    "the average user then has no preferences). Normalised gain: scaled as for the best of n, over the same people "
    "and prompts, beside the best of n by the method's own reward; above 1 is better than every candidate. KL: "
    "divergence of the policy from its reference model, in nats per response. Fluency: log-probability under the "
    "reference model, in nats per token. Stopped: share of responses that end by themselves",
    "cost": "fit: seconds to train; adapt: microseconds per new user; bytes stored per user; peak memory in MB",
}


def write_html(board: Board, store: Store, axis_namer: str | None = None) -> Path:
    """Write `boards/<suite>.html` in the store unless it already shows this board, and return its path.

    axis_namer: the language model that names the learned axes. Raises NotCachedError where its answers are not cached.
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
    """Return the HTML page. Only `readings` quote the data: a page without them may be published outside the store."""
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
