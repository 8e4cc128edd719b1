"""Any table of ratings on a scale, described in a suite: people, what they rated, and a number for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from harness.data import TEXT_SCHEMA, Items, PreferenceDataset, Splits
from harness.errors import UserError, error_prefix
from harness.inference.features import encoder_field
from harness.judgements import from_ratings
from harness.rows import with_numbers
from harness.sources.crowd import crowd_dim, crowd_vectors
from harness.sources.judged import at_path, check_users, leave_out, refuse_rows
from harness.sources.messages import as_messages, text_of_messages
from harness.store.store import Store
from harness.table_task import TableTask
from harness.task import split_by_parts


@dataclass(frozen=True)
class Ratings(TableTask):
    """A task from a table with a row per rating: a person, a response or another item, and a number on a scale.

    Ratings are compared within a prompt, or across all items of a person where there is no prompt: about one pair for
    each rating (`judgements.from_ratings`). No query is about an item whose rating was shown, and a query's ratings are
    compared among themselves. Beside accuracy, the board shows the rank correlation with a person's ratings, and the
    error in units of the scale.

    Items get vectors learned from the ratings that training people gave (`raters-DIM`), unless `features` names numbers,
    or `encoder` an encoder of the texts. Ratings of one item by one person are averaged, and counted on the board.
    """

    family = "human choices"
    takes_crowd_vectors = True
    controls = ("rater_mean",)

    response: str = "response"  # column with the text that is rated
    item: str = ""  # column with the id of what is rated, in place of a text
    rating: str = "rating"
    features: tuple[str, ...] = ()  # columns with numbers that describe what is rated
    ties: Literal["drop", "keep"] = "drop"  # keep: pairs of equal ratings, as label .5
    min_ratings: int = 6  # people with fewer are left out
    encoder: str = encoder_field("raters-16")  # or an encoder of texts

    def judgements(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """Return the columns row, user, prompt, response or item, rating and features. Raises UserError for a bad row."""
        what = {"item": self.item} if self.item else {"response": self.response}
        columns = {"user": self.user, **what, "rating": self.rating} | {name: name for name in self.features}
        if self.prompt in table.columns or self.prompt != Ratings.prompt:
            columns["prompt"] = self.prompt
        frame = pl.DataFrame([table["row"], *(at_path(table, path).alias(name) for name, path in columns.items())])
        for name in ("prompt", "response"):
            if name in frame.columns:
                frame = frame.with_columns(text_of_messages(as_messages(frame[name])))
        check_users(frame)
        for name, path in columns.items():
            refuse_rows(frame, frame[name].is_null(), f"nothing in column {path}", leave_out(path))
        frame = with_numbers(frame, "rating", *self.features, known_as=columns)
        for name in ("rating", *self.features):
            if not frame[name].dtype.is_numeric():
                raise UserError(f"column {columns[name]} holds {frame[name].dtype}, not numbers", "name another column")
            bad = ~frame[name].cast(pl.Float64).is_finite()
            refuse_rows(
                frame, bad, f"no finite number in column {columns[name]}", leave_out(columns[name]), frame[name]
            )
        return frame, []

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        table = self.read()
        with error_prefix(self.source):
            frame, _ = self.judgements(table)
            keys = [name for name in ("prompt", "response", "item") if name in frame.columns]
            items = frame.group_by(keys).agg(pl.col(self.features).cast(pl.Float64).mean()).sort(keys)
            items = items.with_row_index("place")
            rows = len(frame)
            frame = frame.group_by("user", *keys, maintain_order=True).agg(pl.col("rating").cast(pl.Float64).mean())
            notes = (
                (f"averaged: {rows - len(frame):,} repeated ratings of an item by a person",)
                if len(frame) < rows
                else ()
            )
            frame = frame.join(items.select("place", *keys), on=keys, how="left", maintain_order="left")
            group = frame["prompt"].rank("dense") if "prompt" in keys else pl.repeat(0, len(frame), eager=True)
            rated = frame.select("user", "rating", item="place").with_columns(group.cast(pl.Int64).alias("group"))
            text = None
            if not self.item:
                prompt = items["prompt"] if "prompt" in keys else pl.Series("prompt", [""] * len(items))
                text = pl.DataFrame({"prompt": prompt, "response": items["response"]})
            known = None if text is None else text.to_arrow().cast(TEXT_SCHEMA)
            names = items["item"].cast(pl.String).to_arrow().cast(pa.string()) if self.item else None
            dim = crowd_dim(self.encoder)
            if self.features:
                values, unit = items.select(self.features).to_numpy(), False
            elif dim is None:
                if text is None:
                    raise UserError(
                        f"{self.encoder} encodes texts, and the items have none", 'set encoder = "raters-16"'
                    )
                values, unit = self.encoded(text, store), True
            else:
                values, unit = np.arange(len(items), dtype=np.float32)[:, None], True  # replaced below
            data = from_ratings(
                rated, Items(values, known, unit, names), self.queries, seed, self.ties == "keep", self.min_ratings
            )
            if dim is not None and not self.features:
                data = with_crowd_vectors(data, self.split(data, seed), dim)
            return replace(data, notes=(*notes, *data.notes))

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return split_by_parts(data, seed, max(self.shots), self.queries)


def with_crowd_vectors(data: PreferenceDataset, splits: Splits, dim: int) -> PreferenceDataset:
    """Return the data with features of items that are learned from the ratings of the training pairs."""
    vectors = crowd_vectors(*splits.train.rated_items(), len(data.pairs.items), dim)
    return replace(data, pairs=replace(data.pairs, items=replace(data.pairs.items, features=vectors)))
