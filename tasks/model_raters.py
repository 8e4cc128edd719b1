"""Reward models as raters: each score column of a table prefers the higher score, and one is left out (RFM, section 5.2)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from harness.data import TEXT, Items, Panel, PreferenceDataset, Splits
from harness.mistake import Mistake
from harness.task import Task, halves

FEWEST = 4  # raters: two to train on, one for validation, one for the test


@dataclass(frozen=True)
class ModelRaters(Task):
    """A csv or parquet table with a row per response and a column of numbers per reward model.

    `raters` names the score columns (empty: all columns of numbers but those that begin with `feature_`). Columns
    `feature_*` are the items' features; without any, `encoder` makes them of the column `response`. A column `prompt`
    keeps pairs within a prompt. Each rater judges pairs of his own drawing, ties dropped, and always prefers the higher
    score. Seed s tests rater s mod n and validates on the next, so n successive seeds leave each rater out once; with
    one test rater a seed has no interval over users. Without `file`, a small table of simulated reward models, made of
    a part they share and a part of their own, stands in: it shows that the task runs, and is no finding.
    """

    file: str = ""
    raters: tuple[str, ...] = ()
    encoder: str = "tfidf-svd-128"
    pairs_per_user: int = (
        500  # drawn of each rater, at most: training raters' pairs, and what the others show and are asked
    )

    shots: tuple[int, ...] = (0, 5, 20, 100)
    queries: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs_per_user <= max(self.shots):
            raise Mistake(
                f"model_raters: pairs_per_user {self.pairs_per_user} leaves nothing to ask after {max(self.shots)} shots",
                "raise it, or lower shots",
            )

    def files_digest(self) -> str:
        return hashlib.sha256(self.path().read_bytes()).hexdigest() if self.file else ""

    def path(self) -> Path:
        path = Path(self.file).expanduser()
        if not path.is_file() or path.suffix not in (".csv", ".parquet"):
            what = f"ends in {path.suffix or 'nothing'}" if path.is_file() else "does not exist"
            raise Mistake(f"model_raters: {path} {what}", "file names a .csv or .parquet file")
        return path

    def table(self) -> pl.DataFrame:
        if not self.file:
            return simulated()
        path = self.path()
        return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)

    def build(self, seed: int) -> PreferenceDataset:
        table = self.table()
        names = self.raters or tuple(
            name for name, kind in table.schema.items() if kind.is_numeric() and not name.startswith("feature_")
        )
        features = [name for name in table.columns if name.startswith("feature_")]
        if missing := [name for name in names if name not in table.columns]:
            raise Mistake(f"model_raters: there is no column {missing[0]!r}", f"columns: {', '.join(table.columns)}")
        if not features and "response" not in table.columns:
            raise Mistake(
                "model_raters: the table has neither columns feature_* nor a column response",
                "items need features: numbers, or a text to encode",
            )
        if len(names) < FEWEST:
            raise Mistake(
                f"model_raters: {len(names)} raters ({', '.join(names) or 'none'}) are too few",
                f"bring {FEWEST}: two to train on, one for validation and one to test",
            )
        numbers(table, [*names, *features])
        rng = np.random.default_rng(len(table))  # a data set: the same pairs for every seed
        table = table[rng.permutation(len(table))]  # the table's order may follow its scores
        scores = table.select(names).cast(pl.Float64).to_numpy()
        prompt = table["prompt"].rank("dense").to_numpy() if "prompt" in table.columns else np.ones(len(table))
        text = None
        if "response" in table.columns:
            asked = pl.col("prompt").cast(pl.String) if "prompt" in table.columns else pl.lit("")
            text = table.select(prompt=asked, response=pl.col("response").cast(pl.String)).to_arrow().cast(TEXT)
        if features:
            values = table.select(features).cast(pl.Float32).to_numpy()
        else:
            from harness.text import encode  # scikit-learn's: heavy

            values = encode(text, self.encoder)
        user, left, right = draw_pairs(rng, prompt, scores, self.pairs_per_user)
        if len(np.unique(user)) < len(names):
            short = names[np.setdiff1d(np.arange(len(names)), user)[0]]
            raise Mistake(f"model_raters: no pair is left on which {short} gives two scores", "is the column constant?")
        label = scores[left, user] > scores[right, user]
        return PreferenceDataset.from_pairs(
            np.array([f"{u:06d} {n}" for u, n in enumerate(names)])[user],
            left,
            right,
            label,
            Items(np.ascontiguousarray(values), text),
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        pairs, n = data.pairs, data.pairs.n_users
        rng = np.random.default_rng([seed, n, len(pairs)])
        test, validation = seed % n, (seed + 1) % n
        train = np.setdiff1d(np.arange(n), [test, validation])
        n_context = max(self.shots)
        known, held_out = halves(pairs.of(train), rng, lambda counts: counts - np.minimum(self.queries, counts // 5))
        panels = {"seen": Panel(known.first(n_context), held_out)}
        for name, rater in (("validation", validation), ("test", test)):
            context, query = halves(pairs.of([rater]), rng, lambda counts: np.minimum(n_context, counts - 1))
            panels[name] = Panel(context, query.first(self.queries))
        return Splits(known, panels)


def numbers(table: pl.DataFrame, names: list[str]) -> None:
    """Raises Mistake at the first value of these columns that is not a finite number, naming its row."""
    for name in names:
        if not table[name].dtype.is_numeric():
            raise Mistake(
                f"model_raters: column {name} holds {table[name].dtype}, no numbers", "leave it out of raters"
            )
        values = table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        if (bad := ~np.isfinite(values)).any():
            raise Mistake(
                f"model_raters: row {int(np.flatnonzero(bad)[0])} of column {name} is empty or not finite; {int(bad.sum())} such in all",
                "drop these rows, or the rater",
            )


def draw_pairs(
    rng: np.random.Generator, prompt: np.ndarray, scores: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rater, left and right: int64[m], at most n distinct pairs of each rater, within a prompt and without ties."""
    order = np.argsort(prompt, kind="stable")
    start, size = (np.searchsorted(prompt[order], prompt, side) for side in ("left", "right"))
    size -= start
    paired = np.flatnonzero(size > 1)
    if not paired.size:
        raise Mistake("model_raters: no prompt has two responses", "pairs are drawn within a prompt")
    rater = np.repeat(np.arange(scores.shape[1]), 4 * n)  # four times as many as wanted, for ties and repeats
    left = paired[rng.integers(len(paired), size=len(rater))]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    step = 1 + (rng.random(len(rater)) * (size[left] - 1)).astype(np.int64)
    right = order[start[left] + (place[left] - start[left] + step) % size[left]]  # another row of the same prompt
    pair = np.minimum(left, right) * len(scores) + np.maximum(left, right)
    _, first = np.unique(rater * np.int64(len(scores)) ** 2 + pair, return_index=True)
    rows = np.sort(first)
    rows = rows[scores[left[rows], rater[rows]] != scores[right[rows], rater[rows]]]
    before = np.searchsorted(rater[rows], rater[rows])
    rows = rows[np.arange(len(rows)) - before < n]
    return rater[rows], left[rows], right[rows]


def simulated() -> pl.DataFrame:
    """Ten reward models, linear in 16 features, on six responses to each of 200 prompts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 16)).astype(np.float32)
    shared, own = rng.normal(size=16), rng.normal(size=(10, 16))
    scores = x @ (shared + own).T + rng.normal(size=(1200, 10))
    columns = {f"feature_{i}": x[:, i] for i in range(16)} | {f"model_{i}": scores[:, i] for i in range(10)}
    return pl.DataFrame({"prompt": [f"prompt {i // 6}" for i in range(1200)]} | columns)
