"""NP-DPO: a policy modulated by a neural process's encoding of a user's choices (Few-shot Steerable, 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning import policy
from harness.learning.dpo_training import TrainingSettings, TrainingStep, train_policy
from harness.learning.policy import Film, Policy
from harness.method import Predictor, Run, State, TaskFacts, Users
from harness.methods.dpo import Dpo, LoadedDpo
from harness.store.store import Store


@dataclass(frozen=True)
class NpDpo(Dpo):
    """A `dpo` policy conditioned on the context (eq. 8 and 24): adaptation encodes a user's pairs without any gradient.

    The context encoder takes the mean of the features of winner minus loser and applies a linear map, a layer norm and
    an MLP. Each block's output o becomes (1 + scale) o + shift, both linear in the latent (FiLM, eq. 23). Each step
    draws users and, for each of them, 0 to `context` context pairs and `targets` other pairs to predict.
    tune: what is trained besides the encoder: `lora` terms, all weights (`full`), or nothing (`film`).

    Departures: the encoder reads the task's features, of winner minus loser, where eq. 21 attends over a language
    model's embeddings of (winner, loser); the paper's own encoder learns nothing in so few steps. A whole block's
    output is modulated, not that of its attention, and the modulation is zero at first. All weights of a small model
    are trained at 1e-3 and the encoder at 5e-3, where the paper has LoRA of rank 512 on gemma-2b at 1e-6. Width 64
    replaces 256. A step has two users instead of one, and no target is among the context.

    Curves: as for `dpo`, but for training pairs only. State: as for `dpo`, and `scale`, the root mean square of the
    gaps. Users: the latent float32[n_users, width].
    """

    family = "language model"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"

    tune: Literal["lora", "full", "film"] = "full"  # type: ignore[assignment]  # a wider choice than dpo's
    steps: int = 540
    batch: int = 18
    targets: int = 9  # per user; from C.2, like `context`
    context: int = 6
    width: int = 64
    film_rate: float = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.targets, self.context, self.width) < 1 or self.film_rate <= 0 or self.batch % self.targets:
            raise UserError(
                "np_dpo: targets, context, width must be 1 or more, film_rate above 0, and batch a multiple of targets",
                "batch = 18, targets = 9",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def untrained_policy(self, seed: int, store: Store, n_features: int = 0) -> Policy:
        model = super().untrained_policy(seed, store).lm
        if self.tune == "film":
            model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            film = Film(
                n_features,
                self.width,
                len(policy.transformer_blocks(model)),
                model.config.get_text_config().hidden_size,
            )
        return Policy(model, film).to(policy.torch_device())

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        store = policy.require_run_store(run)
        tokens, reference = self.tokens_and_reference(train.items, store)
        return {"scale": torch.tensor(root_mean_square_gap(train))} | train_policy(
            self.untrained_policy(run.seed, store, train.gap.shape[1]),
            tokens,
            reference,
            self.training_schedule(train, tokens, run),
            TrainingSettings(self.beta, self.steps, {"lm": self.rate, "film": self.film_rate}),
            run=run,
        )

    def training_schedule(self, train: Pairs, tokens: policy.ItemTokens, run: Run) -> Callable[[int], TrainingStep]:
        """Return a function from a step to its users' contexts and targets."""
        count, size, scale = np.diff(train.offsets), self.batch // self.targets, root_mean_square_gap(train)
        able = np.flatnonzero(count > self.targets)
        if not len(able):
            raise ValueError(f"no training user has more than {self.targets} pairs: lower targets")

        def step_at(step: int) -> TrainingStep:
            rng = np.random.default_rng([run.seed, 1, step])
            parts, shown = [], []
            for user in rng.choice(able, size):
                own = train.offsets[user] + rng.permutation(count[user])
                n = min(int(rng.integers(self.context + 1)), len(own) - self.targets)
                parts.append(own[: self.targets])
                shown.append(own[self.targets : self.targets + n])
            rows = np.concatenate(parts)
            means = np.stack([gaps_to_winner(train, some).sum(0) / max(1, len(some)) / scale for some in shown])
            return TrainingStep(
                train.left[rows].astype(np.int64),
                train.right[rows].astype(np.int64),
                train.label[rows],
                np.repeat(means.astype(np.float32), self.targets, axis=0),
            )

        return step_at

    @contextmanager
    def open_predictor(self, state: State, run: Run) -> Iterator[Predictor]:
        held = LoadedNpDpo(self, state, policy.require_run_store(run))
        try:
            yield held
        finally:
            held.close()


class LoadedNpDpo(LoadedDpo):
    """A trained policy in memory that encodes users from their context pairs."""

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        total = np.zeros((context.n_users, context.items.known_features.shape[1]), dtype=np.float32)
        np.add.at(total, context.user, gaps_to_winner(context, np.arange(len(context))))
        mean = total / np.maximum(np.diff(context.offsets), 1)[:, None].astype(np.float32)
        film = self.model.film
        if film is None:
            raise ValueError("the policy has no network `film` to encode users with")
        with torch.inference_mode():
            shown = torch.from_numpy(mean).to(policy.torch_device()) / state["scale"].to(policy.torch_device())
            return (film.latent(shown).cpu().clone(),)

    def export(self, state: State, folder: Path) -> str:
        told = super().export(state, folder)
        film = {name: t.contiguous() for name, t in state.items() if name == "scale" or name.startswith("film.")}
        save_file(film, folder / "film.safetensors")
        return (
            f"{told}\nThese commands load the unmodulated model, which is not the policy of any user. The modulation for "
            "users is in film.safetensors, which only manyminds\nreads: harness.trials.export.load_trained_method returns method and state. "
            "Within method.open_predictor(state, Run(0, store=store)) as policy,\npolicy.adapt(state, context, Run(0)) encodes "
            "users from their choices, and policy.generate(state, users, user, prompts, Run(0)) writes for them."
        )


def root_mean_square_gap(pairs: Pairs) -> float:
    """Return the root mean square of all gaps' features, by which the encoder's inputs are divided; at least 1e-6."""
    return max(float(np.sqrt(np.square(pairs.gap).mean())), 1e-6)


def gaps_to_winner(pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """Return float32[n, d]: features of winner minus loser for the given rows; a soft label shortens the gap."""
    features = pairs.items.known_features
    return (features[pairs.left[rows]] - features[pairs.right[rows]]) * (2 * pairs.label[rows] - 1)[:, None]
