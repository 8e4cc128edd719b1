"""Any data set of choices, described in a suite: a file or a data set of the hub, its columns, and a few rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from harness.data import ASKED_IN_TEST, ASKED_IN_VALIDATION, SHOWN, PreferenceDataset, Splits
from harness.errors import UserError, error_prefix
from harness.sources.judged import at_path, merged_columns, pairs_of_judgements, refuse_rows
from harness.store.store import Store
from harness.table_task import TableTask
from harness.task import split_by_parts

PARTS = {  # what a data set's own split may say
    **dict.fromkeys(("train", "training", "context"), SHOWN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), ASKED_IN_VALIDATION),
    **dict.fromkeys(("test", "query"), ASKED_IN_TEST),
}
HELD_OUT_PROMPTS = 0.2  # share of the prompts that only queries have, where prompts are held out


@dataclass(frozen=True)
class Choices(TableTask):
    """A task from a table of people's choices between responses.

    A row is one judgement: `chosen` and `rejected`; or `responses` with `winner`, `ranking` or `ratings`. Prompts and
    responses are texts or lists of chat messages. Where there is no prompt, what both sides of a conversation share is
    the prompt. All pairs of one row stay together: in what a method is shown, or in what it is asked.

    People with fewer than `min_pairs` pairs are left out, and the board counts them. People with too few pairs for the
    largest number of shots and a question are trained on and never asked.

    Presets (`tasks/presets/`) are data sets of the hub with these fields filled in.
    """

    family = "human text"

    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: tuple[
        str, ...
    ] = ()  # columns with one response each, or one column of lists, in place of chosen, rejected
    winner: str = ""  # column with the best response's letter, column, place or "tie"
    ranking: str = ""  # column with rankings: "B>A=C", or lists of ranks of which 1 is the best
    ratings: tuple[str, ...] = ()  # columns with a number per response, or one column of lists
    label: str = "label"  # column with P(chosen preferred), if there is one
    seconds: str = "seconds"  # column with response times, if there is one
    own_split: str = ""  # column with the data set's own split: train, validation or test
    group: str = ""  # column with a group of people, such as a country
    profile: str = ""  # column with what a person wrote about themselves
    features: tuple[str, ...] = ()  # names of numbers of the options, as columns chosen_NAME and rejected_NAME

    ties: Literal["drop", "keep"] = "drop"  # keep: as label .5
    min_pairs: int = 2
    max_pairs: int = 0  # keep at most that many pairs of a person, drawn at random; 0 for all
    held_out: Literal["people", "people and prompts"] = "people"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_pairs < 2 or self.max_pairs < 0 or 0 < self.max_pairs < self.min_pairs:
            raise UserError(
                f"{self.name}: min_pairs = {self.min_pairs}, max_pairs = {self.max_pairs}",
                "min_pairs is 2 or more, since one pair is shown and one asked; max_pairs is 0 or at least min_pairs",
            )

    def judgements(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """Return a row per pair and notes on what was left out, from the table that `read` returns."""
        columns = {"user": self.user, "winner": self.winner, "ranking": self.ranking}
        if not self.responses and (not self.features or self.chosen in table.columns):
            columns |= {"chosen": self.chosen, "rejected": self.rejected}
        columns |= {"part": self.own_split, "profile": self.profile, "group": self.group}
        columns |= {name: name for side in ("chosen", "rejected") for name in [f"{side}_{x}" for x in self.features]}
        optional = {"prompt": self.prompt, "label": self.label, "seconds": self.seconds}
        columns |= {n: c for n, c in optional.items() if c in table.columns or c != getattr(Choices, n)}
        wanted = {"row": table["row"].cast(pl.Int64)}
        wanted |= {name: at_path(table, column) for name, column in columns.items() if column}
        several = {"responses": self.responses, "ratings": self.ratings}
        wanted |= {name: merged_columns(table, name, paths) for name, paths in several.items() if paths}
        names = [path.rpartition(".")[2] for path in self.responses] if len(self.responses) > 1 else []
        pairs, notes = pairs_of_judgements(pl.DataFrame([c.alias(n) for n, c in wanted.items()]), names)
        if self.ties == "drop" and (tied := pairs["label"] == 0.5).any():
            notes.append(f"left out: {tied.sum():,} ties")
            pairs = pairs.filter(~tied)
        return pairs, notes

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        table = self.read()
        with error_prefix(self.source):
            pairs, notes = self.judgements(table)
            pairs, few = keep_people(pairs, self.min_pairs, self.max_pairs)
            if pairs.is_empty():
                raise UserError(
                    f"no person has {self.min_pairs} pairs: " + "; ".join([*notes, *few, f"{len(table):,} rows"]),
                    ("lower min_pairs" if self.min_pairs > 2 else "bring people with two or more pairs")
                    + "; `manyminds describe` shows what the table holds",
                )
            pairs = pairs.sort("user", maintain_order=True)  # the order of the data's own rows
            data = PreferenceDataset.from_choices(
                pairs,
                self.features or (lambda items: self.encoded(items, store)),
                columns_share_unit=not self.features,
                row=pairs["row"].to_numpy(),
            )
            return with_facts_of_people(data, pairs, (*notes, *few))

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        if self.held_out == "people and prompts":
            prompt = data.pairs.items.known_text["prompt"].combine_chunks().dictionary_encode().indices.to_numpy()
            n = int(prompt.max()) + 1
            held = np.zeros(n, dtype=bool)
            held[np.random.default_rng([seed, n]).permutation(n)[: max(1, round(HELD_OUT_PROMPTS * n))]] = True
            data = replace(data, parts=np.where(held[prompt[data.pairs.left]], ASKED_IN_TEST, SHOWN))
        if data.parts is not None:
            return split_by_parts(data, seed, max(self.shots), self.queries)
        return super().split(data, seed)


def keep_people(pairs: pl.DataFrame, min_pairs: int, max_pairs: int) -> tuple[pl.DataFrame, list[str]]:
    """Return the pairs of people with enough of them, at most `max_pairs` each, and notes that count what is left out.

    Which pairs are kept depends on the table alone. The pairs of one row are kept or left out together.
    """
    notes = []
    few = pairs.select(pl.len().over("user") < min_pairs).to_series()
    if few.any():
        gone = pairs.filter(few)
        of = f"{gone['user'].n_unique():,} of {pairs['user'].n_unique():,} people"
        notes.append(f"left out: {of} with fewer than {min_pairs} pairs ({len(gone):,} pairs)")
        pairs = pairs.filter(~few)
    if max_pairs:
        rows = pairs.group_by("user", "row", maintain_order=True).len()
        rows = rows.with_columns(draw=pl.Series(np.random.default_rng(len(pairs)).random(len(rows)))).sort(
            "user", "draw"
        )
        rows = rows.with_columns(upto=pl.col("len").cum_sum().over("user"))
        kept = pairs.join(
            rows.filter(pl.col("upto") <= max_pairs).select("user", "row"), on=["user", "row"], how="semi"
        )
        if len(kept) < len(pairs):
            notes.append(f"left out: {len(pairs) - len(kept):,} pairs beyond {max_pairs} of a person")
        pairs = kept
    return pairs, notes


def with_facts_of_people(data: PreferenceDataset, pairs: pl.DataFrame, notes: tuple[str, ...]) -> PreferenceDataset:
    """Return the data with its own split, people's profiles and groups, where the table has them, and notes.

    pairs: a row per pair, in the order of the data.
    """
    found = replace(data, notes=notes)
    if "part" in pairs.columns:
        said = pairs["part"].cast(pl.String).str.strip_chars().str.to_lowercase()
        part = said.replace_strict(PARTS, default=None, return_dtype=pl.Int8)
        refuse_rows(pairs, part.is_null(), "an unknown part in own_split", f"write one of {', '.join(PARTS)}", said)
        found = replace(found, parts=part.to_numpy())
    facts = [name for name in ("profile", "group") if name in pairs.columns]
    people = pairs.group_by("user", maintain_order=True).agg(pl.col(facts).cast(pl.String).drop_nulls().first())
    if "group" in facts:
        found = replace(found, users=found.users.append_column("group", people["group"].to_arrow()))
    if "profile" in facts:
        profiles = pa.array(people["profile"].fill_null(""), pa.large_string())
        found = replace(found, pairs=replace(found.pairs, profiles=profiles))
    return found
