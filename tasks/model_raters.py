"""Reward models as raters: each score column of your table is one rater, and one is left out (RFM, section 5.2)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from harness.data import TEXT_SCHEMA, Items, Pairs, Panel, PreferenceDataset, Splits, Truth
from harness.errors import UserError, error_prefix
from harness.inference.features import encode_items, encoder_field
from harness.sources.public_files import files_content_digest
from harness.store.store import Store
from harness.table_files import read_table
from harness.task import TextTask, split_pairs_of_each_user

MIN_RATERS = 4  # two to train on, one for validation, one for the test
MIN_RESPONSES_TO_CHOOSE = 4  # responses that a prompt needs to be used for a choice of the best
PROMPT_PARTS = ("training", "shown", "asked")  # half, a quarter and a quarter of the prompts


@dataclass(frozen=True)
class ModelRaters(TextTask):
    """A task from a csv, jsonl or parquet table with a row per response and a column of numbers per reward model.

    `raters` names the score columns. If `raters` is empty, the score columns are all columns of numbers except
    `prompt`, `response` and those whose names begin with `feature_`. Columns `feature_*` are the items' features;
    without them `encoder` computes features from the column `response`. If there is a column `prompt`, both items of a
    pair have the same prompt. Rows with the same prompt and response are merged, and their scores averaged. Each rater
    judges a different random set of pairs, without ties, and always prefers the higher score.

    Prompts (responses, if there is no column `prompt`) are split at random. Half are for the training pairs, a quarter
    for the context of new raters and the queries of training raters (panel `seen`), and a quarter for the queries of
    new raters. So no response of a query is in a context or in training. Seed s tests rater s mod n and validates on
    the next, so n successive seeds leave out each rater once. A seed has one test rater, so a single seed has no
    confidence interval over users. Without `file`, a small simulated table is used, in which the scores have a part
    that all reward models share and a part of each model. Results on that table only demonstrate the task.

    With `n_candidates`, the best response is chosen for each query prompt with four or more responses. All these
    prompts have the same number of candidates: as many as the one with the fewest has, and at most `n_candidates`. The
    left-out rater's scores measure how good the choice is. The scores are then the task's ground truth, so reference
    methods that need a ground truth can also run.
    """

    version = 2  # prompts and responses of a csv are read as text
    family = "written by models"
    paper = "Barreto et al. 2025, Reward-Feature Models"

    file: str = field(default="", metadata={"identity": False})  # `files_digest` identifies its content
    raters: tuple[str, ...] = ()
    encoder: str = encoder_field()
    pairs_per_user: int = 500  # largest number of pairs for each rater in each part of the prompts
    n_candidates: int = 0  # largest number for each query prompt; 0: no candidates to choose from

    shots: tuple[int, ...] = (0, 5, 20, 100)
    queries: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs_per_user < max(1, *self.shots):
            raise UserError(
                f"{self.name}: pairs_per_user = {self.pairs_per_user} is below the {max(self.shots)} shots or below 1",
                "raise pairs_per_user, or lower shots",
            )
        if self.n_candidates < 0 or 0 < self.n_candidates < MIN_RESPONSES_TO_CHOOSE:
            raise UserError(
                f"{self.name}: n_candidates = {self.n_candidates} must be 0, or {MIN_RESPONSES_TO_CHOOSE} or more",
                "for example n_candidates = 16",
            )
        if twice := {name for name in self.raters if self.raters.count(name) > 1}:
            raise UserError(f"{self.name}: raters names {min(twice)!r} twice", "name each column once")

    def files_digest(self) -> str:
        return files_content_digest(self.file) if self.file else ""

    def read_ratings(self, store: Store | None = None) -> pl.DataFrame:
        """Return a row per distinct response with its raters' scores. Raises UserError for an unusable table."""
        table = read_ratings_file(Path(self.file)) if self.file else simulated_ratings()
        names, features = self.rater_columns(table)
        if missing := [name for name in names if name not in table.columns]:
            raise UserError(f"{self.file}: there is no column {missing[0]!r}", f"columns: {', '.join(table.columns)}")
        if not features and "response" not in table.columns:
            raise UserError(
                f"{self.file}: the table has neither columns feature_* nor a column response",
                "add columns feature_* of numbers, or a column response of texts to encode",
            )
        if len(names) < MIN_RATERS:
            raise UserError(
                f"{self.file}: {len(names)} raters ({', '.join(names) or 'none'}) are too few",
                f"at least {MIN_RATERS} are needed: two to train on, one for validation and one to test",
            )
        check_numbers(self.file, table, [*names, *features])
        texts = [name for name in ("prompt", "response") if name in table.columns]
        for name in texts:
            if table[name].null_count():
                raise UserError(
                    f"{self.file}: row {table[name].is_null().arg_true()[0]} (counting from 0) of column {name} is empty",
                    "fill it in or drop the row",
                )
        same = texts if "response" in texts else texts + features
        others = [name for name in dict.fromkeys([*names, *features]) if name not in same]
        return table.group_by(same, maintain_order=True).agg(pl.col(others).cast(pl.Float64).mean())

    def rater_columns(self, table: pl.DataFrame) -> tuple[list[str], list[str]]:
        """Return the names of the raters' columns and of the feature columns."""
        features = [name for name in table.columns if name.startswith("feature_")]
        known = {"prompt", "response", *features}
        found = [name for name in table.columns if name not in known and holds_mostly_numbers(table[name])]
        return list(self.raters) or found, features

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        table = self.read_ratings(store)
        names, features = self.rater_columns(table)
        rng = np.random.default_rng(len(table))  # not `seed`: all seeds have the same pairs, as in other data sets
        table = table[rng.permutation(len(table))]  # the table's order may follow its scores
        scores = table.select(names).cast(pl.Float64).to_numpy()
        unit = np.arange(len(table))  # the prompt or response by which rows are split
        prompt = np.zeros_like(unit)
        if "prompt" in table.columns:
            unit = prompt = table["prompt"].rank("dense").to_numpy() - 1
        part = np.searchsorted([0.5, 0.75], rng.permutation(unit.max() + 1) / (unit.max() + 1), side="right")[unit]
        text = None
        if "response" in table.columns:
            asked = pl.col("prompt").cast(pl.String) if "prompt" in table.columns else pl.lit("")
            text = table.select(prompt=asked, response=pl.col("response").cast(pl.String)).to_arrow().cast(TEXT_SCHEMA)
        if features:
            values = table.select(features).cast(pl.Float64).to_numpy()
        else:
            values = encode_items(text, self.encoder, store)
        drawn, counts = [], {}
        for number, name in enumerate(PROMPT_PARTS):
            rows = np.flatnonzero(part == number)
            user, left, right = draw_rated_pairs(rng, prompt[rows], scores[rows], self.pairs_per_user)
            drawn.append((user, rows[left], rows[right]))
            counts[name] = np.bincount(user, minlength=len(names))
            if not counts[name].all():
                raise UserError(
                    f"{self.file or self.name}: no two of the {(part == number).sum()} responses in the part {name!r} have the same "
                    f"prompt and different scores of {names[int(counts[name].argmin())]}",
                    "check that the column is not constant, or add prompts with two or more responses",
                )
        # each rater's pairs stay in the order of the parts
        user, left, right = map(np.concatenate, zip(*drawn, strict=True))
        label = scores[left, user] > scores[right, user]
        truth, choices = None, None
        if self.n_candidates:
            raters = np.eye(len(names), dtype=np.float32)  # a rater's utility is the rater's score column
            truth = Truth(raters, scores.astype(np.float32), temperature=0, population=raters)
            choices = self.candidate_sets(prompt, np.flatnonzero(part == PROMPT_PARTS.index("asked")))
        items = Items(np.ascontiguousarray(values), text, columns_share_unit=not features)
        data = PreferenceDataset.from_pairs(user, left, right, label, items, truth=truth)
        return replace(data, choices=choices, users=pl.DataFrame({"id": names} | counts).to_arrow())

    def candidate_sets(self, prompt: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return int32[prompts, n]: the first n rows of each prompt that has enough; rows are in random order."""
        _, of, size = np.unique(prompt[rows], return_inverse=True, return_counts=True)
        enough = np.flatnonzero(size >= MIN_RESPONSES_TO_CHOOSE)
        if not enough.size:
            raise UserError(
                f"{self.file or self.name}: no query prompt has {MIN_RESPONSES_TO_CHOOSE} responses to choose from",
                "set n_candidates = 0",
            )
        order = np.argsort(of, kind="stable")
        n = min(size[enough].min(), self.n_candidates)
        return rows[order[(np.cumsum(size) - size)[enough, None] + np.arange(n)]].astype(np.int32)

    def held_out_raters(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of n raters are test raters, and which are validation raters."""
        return np.array([seed % n]), np.array([(seed + 1) % n])

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        pairs, n = data.pairs, data.pairs.n_users
        rng = np.random.default_rng([seed, n, len(pairs)])
        test, validation = self.held_out_raters(seed, n)
        train = np.setdiff1d(np.arange(n), np.concatenate([test, validation]))
        ends = np.cumsum([data.users[name] for name in PROMPT_PARTS], axis=0)[:, pairs.user]
        known, shown, asked = (pairs.take((ends <= pairs.rank).sum(0) == number) for number in range(len(PROMPT_PARTS)))

        def some(pairs: Pairs, raters: np.ndarray, n: int) -> Pairs:
            """Draw n pairs of each of these raters, in random order."""
            return split_pairs_of_each_user(pairs.of(raters), rng, lambda counts: np.minimum(n, counts))[0]

        n_context = max(self.shots)
        panels = {"seen": Panel(some(known, train, n_context), some(shown, train, self.queries))}
        for name, raters in (("validation", validation), ("test", test)):
            panels[name] = Panel(some(shown, raters, n_context), some(asked, raters, self.queries))
        panels["test"] = replace(panels["test"], choices=data.choices)
        return Splits(known.of(train), panels)


def read_ratings_file(file: Path) -> pl.DataFrame:
    """Read the table of a csv, jsonl or parquet file. Raises UserError if its table is missing or unusable."""
    with error_prefix(str(file)):
        table = read_table(file)
    if not len(table):
        raise UserError(f"{file} has no rows", "the table needs a row per response")
    return table


def holds_mostly_numbers(column: pl.Series) -> bool:
    """Return whether a column is meant for scores: its type is numeric, or over half of its texts are numbers.

    A single "n/a" in a csv file makes its column text, but must not drop the rater.
    """
    if column.dtype == pl.String:
        return column.cast(pl.Float64, strict=False).count() > len(column) / 2
    return column.dtype.is_numeric()


def check_numbers(file: str, table: pl.DataFrame, names: list[str]) -> None:
    """Raise UserError for the first value of these columns that is not a finite number, naming its row."""
    for name in names:
        values = table[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            raise UserError(
                f"{file}: row {row} (counting from 0) of column {name} holds {table[name][row]!r}, which is not a finite number; "
                f"{bad.sum()} such rows in all",
                "drop these rows, or the column",
            )


def draw_rated_pairs(
    rng: np.random.Generator, prompt: np.ndarray, scores: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw at most n distinct pairs of each rater, within a prompt and without ties.

    Returns rater, left and right, int64[m] each.
    """
    order = np.argsort(prompt, kind="stable")
    start, size = (np.searchsorted(prompt[order], prompt, side) for side in ("left", "right"))
    size -= start
    paired = np.flatnonzero(size > 1)
    if not paired.size:
        return order[:0], order[:0], order[:0]
    # four times as many pairs as wanted, because ties and repeats are dropped
    rater = np.repeat(np.arange(scores.shape[1]), 4 * n)
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


def simulated_ratings() -> pl.DataFrame:
    """Simulate ten reward models, linear in 16 features, on six responses to each of 200 prompts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 16)).astype(np.float32)
    shared, own = rng.normal(size=16), rng.normal(size=(10, 16))
    scores = x @ (shared + own).T + rng.normal(size=(1200, 10))
    columns = {f"feature_{i}": x[:, i] for i in range(16)} | {f"model_{i}": scores[:, i] for i in range(10)}
    return pl.DataFrame({"prompt": [f"prompt {i // 6}" for i in range(1200)]} | columns)
