"""135 personas choose between statements that match them and statements that do not (Perez et al. 2022)."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from harness.data import TEXT, Items, Pairs, PreferenceDataset, Splits, Truth
from harness.method import State, Users
from harness.mistake import Mistake
from harness.task import Task
from harness.text import Table, encode, encoder_dim

STATEMENTS = Table(
    file="personas.parquet",
    url="https://github.com/anthropics/evals/tree/84fcc677e52e1902d696c32cd1a6b663e70d3993/persona",
    sha256="ea8b0f50917c32c7a5f271c89edd3bade97c3ed54431c214c8b9e73826ea5c72",
)
QUESTION = "Is the following statement something you would say?"


@dataclass(frozen=True)
class Personas(Task):
    """Every persona is a user; of each of its pairs the statement that matches the persona is preferred.

    The data of DPO generalisation, section 5. A persona's statements are drawn and paired anew for each seed, a
    statement in one pair of a persona at most; the prompt of all items is the same question. Personas whose directions
    (mean features of matching less those of other statements) have a larger cosine than `max_cosine` in absolute value
    do not both take part: they are taken in random order, each unless it is too near to one taken before, until there
    are `n_users`.
    """

    n_users: int = 135
    max_cosine: float = 1.0
    pairs_per_user: int = 200
    encoder: str = "tfidf-svd-128"

    shots: tuple[int, ...] = (0, 10, 50, 100)
    queries: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        encoder_dim(self.encoder)
        if self.n_users < 5 or not 0 < self.max_cosine <= 1:
            raise Mistake(
                f"personas: n_users = {self.n_users} is below 5, or max_cosine = {self.max_cosine} not in (0, 1]",
                "n_users = 135 and max_cosine = 1 take all personas",
            )
        if self.pairs_per_user <= max(self.shots):
            raise Mistake(
                f"personas: {self.pairs_per_user} pairs leave nothing to ask after {max(self.shots)} shots",
                "raise pairs_per_user, at most 250, or lower shots",
            )

    def files_digest(self) -> str:
        return STATEMENTS.sha256

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        read = STATEMENTS.read("persona", "statement", "matches")
        read = read.unique(["persona", "statement"], keep="none", maintain_order=True)  # a few stand on both sides
        kinds = ["persona", "matches"]
        read = read.sort(*kinds, pl.Series(rng.random(len(read)))).with_columns(
            place=pl.int_range(pl.len()).over(kinds)
        )
        read = read.filter(pl.col("place") < self.pairs_per_user)
        fewest = read.group_by(kinds).len()["len"].min()
        if fewest < self.pairs_per_user:
            raise Mistake(
                f"personas: someone has {fewest} statements of a kind, too few for {self.pairs_per_user} pairs",
                f"pairs_per_user = {fewest} is the most",
            )
        matching, other = (read.filter(pl.col("matches") == kind) for kind in (True, False))  # same personas and places
        statements = matching["statement"].append(other["statement"]).unique().to_numpy()
        statements = pl.DataFrame({"response": rng.permutation(np.sort(statements))})  # "I am not" stands after "I am"
        text = statements.select(prompt=pl.lit(QUESTION), response="response").to_arrow().cast(TEXT)
        numbered = statements.with_row_index("item")
        yes, no = (
            part.join(numbered, left_on="statement", right_on="response", how="left", maintain_order="left")["item"]
            for part in (matching, other)
        )
        left_matches = rng.random(len(yes)) < 0.5
        data = PreferenceDataset.from_pairs(
            user=matching["persona"].to_numpy(),
            left=np.where(left_matches, yes, no),
            right=np.where(left_matches, no, yes),
            label=left_matches,
            items=Items(encode(text, self.encoder), text),
        )
        return some(data, self.apart(data, rng))

    def readings(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """Of the data alone: what embeddings of training personas have in common (DPO generalisation, section 5).

        cosine: average over pairs of personas of the cosines of a statement of one with a statement of the other;
        cosine_centred: the same less the mean embedding; cosine_directions: mean absolute cosine of directions().
        """
        pairs = splits.train
        matching = np.where(pairs.label > 0.5, pairs.left, pairs.right)
        features = pairs.items.features[matching].astype(np.float64)

        def mean_cosine(rows: np.ndarray) -> float:
            means = np.zeros((pairs.n_users, rows.shape[1]))
            np.add.at(means, pairs.user, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
            means /= np.diff(pairs.offsets)[:, None]
            return off_diagonal(means @ means.T).mean()

        toward = directions(pairs)
        return {
            "cosine": mean_cosine(features),
            "cosine_centred": mean_cosine(features - features.mean(0)),
            "cosine_directions": np.abs(off_diagonal(toward @ toward.T)).mean(),
        }

    def apart(self, data: PreferenceDataset, rng: np.random.Generator) -> np.ndarray:
        """int64[n_users]: personas of which no two are nearer than `max_cosine`."""
        if self.n_users == data.pairs.n_users and self.max_cosine == 1:
            return np.arange(self.n_users)
        toward = directions(data.pairs)
        cosine = np.abs(toward @ toward.T)
        taken: list[int] = []
        for persona in rng.permutation(len(cosine)):
            if len(taken) < self.n_users and (cosine[persona, taken] <= self.max_cosine).all():
                taken.append(int(persona))
        if len(taken) < self.n_users:
            raise Mistake(
                f"personas: only {len(taken)} of {len(cosine)} personas have cosines up to {self.max_cosine}",
                "lower n_users or raise max_cosine",
            )
        return np.sort(taken)


def directions(pairs: Pairs) -> np.ndarray:
    """float64[people, d]: each person's mean features of preferred less rejected items, scaled to length one."""
    moment = np.zeros((pairs.n_users, pairs.gap.shape[1]))
    np.add.at(moment, pairs.user, (2 * pairs.label - 1)[:, None] * pairs.gap)
    return moment / np.linalg.norm(moment, axis=1, keepdims=True)


def some(data: PreferenceDataset, people: np.ndarray) -> PreferenceDataset:
    """The data of some people, numbered from 0 in the given order."""
    pairs = replace(data.pairs.of(people), people=np.arange(len(people), dtype=np.int32))
    return PreferenceDataset(data.users.take(pa.array(people)), pairs)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """float[n * (n - 1)]: all entries but the diagonal's."""
    return matrix[~np.eye(len(matrix), dtype=bool)]
