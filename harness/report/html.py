"""The board as one self-contained HTML file with figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from harness.atomic import write_whole
from harness.board import learned_axes
from harness.board.board import REFERENCE, Board
from harness.board.learned_axes import Reading
from harness.inference import generate
from harness.report.board_figures import figures, sweep_figures
from harness.report.plots import looks_of
from harness.report.words import (
    MANY,
    most,
    number,
    p_text,
    rank_text,
    remarks,
    shortened,
    span,
    told_apart,
    worse_text,
    written_tables,
)
from harness.store.store import Store
from harness.task import Task
from harness.trials.write_texts import MAX_PROMPTS, WRITERS

DRAWN_BY = (Path(__file__).parent, Path(learned_axes.__file__).parent)  # a change in these folders makes a page anew
WORDS = {
    "rank": "as scored, and in brackets the ranks it may have (95 %, all methods at once)",
    "accuracy": "share of observed labels predicted, mean over people, 95 % interval over people and seeds; "
    "a tie scores one half",
    "gain": f"paired gain in accuracy over {REFERENCE}, 95 % interval; p adjusted over all methods (Holm)",
    "swapped": "accuracy when a user is answered with another user's state: "
    "a gain that survives the swap is not personal",
    "worse": f"share of people with lower accuracy than under {REFERENCE}",
    "AUC": "over both orders of each pair, mean over people",
    "log loss, Brier, ECE": "after one temperature fitted on validation users; log loss in nats; ECE is the debiased "
    "root mean square gap over ten bins of equal mass, its interval over seeds",
    "worst tenth": "mean accuracy of the worst tenth of people: as scored (selects on noise), what that would read if "
    "all people were alike, and by a beta-binomial model of true accuracies",
    "best of n": "a method chooses one of a prompt's n candidates for every person; all methods have the same ones, but "
    "those that ask a language model, which would be asked too often, choose none. "
    "Gain: in true utility over a random candidate, 1 where the best of all is always chosen (a ratio of means). Beats "
    f"random, beats {REFERENCE}: probability of being preferred to one of all candidates at random, or to what "
    f"{REFERENCE} chooses of as many; a tie is one half. Worse: share of people worse off than with those. Peak: the n "
    "beyond which choosing among more is surely worse, if any (over-optimisation)",
    "written": f"a policy writes to the first {WRITERS} people and the first {MAX_PROMPTS} of the candidates' prompts, and so "
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


def write_html(board: Board, store: Store, reader: str | None = None) -> Path:
    """Writes `boards/<suite>.html` in the store unless it shows this very board already; returns its path.

    reader: the language model that names the axes of what was learned. Raises Lacking where it has to be asked first.
    """
    path = store.board(board.suite.name)
    named = generate.make_generator(learned_axes.with_options(reader)).canonical if reader else None
    shown = hashlib.sha256(json.dumps([board.suite.title, board.as_dict(), named]).encode())
    for file in sorted(f for folder in DRAWN_BY for f in folder.iterdir() if f.suffix in (".py", ".html")):
        shown.update(file.read_bytes())
    stamp = f"<!-- {shown.hexdigest()} -->"
    if path.exists() and path.read_text().startswith(stamp):
        return path
    html = page(board, {} if len(board.tasks) > MANY else learned_axes.read(board, store, reader), reader)
    write_whole(path, f"{stamp}\n{html}")
    return path


def page(board: Board, readings: dict[Task, Reading] | None = None, reader: str | None = None) -> str:
    """The HTML page. Readings quote the data: without any it does not, and may leave the store."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = {
        "number": number,
        "span": span,
        "p_text": p_text,
        "rank_text": rank_text,
        "remarks": remarks,
        "words": WORDS,
        "names": told_apart([task.task for task in board.tasks]),
        "many": len(board.tasks) > MANY,
        "looks": looks_of(board),
        "readings": readings or {},
        "reader": reader,
        "shortened": shortened,
        "most": most,
        "worse_text": worse_text,
        "written_tables": written_tables,
    }
    return environment.get_template("board.html").render(
        board=board, reference=REFERENCE, figures=figures, sweeps=sweep_figures, **helpers
    )
