"""Responses rated by aspect; simulated users follow one aspect or a mixture (Few-shot Steerable Alignment, 4.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from harness.data import TEXT_SCHEMA, Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError, print_note
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.method import State, Users
from harness.sources.hub import check_revision, hub_files, numbered_rows
from harness.sources.public_files import PublicTable, files_content_digest
from harness.store.store import Store
from harness.task import TextTask, split_in_order
from tasks.two_modes import mode_diagnostics

HFGS_ORIGIN = "https://github.com/cohere-ai/human-feedback-paper/tree/935921f2af8aa86f13bbc8dd668cce837cd4f21e/results"
SQUALITY_ORIGIN = "https://github.com/nyu-mll/SQuALITY/tree/dc08d4f574639d773bc64ef3ab3527043108fb4e/data/human-eval"
TABLES = {
    name: PublicTable(f"{folder}/{name.partition('/')[2]}.parquet", url, sha256)
    for folder, url, name, sha256 in (
        (
            "hfgs_multiaspect",
            HFGS_ORIGIN,
            "hfgs/prompts",
            "b139ea5a44f141be9d20b57caf94f89a15a92b4b59b1acbb94fc25f3f73580b4",
        ),
        (
            "hfgs_multiaspect",
            HFGS_ORIGIN,
            "hfgs/responses",
            "9831d46a2296ed816dd2672a84a8e21738b45388a47b9e0b87478930da439c6a",
        ),
        (
            "hfgs_multiaspect",
            HFGS_ORIGIN,
            "hfgs/v1_aspects",
            "7b9dd409235f8f15654199668921c8e84e463ab890467d9a128086cf92f68a1d",
        ),
        (
            "hfgs_multiaspect",
            HFGS_ORIGIN,
            "hfgs/v2_style",
            "fc5a9b7fc45800dc4e535f2a0c10d9b3b1a26aef7711a4c269ccf1b5dd243e82",
        ),
        (
            "squality_human_eval",
            SQUALITY_ORIGIN,
            "squality/ratings",
            "4a1c6cfa23552bd3fafc08c3451a48fab031fc26d385a396a12a3045ad5b0343",
        ),
        (
            "squality_human_eval",
            SQUALITY_ORIGIN,
            "squality/responses",
            "1be897d59ba5a839721880cc8d17e1c1a17177150d5b900813003c16173d3b48",
        ),
    )
}
ULTRAFEEDBACK_REPOSITORY = "openbmb/UltraFeedback"
# The revision that HuggingFaceH4/ultrafeedback_binarized was made from.
ULTRAFEEDBACK_REVISION = "40b436560ca83a8dba36114c22ab3c66e43f6d5e"
SUBSETS = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")  # one file each, .94 GB in all
ERROR_FLAGS = (  # 1 marks an error, so lower is better
    *("contradiction", "inconsistent", "factuality", "relevance", "formatting", "refusal", "repetition", "scope"),
    *("fluency", "harmful"),
)
ASPECTS = {
    "hfgs/v1_aspects": ("overall", "confidence", "style", "detail", "clarity", "creativity", "useful", *ERROR_FLAGS),
    "hfgs/v2_style": ("complexity", "assertive"),
    "squality/ratings": ("correctness", "selection", "overall"),
    "ultrafeedback": ("helpfulness", "honesty", "truthfulness", "instruction_following"),
}
# The parts that prompts are split into. "context" serves the contexts of new users and the queries of training users.
RATED_PROMPT_PARTS = ("training", "context", "validation", "test")
EITHER_KIND = 2  # a pair that may conflict or agree
RATING_SCALE = (1, 5)  # of UltraFeedback's aspects
MAX_OFF_SCALE_RATE = 0.05  # more ratings outside the scale mean that the file has another scale
CANDIDATES_PER_PROMPT = 4  # responses among which methods choose; UltraFeedback has four per prompt
FEATURE_NOISE = 0.2  # sd of the noise in the features of encoder "numbers", where scores have sd 1; as in `attributes`


@dataclass(frozen=True)
class RatedAspects(TextTask):
    """A task with pairs of responses to one prompt; a user prefers the one rated higher in the user's aspect(s).

    A pair is *conflicting* if the aspects do not all prefer the same response (definition 4.2); pairs with a tie in any
    aspect are left out. Each conflict rate is the share of conflicting pairs; without a rate, pairs are drawn as the
    data has them (.29 of the pairs conflict in `detail` and `clarity`). The paper's queries have a rate of 1.
    weights: "one": each user follows one aspect. All aspects are followed by equally many training users (give or take
    one), and likewise by validation and by test users. Otherwise the aspect that happens to be most frequent among a
    few test users would carry information. "dirichlet": a user prefers the larger weighted sum of the scores, each of
    variance 1, with weights from Dirichlet(.5, ...) (appendix D).
    follow: one aspect that all users follow, on the same pairs. The method `shared` is then the paper's dedicated
    model, to compare seed by seed with methods on the task without `follow`.

    Prompts are split at random: half for training pairs; a tenth for the context of new users and the queries of
    training users (panel `seen`); a fifth each for the queries of validation and test users. So no prompt of a query is
    in a context or in training. If prompts were shared, chains (a over b, b over c) would answer many queries without
    any model, because there are few prompts.

    source: "hfgs" (Hosking et al. 2024, "Human Feedback is not Gold Standard"), 898 responses to 180 prompts with mean
    ratings on seven aspects and ten error flags (counted negatively), or 1,739 responses to 300 prompts with
    `complexity` and `assertive`; "squality", 300 summaries rated on `correctness`, `selection`, `overall` (Wang et al.
    2022); "ultrafeedback", 256,000 responses to 64,000 prompts rated by GPT-4 (Cui et al. 2024), from `subsets` at
    `revision` on the hub, or from a local `file` with the same fields (jsonl or parquet, or a folder of them).
    encoder: a text encoder, or "numbers". "numbers" replaces the text by the scores of the chosen aspects, rotated into
    `feature_dim` dimensions with noise of sd .2. These features contain the aspects, which cannot be learned from the
    texts of a few hundred prompts.

    choices: four random responses to each query prompt of test users that has at least four; all of them have a row in
    `Truth.items`, and none is in a context or in training.
    """

    family = "written by models"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"

    version: ClassVar[int] = 2  # since version 2 there are choices

    source: Literal["hfgs", "squality", "ultrafeedback"] = "hfgs"
    file: str = field(default="", metadata={"identity": False})  # `files_digest` identifies its content
    revision: str = ULTRAFEEDBACK_REVISION
    subsets: tuple[str, ...] = SUBSETS
    aspects: tuple[str, ...] = ("detail", "clarity")  # default: the pair in "hfgs" that text features predict best
    weights: Literal["one", "dirichlet"] = "one"
    follow: str = ""
    n_users: int = 200  # training users
    new_users: int = 60  # validation users, and as many test users
    pairs_per_user: int = 40
    train_conflict_rate: float | None = None
    context_conflict_rate: float | None = None
    query_conflict_rate: float | None = None
    encoder: str = encoder_field()
    feature_dim: int = 16  # encoder "numbers" only

    shots: tuple[int, ...] = (0, 1, 3, 5, 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_users, self.new_users, self.pairs_per_user) < 1:
            raise UserError(
                "rated_aspects: counts must be 1 or more", "n_users = 200, new_users = 60, pairs_per_user = 40"
            )
        rates = (self.train_conflict_rate, self.context_conflict_rate, self.query_conflict_rate)
        if not all(rate is None or 0 <= rate <= 1 for rate in rates):
            raise UserError(
                "rated_aspects: a conflict rate is outside [0, 1]",
                "set it between 0 and 1, or leave it out to draw pairs as the data has them",
            )
        if len(set(self.aspects)) != len(self.aspects) or len(self.aspects) < 2:
            raise UserError(
                f"rated_aspects: aspects = {list(self.aspects)} must be two or more different aspects",
                'aspects = ["detail", "clarity"]',
            )
        if self.follow and (self.follow not in self.aspects or self.weights != "one"):
            raise UserError(
                f'rated_aspects: follow = {self.follow!r} needs weights = "one" and must be one of the aspects',
                f'weights = "one", and follow one of {", ".join(self.aspects)}',
            )
        if self.file and self.source != "ultrafeedback":
            raise UserError(
                f"rated_aspects: source {self.source!r} cannot be read from a file", 'source = "ultrafeedback"'
            )
        if (self.file or self.source != "ultrafeedback") and (self.revision, self.subsets) != (
            ULTRAFEEDBACK_REVISION,
            SUBSETS,
        ):
            raise UserError(
                "rated_aspects: revision and subsets apply only to UltraFeedback from the hub",
                'source = "ultrafeedback" without file; or leave out revision and subsets',
            )
        check_revision(ULTRAFEEDBACK_REPOSITORY, self.revision)
        if not self.subsets or not set(self.subsets) <= set(SUBSETS) or len(set(self.subsets)) < len(self.subsets):
            raise UserError(
                f"rated_aspects: subsets = {list(self.subsets)} must be one or more different subsets",
                f"choose among {', '.join(SUBSETS)}",
            )
        self.table_name()
        if self.encoder != "numbers":
            check_encoder(self.encoder)
        elif self.feature_dim < len(self.aspects):
            raise UserError(
                f"rated_aspects: feature_dim = {self.feature_dim} is below the number of aspects, {len(self.aspects)}",
                f"feature_dim = {len(self.aspects)} or more",
            )

    def table_name(self) -> str:
        """Return the name in ASPECTS of the table with all the aspects. Raises UserError where no table has them."""
        here = {name: known for name, known in ASPECTS.items() if name.startswith(self.source)}
        for name, known in here.items():
            if set(self.aspects) <= set(known):
                return name
        raise UserError(
            f"rated_aspects: no table of {self.source} rates {' and '.join(self.aspects)}",
            "choose among " + "; or among ".join(", ".join(known) for known in here.values()),
        )

    def files_digest(self) -> str:
        if self.file:
            return files_content_digest(*files_of_folder(self.file))
        return "".join(table.sha256 for name, table in TABLES.items() if name.startswith(self.source))

    def read_responses(self) -> pl.DataFrame:
        """Return a row per response, sorted, with the columns prompt, response and a float per aspect."""
        aspects, name = list(self.aspects), self.table_name()
        if name == "ultrafeedback":
            files = [f"{name}.jsonl" for name in self.subsets]
            paths = (
                files_of_folder(self.file) if self.file else hub_files(ULTRAFEEDBACK_REPOSITORY, self.revision, files)
            )
            rated = read_ultrafeedback(paths, aspects)
        elif name == "squality/ratings":
            keys = ["passage", "question", "system"]
            columns = {f"{aspect}_rating": aspect for aspect in aspects}
            scores = TABLES[name].read_columns(*keys, *columns).rename(columns)
            texts = TABLES["squality/responses"].read_columns(*keys, "question_text", "response")
            texts = texts.with_columns(prompt=pl.format("{} (story {})", "question_text", "passage"))
            rated = scores.join(texts, on=keys)
        else:
            scores = TABLES[name].read_columns("prompt_id", "response_id", "model", *aspects)
            # "distractor" rows are attention checks: their response belongs to another prompt
            scores = scores.filter(pl.col("model") != "distractor")
            rated = scores.join(TABLES["hfgs/prompts"].read_columns("prompt_id", "prompt"), on="prompt_id").join(
                TABLES["hfgs/responses"].read_columns("response_id", "response"), on="response_id"
            )
        better = [-pl.col(a).cast(pl.Float64) if a in ERROR_FLAGS else pl.col(a).cast(pl.Float64) for a in aspects]
        mean = [score.mean().round(6) for score in better]  # rounding makes equal means ties
        return rated.group_by("prompt", "response").agg(mean).sort("prompt", "response")

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        rated = self.read_responses()
        rated = rated[rng.permutation(len(rated))]
        scores = rated.select(self.aspects).to_numpy()
        scores = ((scores - scores.mean(0)) / scores.std(0).clip(1e-9)).astype(np.float32)
        prompt = rated["prompt"].rank("dense").to_numpy().astype(np.int64) - 1
        first, second = pairs_within(prompt)
        gap = scores[first] - scores[second]
        clear = (gap != 0).all(1)
        first, second, gap = first[clear], second[clear], gap[clear]
        conflict = (gap > 0).any(1) & (gap < 0).any(1)
        n_prompts = prompt.max() + 1
        # part of each prompt, an index of RATED_PROMPT_PARTS
        part = np.searchsorted([0.5, 0.6, 0.8], rng.permutation(n_prompts) / n_prompts, side="right")
        text = rated.select("prompt", "response").to_arrow().cast(TEXT_SCHEMA)
        features = (
            numeric_features(rng, scores, self.feature_dim)
            if self.encoder == "numbers"
            else encode_items(text, self.encoder, store)
        )

        counts = np.repeat([self.pairs_per_user, max(self.shots)], [self.n_users, 2 * self.new_users]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
        in_training, asked = user < self.n_users, place >= counts[user] - self.queries
        rates = np.array([self.train_conflict_rate, self.context_conflict_rate, self.query_conflict_rate], dtype=float)
        rate = rates[np.select([asked, in_training], [2, 0], 1)]  # NaN where the field is None
        row_kind = np.where(np.isnan(rate), EITHER_KIND, rng.random(len(user)) < rate)
        # part of the prompts for each row: 0 or 1 for training users, then 1 for contexts, 2 and 3 for queries
        row_part = np.select([in_training, ~asked, user < self.n_users + self.new_users], [asked, 1, 2], 3)
        pair = deal_pairs(rng, user, row_part, row_kind, part[prompt[first]], conflict)

        left_first = rng.random(len(user)) < 0.5
        left, right = np.where(left_first, first[pair], second[pair]), np.where(left_first, second[pair], first[pair])
        # a separate generator, so that the pairs do not depend on the users' weights
        w, population = self.draw_user_weights(np.random.default_rng([seed, 1]))
        utility = np.einsum("nk,nk->n", scores[left] - scores[right], w[user])
        truth = Truth(w, scores, 0.0, population)
        data = PreferenceDataset.from_pairs(
            user, left, right, (np.sign(utility) + 1) / 2, Items(features, text, columns_share_unit=True), truth=truth
        )
        return replace(data, choices=candidates_of_prompts(prompt, part[prompt] == RATED_PROMPT_PARTS.index("test")))

    def draw_user_weights(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the weights float32[n, k] of all people, and float32[m, k] of the population they come from."""
        k, groups = len(self.aspects), (self.n_users, self.new_users, self.new_users)
        if self.weights == "dirichlet":
            n = sum(groups)
            # 20,000 draws of the population, as in `low_rank`
            people = rng.dirichlet(np.full(k, 0.5), size=n + 20_000).astype(np.float32)
            return people[:n], people[n:]
        modes = np.eye(k, dtype=np.float32)
        if self.follow:
            modes = modes[[self.aspects.index(self.follow)]]
        return modes[np.concatenate([rng.permutation(size) % len(modes) for size in groups])], modes

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        splits = split_in_order(data, self.n_users, self.queries)
        return replace(splits, panels={**splits.panels, "test": replace(splits.panels["test"], choices=data.choices)})

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        return mode_diagnostics(splits, truth, users) if self.weights == "one" and not self.follow else {}


def deal_pairs(
    rng: np.random.Generator,
    user: np.ndarray,
    row_part: np.ndarray,
    row_kind: np.ndarray,
    part: np.ndarray,
    conflict: np.ndarray,
) -> np.ndarray:
    """Draw int64[n]: a pair for each row, such that no user gets a pair twice. A row is one answer of one user.

    user: int[n], the user of each row.
    row_part: int[n], the part of the prompts (index of RATED_PROMPT_PARTS) that the row's pair must come from.
    row_kind: int[n], 0 for an agreeing pair, 1 for a conflicting pair, or EITHER_KIND. All rows of one user and part
    have the same rate, so EITHER_KIND never occurs together with 0 or 1 there.
    part, conflict: int[pairs], for each pair its part of the prompts, and whether it conflicts.
    """
    pair = np.empty(len(user), dtype=np.int64)
    for p, kind in np.unique(np.column_stack([row_part, row_kind]), axis=0):  # at most 4 parts x 3 kinds
        rows = np.flatnonzero((row_part == p) & (row_kind == kind))
        pairs = rng.permutation(np.flatnonzero((part == p) & ((conflict == kind) | (kind == EITHER_KIND))))
        needed = np.bincount(user[rows])  # rows of each user
        if needed.max() > len(pairs):
            raise UserError(
                f"rated_aspects: a user needs {needed.max()} pairs{(' that agree', ' that conflict', '')[kind]} "
                f"from the {RATED_PROMPT_PARTS[p]} prompts, which have {len(pairs)}",
                "lower pairs_per_user, shots or queries, or leave out the conflict rate",
            )
        # Each user starts at a random pair and goes on in steps of one random size, around the end. Sizes are coprime
        # to the number of pairs, so that every pair is visited before any is visited twice.
        step = np.flatnonzero(np.gcd(np.arange(len(pairs)), len(pairs)) == 1)
        start, step = rng.integers(len(pairs), size=len(needed)), rng.choice(step, size=len(needed))
        owner = user[rows]
        nth = np.arange(len(rows)) - (np.cumsum(needed) - needed)[owner]
        pair[rows] = pairs[(start[owner] + nth * step[owner]) % len(pairs)]
    return pair


def pairs_within(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all unordered pairs of rows of the same group, as two arrays int64[n]."""
    frame = pl.DataFrame({"group": group}).with_row_index("row")
    both = frame.join(frame, on="group", suffix="_2", maintain_order="left_right")
    both = both.filter(pl.col("row") < pl.col("row_2"))
    return both["row"].to_numpy().astype(np.int64), both["row_2"].to_numpy().astype(np.int64)


def numeric_features(rng: np.random.Generator, scores: np.ndarray, dim: int) -> np.ndarray:
    """Return float32[n, dim]: scores rotated into `dim` dimensions, with noise.

    The mean variance is 1/2, as for vectors of text encoders.
    """
    axes = np.linalg.qr(rng.normal(size=(dim, scores.shape[1])))[0]
    features = scores @ axes.T + FEATURE_NOISE * rng.normal(size=(len(scores), dim))
    return (features / np.sqrt(2 * features.var(0).mean())).astype(np.float32)


def candidates_of_prompts(prompt: np.ndarray, usable: np.ndarray) -> np.ndarray | None:
    """Return int32[prompts, CANDIDATES_PER_PROMPT]: the first usable items of each prompt that has so many of them.

    prompt: int[items], the prompt of each item.  usable: bool[items]. Returns None where no prompt has enough.
    """
    items = pl.DataFrame({"prompt": prompt, "item": np.arange(len(prompt), dtype=np.int32)}).filter(usable)
    items = items.filter(pl.len().over("prompt") >= CANDIDATES_PER_PROMPT).sort("prompt", maintain_order=True)
    first = items.filter(pl.int_range(pl.len()).over("prompt") < CANDIDATES_PER_PROMPT)["item"].to_numpy()
    return first.reshape(-1, CANDIDATES_PER_PROMPT) if len(first) else None


def files_of_folder(file: str) -> list[Path]:
    """Return the jsonl and parquet files of a folder, or `file` itself if it is a file.

    Raises UserError where the folder has no such files.
    """
    path = Path(file)
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in (".jsonl", ".parquet")) if path.is_dir() else [path]
    if not found:
        raise UserError(
            f"the folder {path} has no jsonl or parquet files", "set file to the folder with the data files"
        )
    return found


def read_ultrafeedback(files: Sequence[Path], aspects: list[str]) -> pl.DataFrame:
    """Read prompt, response and one float column per aspect, for all responses that have a rating of every aspect.

    Responses with a rating outside UltraFeedback's scale are left out and counted in a note. Raises UserError where
    they are more than MAX_OFF_SCALE_RATE of the responses.
    """
    found, off_scale = [], []
    for file in files:
        for number, row in numbered_rows(file):
            try:
                for answer in row["completions"]:
                    ratings = [(answer["annotations"].get(aspect) or {}).get("Rating", "N/A") for aspect in aspects]
                    if all(re.fullmatch(r"\d+(\.\d+)?", str(rating)) for rating in ratings):
                        texts = row["instruction"], answer["response"]
                        if not all(isinstance(text, str) for text in texts):
                            raise TypeError("instruction or response is not a text")
                        scores = [float(rating) for rating in ratings]
                        if all(RATING_SCALE[0] <= score <= RATING_SCALE[1] for score in scores):
                            found.append((*texts, *scores))
                        else:
                            off_scale.append(f"{file}, row {number}: {dict(zip(aspects, scores, strict=True))}")
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{file}, row {number}: does not follow UltraFeedback's schema ({type(error).__name__}: {error})",
                    "expected: instruction, completions: [{response, annotations: {helpfulness: {Rating}, ...}}]",
                ) from error
    if off_scale:
        said = (
            f"{len(off_scale)} of {len(off_scale) + len(found)} responses have a rating outside "
            f"{RATING_SCALE[0]} to {RATING_SCALE[1]}; the first: {off_scale[0]}"
        )
        if len(off_scale) > MAX_OFF_SCALE_RATE * (len(off_scale) + len(found)):
            raise UserError(
                said, f"drop them, or bring all ratings to the scale of {RATING_SCALE[0]} to {RATING_SCALE[1]}"
            )
        print_note(f"left out: {said}")
    if not found:
        raise UserError(
            f"{', '.join(map(str, files))}: no response has a rating of {' and '.join(aspects)}",
            "check the annotations in the data",
        )
    return pl.DataFrame(found, schema=["prompt", "response", *aspects], orient="row")
