"""Any table of votes on statements, described in a suite: people, statements, and agree, disagree or pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from harness.data import PreferenceDataset
from harness.errors import UserError, error_prefix
from harness.inference.features import encoder_field
from harness.judgements import from_votes, vote_features
from harness.sources.crowd import crowd_dim, crowd_vectors
from harness.sources.judged import at_path, check_users, leave_out, refuse_rows
from harness.store.store import Store
from harness.table_task import TableTask

VOTES = {  # how a column may say what a person voted
    **dict.fromkeys(("agree", "yes", "1", "1.0", "true", "for"), 1.0),
    **dict.fromkeys(("disagree", "no", "-1", "-1.0", "false", "against"), 0.0),
    **dict.fromkeys(("pass", "unsure", "0", "0.0", "abstain"), 0.5),
}


@dataclass(frozen=True)
class Votes(TableTask):
    """A task from a table with a row per vote: a person, a statement, and what the person voted.

    A vote is a choice between agreeing with a statement and disagreeing. Features of an option are those of its statement,
    with the opposite sign for disagreeing, and one for the tendency to agree. Statements get vectors learned from the
    votes of training people (`raters-DIM`), or from an encoder of their texts. A vote is agree, disagree or pass; or 1,
    -1 or 0.

    Where there are several conversations, `group` names the column that says which one a statement is from.
    """

    family = "human choices"
    takes_crowd_vectors = True
    controls = ("majority",)

    statement: str = "statement"  # column with the statement's text, or its id
    vote: str = "vote"
    group: str = ""  # column with the conversation that a statement is from
    passes: Literal["drop", "keep"] = "drop"  # keep: as label .5
    min_votes: int = 2  # people with fewer are left out
    encoder: str = encoder_field("raters-16")

    def judgements(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """Return the columns row, user, statement (a text) and agrees (1, 0 or .5), and a note on passes left out.

        Raises UserError for a bad row, and for a second vote of a person on a statement.
        """
        columns = {"user": self.user, "statement": self.statement, "vote": self.vote}
        columns |= {"group": self.group} if self.group else {}
        frame = pl.DataFrame([table["row"], *(at_path(table, path).alias(name) for name, path in columns.items())])
        check_users(frame)
        for name, path in columns.items():
            refuse_rows(frame, frame[name].is_null(), f"nothing in column {path}", leave_out(path))
        said = frame["vote"].cast(pl.String).str.strip_chars().str.to_lowercase()
        agrees = said.replace_strict(VOTES, default=None, return_dtype=pl.Float64)
        refuse_rows(frame, agrees.is_null(), "an unknown vote", f"write one of {', '.join(VOTES)}", frame["vote"])
        statement = frame["statement"].cast(pl.String)
        if self.group:
            statement = frame.select(pl.format("{}: {}", "group", "statement")).to_series()
        frame = frame.select("row", "user").with_columns(statement=statement, agrees=agrees)
        again = frame.select("user", "statement").is_duplicated()
        what = "a second vote of the same person on the same statement"
        refuse_rows(frame, again, what, "keep one of them, for example the last", frame["statement"])
        if self.passes == "keep" or not (passed := frame["agrees"] == 0.5).any():
            return frame, []
        return frame.filter(~passed), [f"left out: {passed.sum():,} passes"]

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        table = self.read()
        with error_prefix(self.source):
            frame, notes = self.judgements(table)
            few = frame.select(pl.len().over("user") < self.min_votes).to_series()
            if few.any():
                gone, everyone = frame.filter(few)["user"].n_unique(), frame["user"].n_unique()
                notes.append(f"left out: {gone:,} of {everyone:,} people with fewer than {self.min_votes} votes")
                frame = frame.filter(~few)
            if frame.is_empty():
                raise UserError(f"no person has {self.min_votes} votes", "lower min_votes")
            statements = frame["statement"].unique().sort()
            number = frame["statement"].replace_strict(statements, pl.arange(len(statements), eager=True))
            frame = frame.with_columns(statement=number)
            dim = crowd_dim(self.encoder)
            if dim is None:
                text = pl.DataFrame({"prompt": [""] * len(statements), "response": statements})
                return replace(from_votes(frame, self.encoded(text, store), statements), notes=tuple(notes))
            data = from_votes(frame, np.arange(len(statements), dtype=np.float32)[:, None], statements)
            train = self.split(data, seed).train
            agrees = np.where(train.left % 2 == 0, train.label, 1 - train.label).astype(np.float64)
            vectors = crowd_vectors(train.user.astype(np.int64), train.left // 2, agrees, len(statements), dim)
            items = replace(data.pairs.items, features=vote_features(vectors))
            return replace(data, pairs=replace(data.pairs, items=items), notes=tuple(notes))
