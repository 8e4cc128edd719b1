"""What a table holds that a person must know before choosing a task's fields: columns, people, ties, disagreement."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import polars as pl

from harness.sources.messages import as_messages, holds_messages

LONG_CHARACTERS = 2_000  # about 500 tokens: language models that encode read 512 by default, and cut the rest
QUANTILES = {"fewest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "most": 1.0}
# Names that columns have in data sets of preferences, by what they hold; the first that a table has is taken.
KNOWN_NAMES = {
    "user": r"(user|annotator|worker|rater|participant|judge|voter|person|evaluator|subject|"
    r"viewer|reviewer|customer|client|member|respondent|labell?er|coder|student|player)(_?(id|hash|name))?",
    "prompt": r"prompt|question|instruction|context|post|input|query",
    "chosen": r"chosen|preferred|better|winning(_response)?",
    "rejected": r"rejected|dispreferred|worse|losing(_response)?",
    "winner": r"winner|preference|choice|preferred_response|better_response",
    "ranking": r"ranking|ranks",
    "response": r"response|completion|answer|text|output",
    "item": r"(item|movie|film|book|song|track|artist|game|joke|product|image|photo|recipe|title|stimulus)(_?(id|name))?",
    "rating": r"rating|score|stars|grade|liking",
    "statement": r"statement|comment|proposal|opinion",
    "vote": r"vote",
    "label": r"label|p_chosen",
    "seconds": r"seconds|time_spent|rt|response_time",
    "own_split": r"split|part|fold",
    "group": r"group|country|annotator_country",
}
NUMBERED = re.compile(r"(.*?)_?([a-h]|[1-8])", re.IGNORECASE)  # response_a, completion1


def describe_columns(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Return for each column its name, type, number of missing values, of different values, and an example."""
    found = []
    for column in table.drop("row", strict=False):
        given = column.drop_nulls()
        nested = column.dtype.is_nested()
        kind = "messages" if holds_messages(as_messages(column)) else str(column.dtype).lower()
        example = _example(given) if len(given) else ""
        found.append(
            {
                "name": column.name,
                "type": kind if len(kind) <= 40 else kind[:37] + "...",
                "missing": column.null_count(),
                "different": None if nested else given.n_unique(),
                "example": example if len(example) <= 60 else example[:57] + "...",
            }
        )
    return found


def _example(given: pl.Series) -> str:
    """Return a column's first value as one line of text; nested ones as JSON."""
    if not given.dtype.is_nested():
        return str(given[0])
    return json.dumps(given.head(1).to_list()[0], ensure_ascii=False, default=str)


def guess_fields(table: pl.DataFrame) -> tuple[str, dict[str, Any]] | None:
    """Return the task and the fields that a table's names of columns suggest; None where they suggest none."""
    named: dict[str, str] = {}
    for field, pattern in KNOWN_NAMES.items():
        fits = [name for name in table.columns if re.fullmatch(pattern, name, re.IGNORECASE)]
        if fits:
            named[field] = fits[0]
    if "user" not in named:
        return None
    groups: dict[str, list[str]] = {}
    for name in table.columns:
        if found := NUMBERED.fullmatch(name):
            groups.setdefault(found[1], []).append(name)
    several = [
        names for stem, names in groups.items() if len(names) > 1 and re.fullmatch(KNOWN_NAMES["response"], stem, re.I)
    ]
    more: dict[str, Any]
    common: dict[str, Any] = {name: named[name] for name in ("user", "prompt", "group") if name in named}
    if {"chosen", "rejected"} <= set(named):
        more = {name: named[name] for name in ("chosen", "rejected", "label", "seconds", "own_split") if name in named}
        return "choices", common | more
    if several and (which := next((name for name in ("winner", "ranking") if name in named), None)):
        more = {name: named[name] for name in ("seconds", "own_split") if name in named}
        return "choices", common | {"responses": several[0], which: named[which]} | more
    if "vote" in named and "statement" in named:
        return "votes", {k: v for k, v in common.items() if k != "prompt"} | {
            k: named[k] for k in ("statement", "vote")
        }
    if "rating" in named and ("response" in named or "item" in named):
        what = "response" if "response" in named else "item"
        return "ratings", {k: v for k, v in common.items() if k != "group"} | {
            what: named[what],
            "rating": named["rating"],
        }
    return None


def describe_pairs(pairs: pl.DataFrame) -> dict[str, Any]:
    """Return counts of judged pairs: people, pairs of a person, ties, repeats, contradictions, long texts, disagreement.

    pairs: columns user, prompt, chosen, rejected and label, as `judged.pairs_of_judgements` returns them.
    disagreement: among pairs that several people judged, the probability that two of them disagree; None where no pair
    is shared.
    """
    counts = pairs.group_by("user").len()["len"]
    first = pl.min_horizontal("chosen", "rejected")
    second = pl.max_horizontal("chosen", "rejected")
    judged = pairs.select(
        "user",
        pair=pl.struct("prompt", first.alias("first"), second.alias("second")).hash(),
        share=pl.when(pl.col("chosen") == first).then("label").otherwise(1 - pl.col("label")),
    )
    own = judged.group_by("user", "pair").agg(pl.len(), pl.col("share").mean(), spread=pl.col("share").n_unique())
    shared = own.group_by("pair").agg(pl.len(), pl.col("share").sum()).filter(pl.col("len") > 1)
    n, yes = shared["len"].to_numpy().astype(float), shared["share"].to_numpy()
    texts = pl.concat([pairs.select("prompt", text="chosen"), pairs.select("prompt", text="rejected")]).unique()
    disagree = float((yes * (n - yes)).sum() / (n * (n - 1) / 2).sum()) if len(shared) else None
    return {
        "people": len(counts),
        "pairs": len(pairs),
        "pairs_of_a_person": _quantiles(counts.to_numpy()),
        "prompts": pairs["prompt"].n_unique(),
        "responses": len(texts),
        "ties": int((pairs["label"] == 0.5).sum()),
        "repeated": int((own["len"] - 1).sum()),
        "contradictions": int((own["spread"] > 1).sum()),
        "long_responses": _share(texts["text"].str.len_chars() > LONG_CHARACTERS),
        "shared_pairs": _share(judged["pair"].is_in(shared["pair"].implode())) if len(shared) else 0.0,
        "disagreement": disagree,
    }


def _share(true: pl.Series) -> float:
    return int(true.sum()) / max(1, len(true))


def _quantiles(counts: np.ndarray) -> dict[str, int]:
    return {name: int(np.quantile(counts, q, method="nearest")) for name, q in QUANTILES.items()} if len(counts) else {}


def describe_answers(answers: pl.DataFrame, value: str, what: str) -> dict[str, Any]:
    """Return counts of ratings or votes: people, items, answers of a person, distribution, and what is of people.

    answers: columns user, `what` (an item) and `value` (a number).
    shared: the share of the variance of answers, relative to each person's mean, that the items' means explain, without
    what chance explains (one-way random effects); the rest is what people differ in, and noise.
    """
    counts = answers.group_by("user").len()["len"].to_numpy()
    again = answers.select(other for other in ("user", "prompt", what) if other in answers.columns)
    by_item = answers.with_columns(rest=pl.col(value) - pl.col(value).mean().over("user"))
    groups = by_item.group_by(what).agg(pl.len(), mean=pl.col("rest").mean(), square=pl.col("rest").var())
    groups = groups.filter(pl.col("len") > 1)
    share = None
    if len(groups) > 1 and (total := float(by_item["rest"].to_numpy().var(ddof=1))):
        n, mean = groups["len"].to_numpy().astype(float), groups["mean"].to_numpy()
        within = float(np.average(groups["square"].to_numpy(), weights=n - 1))
        between = float(np.average(mean**2, weights=n) - np.average(within / n, weights=n))
        share = max(0.0, between) / total
    values = answers[value].value_counts(sort=True).head(12).sort(value)
    return {
        "people": len(counts),
        "answers": len(answers),
        "answers_of_a_person": _quantiles(counts),
        "items": answers[what].n_unique(),
        "repeated": len(again) - again.n_unique(),
        "answers_of_an_item": float(len(answers) / max(1, answers[what].n_unique())),
        "values": {str(v): int(c) for v, c in values.iter_rows()},
        "shared": share,
    }
