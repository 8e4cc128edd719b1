"""3,815 crowd workers judge which of two arguments convinces more, about five per pair (Habernal and Gurevych 2016)."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from harness.data import TEXT_SCHEMA, Items, Pairs, PreferenceDataset, Splits
from harness.errors import UserError
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.sources.public_files import PublicTable
from harness.store.store import Store
from harness.task import TextTask, split_whole_users

ARGUMENTS_ORIGIN = (
    "https://github.com/UKPLab/acl2016-convincing-arguments/tree/"
    "ca9d24e41b8805ff2e1d3585d552b49bb64a65f7/data/UKPConvArg1-full-XML"
)
ARGUMENTS_TABLE = PublicTable(
    file="ukp_convarg1/arguments.parquet",
    url=ARGUMENTS_ORIGIN,
    sha256="2b6635335a6c51c30ce0e5d88ad4a9a328f2200d919b4aedc2e9f27dfcbbb65f",
)
JUDGEMENTS_TABLE = PublicTable(
    file="ukp_convarg1/judgements.parquet",
    url=ARGUMENTS_ORIGIN,
    sha256="4bca75ad6f4afc63b060233b8240a5e71e351e9d48733bc4dd459cff1cc7a80e",
)


@dataclass(frozen=True)
class Arguments(TextTask):
    """A task whose items are the arguments, encoded by `encoder`; equally convincing arguments have the label .5.

    Workers with at least `min_judgements` (233 workers for the default of 50) are split into training, validation and
    test users. All other workers with two or more judgements are training users too. Pairs are shared: training users
    judged the pairs that test users are asked, so `majority` can predict them. (A worker agrees with the majority of
    all other workers in .777 of the judgements where neither is a tie; the longer argument wins in .685.) A fifth of
    the judgements are ties, on which every method scores one half. Response times are left out, because they are known
    only per bundle of pairs.
    """

    family = "human text"
    paper = "Habernal and Gurevych 2016"

    min_judgements: int = 50
    encoder: str = encoder_field()

    queries: int = 30  # a worker with 50 judgements has 30 left after 20 shots

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)
        if self.min_judgements <= max(self.shots):
            raise UserError(
                f"arguments: min_judgements = {self.min_judgements} leaves no queries after {max(self.shots)} shots",
                "raise min_judgements above the largest number of shots",
            )

    def files_digest(self) -> str:
        return ARGUMENTS_TABLE.sha256 + JUDGEMENTS_TABLE.sha256

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        arguments = ARGUMENTS_TABLE.read_columns("topic", "arg", "text")
        judged = JUDGEMENTS_TABLE.read_columns("topic", "arg1", "arg2", "worker", "choice")
        items = arguments.select("topic", "text").unique().sort("topic", "text").with_row_index("item")
        known = arguments.join(items, on=["topic", "text"]).select("topic", "arg", "item")
        for side in ("arg1", "arg2"):
            judged = judged.join(
                known.rename({"arg": side, "item": f"{side}_item"}), on=["topic", side], maintain_order="left"
            )
        judged = judged.filter(pl.col("arg1_item") != pl.col("arg2_item"))  # drop pairs of identical texts
        judged = judged.with_columns(often=pl.len().over("worker") >= self.min_judgements)
        judged = judged.filter(pl.len().over("worker") > 1)
        # frequent workers get the lowest numbers
        judged = judged.with_columns(person=pl.struct(~pl.col("often"), "worker").rank("dense") - 1)
        text = items.select(prompt="topic", response="text").to_arrow().cast(TEXT_SCHEMA)
        data = PreferenceDataset.from_pairs(
            user=judged["person"].to_numpy(),
            left=judged["arg1_item"].to_numpy(),
            right=judged["arg2_item"].to_numpy(),
            label=(judged["choice"].to_numpy() + 1) / 2,
            items=Items(encode_items(text, self.encoder, store), text, columns_share_unit=True),
        )
        workers = judged.select("person", "worker", "often").unique().sort("person")
        return replace(data, users=pa.table({"id": workers["worker"].cast(pl.String), "often": workers["often"]}))

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        n_often = int(np.sum(data.users["often"]))
        often, rest = data.pairs.chunk(0, n_often), data.pairs.chunk(n_often, data.pairs.n_users)
        splits = split_whole_users(replace(data, pairs=often), seed, max(self.shots), self.queries)
        return replace(splits, train=joined_pairs(splits.train, rest))


def joined_pairs(first: Pairs, second: Pairs) -> Pairs:
    """Return the pairs of both, which have different users; users of `second` are numbered after those of `first`."""
    return replace(
        first,
        user=np.concatenate([first.user, second.user + np.int32(first.n_users)]),
        people=np.concatenate([first.people, second.people]),
        left=np.concatenate([first.left, second.left]),
        right=np.concatenate([first.right, second.right]),
        label=np.concatenate([first.label, second.label]),
    )
