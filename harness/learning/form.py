"""The form of a text, as numbers: length, marks, layout and traces of how the text was stored; no word is read."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

MAX_PREDICTED_PAIRS = 20_000  # of a table: enough to know an accuracy to .01, and seconds of time

# What is counted in a text, by name; a count n becomes log(1 + n).
COUNTED = {
    "characters": r"(?s).",
    "words": r"\S+",
    "lines": r"\n",
    "paragraphs": r"\n\s*\n",
    "headings": r"(?m)^\s*#+\s",
    "bullets": r"(?m)^\s*[-*\u2022]\s",
    "numbered": r"(?m)^\s*\d+[.)]\s",
    "bold": r"\*\*",
    "code": r"`",
    "tables": r"\|",
    "links": r"https?://",
    "round brackets": r"[()]",
    "square brackets": r"[\[\]]",
    "curly brackets": r"[{}]",
    "single quotes": r"['\u2018\u2019]",
    "double quotes": r"[\"\u201c\u201d]",
    "full stops": r"\.",
    "commas": r",",
    "colons": r":",
    "questions": r"\?",
    "exclamations": r"!",
    "digits": r"\d",
    "capitals": r"\p{Lu}",
    "beyond ASCII": r"[^\x00-\x7f]",
    "emoji": r"\p{Extended_Pictographic}",
    "escapes": r"\\[nrt\"'u]",  # a line break written as \n: the text was printed as code
    "entities": r"&(?:[a-z]+|#\d+);",
    "wrong encoding": r"[\u00c3\u00e2][\u0080-\u00bf\u20ac\u201a-\u201e]|\ufffd",
    "carriage returns": r"\r",
    "double spaces": r"  ",
}
# What is true or false of a text.
SEEN = {
    "starts in brackets": r"^\s*[\[({]",
    "starts with a quote": r"^\s*[\"'\u201c\u2018]",
    "starts in lower case": r"^\s*\p{Ll}",
    "starts with a space": r"^\s",
    "ends with a space": r"\s$",
    "ends in brackets": r"[\])}]\s*$",
    "ends with a quote": r"[\"'\u201d\u2019]\s*$",
    "is cut": r"[\p{L}\p{N},]\s*$",  # no mark ends the last sentence
    "is empty": r"^\s*$",
}
FORM_NAMES = (*COUNTED, *SEEN)


def form_features(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return float32[n, len(FORM_NAMES)]: the form of each text."""
    text = pl.Series("text", texts).cast(pl.String).to_frame().lazy()
    column = pl.col("text")
    counts = [column.str.count_matches(pattern).log1p().alias(name) for name, pattern in COUNTED.items()]
    seen = [column.str.contains(pattern).cast(pl.Float64).alias(name) for name, pattern in SEEN.items()]
    return text.select(*counts, *seen).collect().to_numpy().astype(np.float32)


def form_accuracy(chosen: pl.Series, rejected: pl.Series, user: pl.Series) -> float | None:
    """Return how often form alone tells the chosen response of people whom a logistic regression was not fitted to.

    The people are divided into five parts. Of large tables MAX_PREDICTED_PAIRS pairs are drawn. None with fewer than five
    people.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if user.n_unique() < 5:
        return None
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(user))[:MAX_PREDICTED_PAIRS])
    gap = form_features(chosen[rows].to_arrow()) - form_features(rejected[rows].to_arrow())
    side = np.where(rng.random(len(rows)) < 0.5, 1, -1)
    people = user[rows].to_physical().rank("dense").to_numpy()
    right = np.zeros(len(rows), dtype=bool)
    for fitted, asked in GroupKFold(5).split(gap, groups=people):
        model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False, max_iter=200))
        model.fit(gap[fitted] * side[fitted, None], side[fitted])
        right[asked] = model.decision_function(gap[asked]) > 0
    return float(right.mean())
