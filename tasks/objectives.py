"""Helpful or harmless: simulated users who each judge one kind of dialogue; measures domain, not personalisation."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.data import PreferenceDataset
from harness.errors import UserError
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.sources.public_files import PublicFile
from harness.store.store import Store
from harness.task import TextTask

OBJECTIVES_ORIGIN = (
    "https://raw.githubusercontent.com/cassidylaidlaw/hidden-context/"
    "13c98bbaa75d57773c69bf005b214f75821a49e9/data/relabeled_hh_rlhf/"
)
HELPFUL_TABLE = PublicFile(
    file="helpful_test.jsonl.gz",
    url=OBJECTIVES_ORIGIN + "helpful/test.jsonl.gz",
    sha256="502d6c1685eb4d67d101db3b110a37104f9f58c72e31d08c36618444918c282d",
)
HARMLESS_TABLE = PublicFile(
    file="harmless_test.jsonl.gz",
    url=OBJECTIVES_ORIGIN + "harmless/test.jsonl.gz",
    sha256="d7441016843ae9a668d261e08e40a3ffafd4b67de2656aa92d6b6ba14640db78",
)
SCHEMA = {"prompt": pl.String(), "responses": pl.List(pl.String), "label": pl.Int64()}


@dataclass(frozen=True)
class Objectives(TextTask):
    """HH-RLHF test pairs relabelled by objective (Siththaranjan et al. 2024; also used by VPL, Poddar et al. 2024).

    Half the users judge helpfulness and half harmlessness, each on a random set of pairs of that kind; no pair goes to
    two users. Every pair has one objective and its prompt reveals which one, so no two users contradict each other, and
    one reward that reads the prompt could serve all. A gain here comes from recognising the *domain*, not from
    *personalisation*, and every board says so.
    """

    family = "human text"
    paper = "Bai et al. 2022, HH-RLHF"
    caveat = (
        "each user judges one kind of dialogue, and the prompt shows which: gains come from the domain, not the person"
    )

    n_users: int = 90
    pairs_per_user: int = 40
    encoder: str = encoder_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)
        if self.n_users < 5 or self.pairs_per_user <= max(self.shots):
            raise UserError(
                f"objectives: n_users = {self.n_users} must be 5 or more, and pairs_per_user = {self.pairs_per_user} "
                f"more than the {max(self.shots)} shots",
                "n_users = 90, pairs_per_user = 40",
            )

    def files_digest(self) -> str:
        return HELPFUL_TABLE.sha256 + HARMLESS_TABLE.sha256

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        parts = []
        for objective, source in (("helpful", HELPFUL_TABLE), ("harmless", HARMLESS_TABLE)):
            first, second = (pl.col("responses").list.get(side) for side in (0, 1))
            judged = pl.read_ndjson(source.local_path().read_bytes(), schema=SCHEMA).filter(first != second)
            judged = judged.select(
                "prompt",
                chosen=pl.col("responses").list.get(pl.col("label")),
                rejected=pl.col("responses").list.get(1 - pl.col("label")),
            )
            n_users = (self.n_users + (objective == "helpful")) // 2
            needed = n_users * self.pairs_per_user
            if needed > len(judged):
                raise UserError(
                    f"objectives: {needed} {objective} pairs are needed, but there are {len(judged)}",
                    "lower n_users or pairs_per_user, because no pair goes to two users",
                )
            user = [f"{objective}-{number:03d}" for number in range(n_users)]
            rows = rng.permutation(len(judged))[:needed]
            parts.append(judged[rows].with_columns(user=pl.Series(user).repeat_by(self.pairs_per_user).explode()))
        return PreferenceDataset.from_choices(
            pl.concat(parts),
            lambda items: encode_items(items.to_arrow(), self.encoder, store),
            columns_share_unit=True,
        )
