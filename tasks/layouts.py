"""A layout of stored responses that gives the answer away, and its repair: a twin of a public pipeline's fault."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from harness.data import PreferenceDataset
from harness.errors import UserError
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.sources.text_world import PROMPTS, trait_scores, write_response
from harness.store.store import Store
from harness.task import TextTask


@dataclass(frozen=True)
class Layouts(TextTask):
    """A task of simulated people, each with random weights of seven traits, who choose between templated responses.

    leaky: the chosen response is stored as text and the rejected one as a printed list, so that brackets and quotes tell
    which one lost; repaired: both are stored as text. Everything else is the same: what a method gains by the layout is
    not about people. A public pipeline over PRISM stored responses in the first way.
    """

    family = "simulated"

    layout: Literal["leaky", "repaired"] = "repaired"
    n_users: int = 60
    pairs_per_user: int = 30
    noise: float = 2.0  # temperature of choices, in standard deviations of a trait times the root of seven
    encoder: str = encoder_field("hashing-256")

    shots: tuple[int, ...] = (0, 5, 10)
    queries: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)
        if min(self.n_users, self.pairs_per_user) < 1 or not self.noise > 0:
            raise UserError(
                "layouts: n_users, pairs_per_user and noise must be above 0",
                "n_users = 60, pairs_per_user = 30, noise = 2.0",
            )

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        n = self.n_users * self.pairs_per_user
        prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=n)]
        sides = [[write_response(prompt, 2 * i + side) for i, prompt in enumerate(prompts)] for side in (0, 1)]
        user = np.repeat(np.arange(self.n_users), self.pairs_per_user)
        weights = rng.normal(size=(self.n_users, 7))[user]
        gap = (weights * (trait_scores(sides[0]) - trait_scores(sides[1]))).sum(1)
        first_wins = rng.random(n) < 1 / (1 + np.exp(-gap / (self.noise * np.sqrt(7))))
        chosen = [a if wins else b for a, b, wins in zip(*sides, first_wins, strict=True)]
        rejected = [b if wins else a for a, b, wins in zip(*sides, first_wins, strict=True)]
        if self.layout == "leaky":
            rejected = [str([text]) for text in rejected]
        frame = pl.DataFrame({"user": user, "prompt": prompts, "chosen": chosen, "rejected": rejected})
        return PreferenceDataset.from_choices(
            frame.filter(pl.col("chosen") != pl.col("rejected")),
            lambda items: encode_items(items.to_arrow(), self.encoder, store),
            columns_share_unit=True,
        )
