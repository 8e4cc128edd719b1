"""31 people choose between 17 snacks, every pair once, with response times (Clithero 2018)."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.data import Items, PreferenceDataset
from harness.sources.public_files import PublicFile, read_csv_columns
from harness.task import Task

SNACKS_FILE = PublicFile(
    file="ClitheroDataset.csv",
    url="https://raw.githubusercontent.com/shenlirobot/linear_bandits_response_time/fa93263695c51e30e14b9e32dc44446fd47b86cb/data/ClitheroDataset.csv",
    sha256="9c572d572bb3ccd1e3e1c35ef7165516089c6a657d3ef98221d2b87bb81e676c",
)


@dataclass(frozen=True)
class Snacks(Task):
    """A task whose items are the 17 snacks, one-hot.

    In the file `choice` is 1 for left and 2 for right; its yes/no rows are left out.
    """

    family = "human choices"
    paper = "Clithero 2018"

    shots: tuple[int, ...] = (0, 5, 10, 20, 50, 100)
    queries: int = 36  # each person judged 136 pairs; 100 shots leave 36

    def files_digest(self) -> str:
        return SNACKS_FILE.sha256

    def build(self, seed: int) -> PreferenceDataset:
        columns = {"subj": pl.Float64, "YesNo": pl.Float64, "choice": pl.Float64, "rt": pl.Float64}
        columns |= {"Item_l": pl.Float64, "Item_r": pl.Float64}
        trials = read_csv_columns(SNACKS_FILE.local_path(), columns).filter(pl.col("YesNo") == 0)
        return PreferenceDataset.from_pairs(
            user=trials["subj"].cast(pl.Int64),
            left=trials["Item_l"].to_numpy() - 1,
            right=trials["Item_r"].to_numpy() - 1,
            label=trials["choice"].to_numpy() == 1,
            items=Items(np.eye(17, dtype=np.float32), columns_share_unit=True),
            seconds=trials["rt"].to_numpy(),
        )
