"""What 1,396 people chose among several models' answers to prompts of their own (PRISM; Kirk et al. 2024)."""

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
NO_ANSWER = ("", "EMPTY STRING")  # the second is how the authors write that a model said nothing


@dataclass(frozen=True)
class Prism(TextTask):
    """A user's first turn of a conversation: up to four models answer, and the answer kept beats each of the others.

    Later turns are left out: there one model answers twice, in a conversation that the user has chosen. So a
    conversation gives up to three pairs, and people were asked for six conversations. Who has fewer than `min_pairs`
    pairs is left out, and who has so few prompts that nothing is left to ask after the largest number of shots.

    The pairs of one prompt go together: all shown to a user's method or all asked, also where the user wrote the same
    prompt in two conversations; otherwise that a beat b, shown, would tell what is asked of a and c. A context holds
    whole prompts in random order, so it may hold up to two pairs more than the largest number of shots. Training users
    keep one prompt for the panel `seen`.

    profiles: what somebody wrote of himself before the conversations, and how an AI should behave towards him (the
    survey's `self_description` and `system_string`).

    Read from the hub at `revision`, or from a folder `file` with the same survey.jsonl and utterances.jsonl. An empty
    answer is dropped, and a first turn without exactly one kept answer; `users` counts such answers by person.
    """

    file: str = field(default="", metadata={"identity": False})  # `files_digest` says what is in it
    revision: str = PRISM_REVISION
    min_pairs: int = 12  # four conversations
    encoder: str = encoder_field()

    shots: tuple[int, ...] = (0, 3, 6, 9)  # whole conversations, most of them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)
        check_revision(PRISM_REPOSITORY, self.revision)
        if self.file and self.revision != PRISM_REVISION:
            raise UserError("prism: either a file or a revision of the hub's", "leave out one")
        if self.min_pairs <= max(self.shots):
            raise UserError(
                f"prism: min_pairs = {self.min_pairs} leaves none to ask after {max(self.shots)} shots",
                "raise min_pairs above the largest number of shots",
            )

    def files_digest(self) -> str:
        return files_content_digest(*self.local_files()) if self.file else ""  # at the hub, `revision` says it

    def local_files(self) -> list[Path]:
        return [Path(self.file) / name for name in HUB_FILES]

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        survey, utterances = self.local_files() if self.file else hub_files(PRISM_REPOSITORY, self.revision, HUB_FILES)
        people = read_typed_table(survey, SURVEY_COLUMNS).unique("user_id", keep="first")
        answers = first_turns(read_typed_table(utterances, UTTERANCE_COLUMNS))
        if (strangers := answers.join(people, on="user_id", how="anti")).height:
            raise UserError(
                f"{utterances}: user {strangers['user_id'][0]!r} of conversation {strangers['conversation_id'][0]!r} "
                f"is not in {survey.name}; {strangers['user_id'].n_unique()} such users",
                "take both files of one revision",
            )
        pairs = answers.filter("pair")
        per_user = pl.len().over("user_id")
        most = pl.len().over("user_id", "user_prompt").max().over("user_id")  # pairs of one prompt
        often = pairs.filter((per_user >= self.min_pairs) & (per_user - most >= max(1, *self.shots)))
        if often.is_empty():
            raise UserError(
                f"{utterances}: {len(pairs)} pairs of {pairs['user_id'].n_unique()} people, of whom nobody has "
                f"{self.min_pairs}, or one prompt left to ask after {max(self.shots)} shots",
                "lower min_pairs and shots",
            )
        data = PreferenceDataset.from_choices(
            often.select(user="user_id", prompt="user_prompt", chosen="kept", rejected="model_response"),
            features=lambda items: encode_items(items.to_arrow().cast(TEXT_SCHEMA), self.encoder, store),
        )
        users = pl.DataFrame({"id": data.users["id"].to_pylist()})
        dropped = answers.group_by(id="user_id").agg(dropped=pl.col("bad").sum())
        users = users.join(dropped, on="id", how="left", maintain_order="left")
        wrote = users.join(people.rename({"user_id": "id"}), on="id", how="left", maintain_order="left")
        told = wrote.select(
            pl.format("About me: {}\nHow an AI should behave: {}", "self_description", "system_string")
        ).to_series()
        return replace(
            data, users=users.to_arrow(), pairs=replace(data.pairs, profiles=pa.array(told, pa.large_string()))
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        people = split_whole_users(data, seed, max(self.shots), self.queries)  # who; not what is shown of them
        rng = np.random.default_rng([seed, len(data.pairs)])
        known, held_out = split_by_prompt(data.pairs.of(people.train.people), rng, len(data.pairs))
        panels = {"seen": Panel(known.first(max(self.shots)), held_out.first(self.queries))}
        for name in ("validation", "test"):
            new = data.pairs.of(people.panels[name].query.people)
            context, query = split_by_prompt(new, rng, max(self.shots))
            panels[name] = Panel(context, query.first(self.queries))
        return Splits(known, panels)


def first_turns(utterances: pl.DataFrame) -> pl.DataFrame:
    """A row per answer of a first turn, beside the answer `kept` there; `pair`: it lost to that; `bad`: not usable.

    An answer is bad where it is empty, or where not exactly one answer of its turn that is not empty was kept. One that
    says the same as the kept one is neither.
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
    """Each user's prompts in random order: the first ones until `n_shown` pairs are shown, and the rest, at least one."""
    text = pairs.items.known_text["prompt"].combine_chunks()
    prompt = text.dictionary_encode().indices.to_numpy().astype(np.int64)[pairs.left]
    key = pairs.user * np.int64(len(text)) + prompt
    _, first_row, group, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    owner = pairs.user[first_row]
    order = np.lexsort((rng.random(len(size)), owner))
    before = np.cumsum(size[order]) - size[order]  # pairs of the prompts before, of all users
    shown = np.empty(len(size), dtype=bool)
    shown[order] = before - pairs.offsets[owner[order]] < n_shown
    last = np.flatnonzero(np.append(np.diff(owner[order]) > 0, True))
    shown[order[last]] = False
    rows = np.argsort(np.argsort(order)[group], kind="stable")
    return pairs.take(rows[shown[group][rows]]), pairs.take(rows[~shown[group][rows]])
