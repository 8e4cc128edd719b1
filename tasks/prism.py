"""1,396 people choose among several models' answers to their own prompts (PRISM; Kirk et al. 2024)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from harness.data import TEXT_SCHEMA, Pairs, Panel, PreferenceDataset, Splits
from harness.errors import UserError
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.sources.hub import check_revision, hub_files, read_typed_table
from harness.sources.public_files import files_content_digest
from harness.store.store import Store
from harness.task import TextTask, split_whole_users

PRISM_REPOSITORY = "HannahRoseKirk/prism-alignment"
PRISM_REVISION = "18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6"  # main since 2024-04-25
HUB_FILES = ("survey.jsonl", "utterances.jsonl")
SURVEY_COLUMNS = {"user_id": str, "self_description": str, "system_string": str}
UTTERANCE_COLUMNS = {
    "user_id": str,
    "conversation_id": str,
    "turn": int,
    "user_prompt": str,
    "model_response": str,
    "if_chosen": bool,
}
NO_ANSWER = ("", "EMPTY STRING")  # the data set's authors write "EMPTY STRING" for an empty answer


@dataclass(frozen=True)
class Prism(TextTask):
    """A task from first turns of conversations: up to four models answer, and the kept answer beats each of the others.

    A conversation gives up to three pairs; people were asked for six conversations. Later turns are left out, because
    in them the model whose answer the user kept answers twice. Users with fewer than `min_pairs` pairs are left out,
    and so are users with no query left after the largest number of shots.

    All pairs of one prompt of a user are in the context, or all are queries, even if the user wrote the same prompt in
    two conversations. Otherwise a shown pair (a beats b) would reveal the answer to a query (a or c). A context has
    whole prompts in random order, so it may have up to two pairs more than the largest number of shots. One prompt of
    each training user is held out for the panel `seen`.

    profiles: what people wrote before the conversations about themselves and about how an AI should behave towards them
    (the survey's `self_description` and `system_string`).

    The data are read from the hub at `revision`, or from a folder `file` with the same survey.jsonl and
    utterances.jsonl. Empty answers are dropped, and so are first turns without exactly one kept answer; `users` counts
    the dropped answers of each person.
    """

    family = "human text"
    paper = "Kirk et al. 2024, PRISM"

    file: str = field(default="", metadata={"identity": False})  # `files_digest` identifies its content
    revision: str = PRISM_REVISION
    min_pairs: int = 12  # the pairs of four conversations
    encoder: str = encoder_field()

    shots: tuple[int, ...] = (0, 3, 6, 9)  # mostly whole conversations, of up to 3 pairs each

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)
        check_revision(PRISM_REPOSITORY, self.revision)
        if self.file and self.revision != PRISM_REVISION:
            raise UserError("prism: file and revision cannot both be set", "leave out one of them")
        if self.min_pairs <= max(self.shots):
            raise UserError(
                f"prism: min_pairs = {self.min_pairs} leaves no queries after {max(self.shots)} shots",
                "raise min_pairs above the largest number of shots",
            )

    def files_digest(self) -> str:
        # on the hub, the field `revision` identifies the content
        return files_content_digest(*self.local_files()) if self.file else ""

    def local_files(self) -> list[Path]:
        """Return the paths of both files in the folder `file`."""
        return [Path(self.file) / name for name in HUB_FILES]

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        survey, utterances = self.local_files() if self.file else hub_files(PRISM_REPOSITORY, self.revision, HUB_FILES)
        people = read_typed_table(survey, SURVEY_COLUMNS).unique("user_id", keep="first")
        answers = first_turns(read_typed_table(utterances, UTTERANCE_COLUMNS))
        if (strangers := answers.join(people, on="user_id", how="anti")).height:
            raise UserError(
                f"{utterances}: user {strangers['user_id'][0]!r} of conversation {strangers['conversation_id'][0]!r} "
                f"is not in {survey.name}; {strangers['user_id'].n_unique()} such users",
                "take both files from the same revision",
            )
        pairs = answers.filter("pair")
        per_user = pl.len().over("user_id")
        # each user's largest number of pairs of one prompt
        most = pl.len().over("user_id", "user_prompt").max().over("user_id")
        often = pairs.filter((per_user >= self.min_pairs) & (per_user - most >= max(1, *self.shots)))
        if often.is_empty():
            raise UserError(
                f"{utterances}: none of {pairs['user_id'].n_unique()} people (with {len(pairs)} pairs) has "
                f"{self.min_pairs} pairs and a prompt left as a query after {max(self.shots)} shots",
                "lower min_pairs and shots",
            )
        data = PreferenceDataset.from_choices(
            often.select(user="user_id", prompt="user_prompt", chosen="kept", rejected="model_response"),
            features=lambda items: encode_items(items.to_arrow().cast(TEXT_SCHEMA), self.encoder, store),
            columns_share_unit=True,
        )
        users = pl.DataFrame({"id": data.users["id"].to_pylist()})
        dropped = answers.group_by(id="user_id").agg(dropped=pl.col("bad").sum())
        users = users.join(dropped, on="id", how="left", maintain_order="left")
        wrote = users.join(people.rename({"user_id": "id"}), on="id", how="left", maintain_order="left")
        profiles = wrote.select(
            pl.format("About me: {}\nHow an AI should behave: {}", "self_description", "system_string")
        ).to_series()
        return replace(
            data, users=users.to_arrow(), pairs=replace(data.pairs, profiles=pa.array(profiles, pa.large_string()))
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        people = split_whole_users(data, seed, max(self.shots), self.queries)  # only its choice of people is used
        rng = np.random.default_rng([seed, len(data.pairs)])
        known, held_out = split_by_prompt(data.pairs.of(people.train.people), rng, len(data.pairs))
        panels = {"seen": Panel(known.first(max(self.shots)), held_out.first(self.queries))}
        for name in ("validation", "test"):
            new = data.pairs.of(people.panels[name].query.people)
            context, query = split_by_prompt(new, rng, max(self.shots))
            panels[name] = Panel(context, query.first(self.queries))
        return Splits(known, panels)


def first_turns(utterances: pl.DataFrame) -> pl.DataFrame:
    """Return a row per answer of a first turn, with the columns kept, pair and bad.

    kept: the turn's kept answer.
    pair: whether the answer lost to the kept one. An answer with the same text as the kept one, or as an earlier answer
        of the turn, is neither pair nor bad.
    bad: whether the answer is empty, or the number of its turn's kept answers that are not empty is not one.
    """
    turn = ["user_id", "conversation_id", "user_prompt"]
    first = utterances.filter(pl.col("turn") == 0).with_columns(
        empty=pl.col("model_response").str.strip_chars().is_in(NO_ANSWER)
    )
    first = first.with_columns(wins=pl.col("if_chosen") & ~pl.col("empty"))
    first = first.with_columns(bad=pl.col("empty") | (pl.col("wins").sum().over(turn) != 1))
    kept = first.filter(~pl.col("bad") & pl.col("wins")).select(*turn, kept="model_response")
    first = first.join(kept, on=turn, how="left", maintain_order="left")
    lost = ~pl.col("bad") & ~pl.col("wins") & (pl.col("model_response") != pl.col("kept"))
    again = pl.struct(*turn, "model_response").is_duplicated() & ~pl.struct(*turn, "model_response").is_first_distinct()
    return first.with_columns(pair=lost & ~again)


def split_by_prompt(pairs: Pairs, rng: np.random.Generator, n_shown: int) -> tuple[Pairs, Pairs]:
    """Split each user's pairs by their prompts, which are put in random order.

    The first part has the pairs of the first prompts, up to the prompt that reaches `n_shown` pairs. The second part
    has all other pairs, always including those of the last prompt.
    """
    text = pairs.items.known_text["prompt"].combine_chunks()
    prompt = text.dictionary_encode().indices.to_numpy().astype(np.int64)[pairs.left]
    key = pairs.user * np.int64(len(text)) + prompt
    _, first_row, group, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    owner = pairs.user[first_row]
    order = np.lexsort((rng.random(len(size)), owner))
    before = np.cumsum(size[order]) - size[order]  # number of pairs of all earlier prompts, over all users
    shown = np.empty(len(size), dtype=bool)
    shown[order] = before - pairs.offsets[owner[order]] < n_shown
    last = np.flatnonzero(np.append(np.diff(owner[order]) > 0, True))
    shown[order[last]] = False
    rows = np.argsort(np.argsort(order)[group], kind="stable")
    return pairs.take(rows[shown[group][rows]]), pairs.take(rows[~shown[group][rows]])
