"""42 people choose between 50:50 lotteries over two foods they rated, with response times (Smith and Krajbich 2018)."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.data import Items, PreferenceDataset
from harness.sources.public_files import PublicFile, read_csv_columns
from harness.task import Task

FOOD_RISK_FILE = PublicFile(
    file="foodrisk.csv",
    url="https://raw.githubusercontent.com/shenlirobot/linear_bandits_response_time/fa93263695c51e30e14b9e32dc44446fd47b86cb/data/foodrisk.csv",
    sha256="a391c9526a4c7cbe537cf1f7bb8711937e536edbfdd5f419b6c4dc9fc5ee82d6",
)
RATING_COLUMNS = ["upleftval", "downleftval", "uprightval", "downrightval"]


@dataclass(frozen=True)
class FoodRisk(Task):
    """A task with lotteries as items: ratings u and d (in tenths) have the features [u, d, u^2, d^2, ud].

    This is a negative control with next to nothing to personalise. The higher sum of ratings predicts .690 of the
    choices (.686 of all choices in the file, 138 of which are between lotteries with equal ratings), and a logistic
    regression per person, in sample, .70. The file has a row per eye fixation. Response times are clipped at their 99th
    percentile.
    """

    family = "human choices"
    paper = "Smith and Krajbich 2018"

    shots: tuple[int, ...] = (0, 5, 10, 20, 40)
    queries: int = 100

    def files_digest(self) -> str:
        return FOOD_RISK_FILE.sha256

    def build(self, seed: int) -> PreferenceDataset:
        columns = {name: pl.Float64 for name in ["subj", "trial", "choice", "rt", *RATING_COLUMNS]}
        trials = read_csv_columns(FOOD_RISK_FILE.local_path(), columns).unique(
            ["subj", "trial"], keep="first", maintain_order=True
        )
        trials = trials.filter(  # lotteries with equal ratings have equal features, so nothing predicts the choice
            (pl.col("upleftval") != pl.col("uprightval")) | (pl.col("downleftval") != pl.col("downrightval"))
        )
        left, right = (trials.select(RATING_COLUMNS[a : a + 2]).to_numpy() / 10 for a in (0, 2))
        arms, arm = np.unique(np.concatenate([left, right]), axis=0, return_inverse=True)
        u, d = arms.T
        seconds = trials["rt"].to_numpy() / 1000
        return PreferenceDataset.from_pairs(
            user=trials["subj"].cast(pl.Int64),
            left=arm[: len(left)],
            right=arm[len(left) :],
            label=trials["choice"].to_numpy(),
            items=Items(np.column_stack([u, d, u**2, d**2, u * d]).astype(np.float32), columns_share_unit=True),
            seconds=np.minimum(seconds, np.quantile(seconds, 0.99)),
        )
