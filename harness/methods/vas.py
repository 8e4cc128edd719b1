"""Value-augmented sampling: a user's reward, foretold for every next token, tilts a language model as it writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import layer_norm

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning import policy
from harness.learning.linear import LinearMethod
from harness.learning.networks import apply_mlp, initial_mlp, train_network
from harness.learning.policy_sampling import write_responses
from harness.method import Run, State, TaskFacts, Users
from harness.methods.mixed_logit import MixedLogit
from harness.models.names import LanguageModel
from harness.models.tokens import batches_by_length, open_tokenizer
from harness.store.store import Store

HIDDEN_WIDTH = 256  # of the value head's hidden layer
TOKENS_PER_STEP = 2048  # tokens a step
LEARNING_RATE = 3e-3
VALIDATION_SHARE = 8  # every eighth text decides when the head has learned enough


@dataclass(frozen=True)
class Vas(LinearMethod):
    """log pi(a | s) = log base(a | s) + strength * w Q(s, a) + const (Han et al. 2024, as PReF uses it on PRISM).

    Rewards, adaptation and scores are `mixed_logit`'s on the task's features. Q(s, a) in R^axes foretells, from the
    base model's last hidden state h after s and the next token a, where a response will end on the axes along which the
    rewards of users drawn from the learned prior differ most; w is the user's place on them. Q = V(h) + G(h) e_a with
    e_a in R^rank: one matrix product for the whole vocabulary, where Han et al. run a value network on each of the
    likeliest tokens. The head is trained by regression on the responses of the training pairs, as they stand (Monte
    Carlo returns), so it knows what the task's responses do rather than what the base model's own would. `fit` holds a
    hidden state for each of their tokens.

    A user of whom nothing is known gets the prior's mean, which is about the base model where people are opposed. The
    reward is in log-odds of a choice, so `strength` is the inverse of DPO's beta. On validation users of `attributes`
    (40 shots) strengths of 1, 2 and 4 add 1.3, 2.6, 3.9 to the utility at 1.1, 4.6, 25 nats with 84 kinds of user (seed
    100); with two (seeds 100 and 101) .5, 1 and 2 add 1.3, 2.4, 3.6 at 1.1, 4.7, 26 nats. 1 is the largest at which, in
    both, the base model finds a token of what is written as likely as one of its own, to .05 nats, and texts still end.
    """

    generates: ClassVar[bool] = True
    trains_model: ClassVar[bool] = True  # for the GPU that its model is on; several workers find the same

    model: str = field(default="transformers:small", metadata={"identity": policy.canonical_policy_model})
    strength: float = 1.0
    axes: int = 8
    rank: int = 16
    steps: int = 400  # of the head's training
    max_tokens: int = 128  # of a response that is written

    def __post_init__(self) -> None:
        super().__post_init__()
        policy.parse_policy_model(self.model)
        if min(self.axes, self.rank, self.steps, self.max_tokens) < 1 or self.strength < 0:
            raise UserError("vas: axes, rank, steps or max_tokens below 1, or strength below 0", "strength = 1.0")

    def refuses(self, task: TaskFacts) -> str | None:
        return MixedLogit().refuses(task) if task.has_text else "needs items with text"

    @property
    def language_model(self) -> LanguageModel:
        return policy.parse_policy_model(self.model)

    @property
    def estimated_seconds(self) -> float:
        return 30.0  # with the project's small model

    def prepare_models(self, store: Store) -> None:
        self.language_model.check_available(store)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        run, store = replace(run, device="cpu"), policy.require_run_store(run)  # cpu: the head and the prior are small
        prior = MixedLogit().fit(train, validation, run)
        rows = np.unique(np.concatenate([train.left, train.right]))
        features = torch.from_numpy(train.items.known_features[rows]).double()
        targets, places = reward_axes(features - features.mean(0), prior, self.axes)
        hidden, token, text = hidden_states(
            self.language_model.model_folder(store),
            policy.tokenise_items(train.items, self.language_model, store),
            rows,
        )
        return (
            prior
            | {"places": places}
            | self.train_value_head(hidden, token, targets.float()[text], text % VALIDATION_SHARE == 0, run)
        )

    def train_value_head(
        self, hidden: torch.Tensor, token: torch.Tensor, target: torch.Tensor, held_out: torch.Tensor, run: Run
    ) -> State:
        """Q by least squares, from hidden float32[n, d], the token int64[n] that follows, and target float32[n, axes]."""
        generator = run.generator("vas")
        sizes = [hidden.shape[1], HIDDEN_WIDTH, target.shape[1] * (self.rank + 1)]
        vocabulary = (
            policy.model_config(self.language_model.model_folder(policy.require_run_store(run)))
            .get_text_config()
            .vocab_size
        )
        start = initial_mlp("value", sizes, generator) | {"tokens": torch.zeros(vocabulary, self.rank)}
        known, other = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]

        def misfit(state: State, rows: torch.Tensor) -> torch.Tensor:
            """Mean squared error of the reward of a user drawn from the prior: axes are in that unit."""
            value, gain = apply_value_head(state, hidden[rows])
            q = value + torch.einsum("njr,nr->nj", gain, state["tokens"][token[rows]])
            return (q - target[rows]).square().sum(1).mean()

        def loss(step: int) -> torch.Tensor:
            return misfit(start, known[torch.randint(len(known), (TOKENS_PER_STEP,), generator=generator)])

        def error(state: State) -> float:
            with torch.no_grad():
                return misfit(state, other).item()

        return train_network(start, loss, self.steps, LEARNING_RATE, run, held_out=error if len(other) else None)

    def generate(
        self, state: State, users: Users | None, user: np.ndarray, prompts: Sequence[str], run: Run
    ) -> pa.Table:
        folder = self.language_model.model_folder(policy.require_run_store(run))
        return write_responses(
            policy.load_language_model(folder),
            open_tokenizer(folder),
            prompts,
            run.seed,
            max_tokens=self.max_tokens,
            adjust_logits=None
            if users is None
            else self.logits_adjuster(state, users[0][torch.from_numpy(np.asarray(user)).long()]),
        )

    def logits_adjuster(self, state: State, weights: torch.Tensor) -> Callable:
        """What harness.learning.policy_sampling.write takes as `steer`, for rows with these weights float64[n, d]."""
        state = {name: tensor.to(policy.torch_device()) for name, tensor in state.items()}
        place = (weights.to(state["places"]) @ state["places"]).float()

        def steer(rows: np.ndarray, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            _, gain = apply_value_head(state, hidden.float())
            return logits + self.strength * torch.einsum("bj,btjr->btr", place[rows], gain) @ state["tokens"].T

        return steer


def apply_value_head(state: State, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """V float32[..., axes] and G float32[..., axes, rank] of hidden states float32[..., d]."""
    found = apply_mlp(state, "value", layer_norm(hidden, hidden.shape[-1:]))
    found = found.unflatten(-1, (-1, state["tokens"].shape[1] + 1))
    return found[..., 0], found[..., 1:]


def reward_axes(features: torch.Tensor, prior: State, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of centred features float64[items, d] on the n axes along which rewards differ most: float64[items, n].

    And what takes weights to the same axes, float64[d, n], so that place of item times place of user is about the
    reward. Axes are principal components of the rewards of users with weights mean + root v: turning v leaves it a unit
    normal, so an error on any axis counts as much as it does in the reward of such a user.
    """
    root = torch.cat([prior["mean"][:, None], prior["root"]], 1)
    turn = torch.linalg.svd(features @ root, full_matrices=False)[2][:n].T
    return features @ (root @ turn), torch.linalg.pinv(root).T @ turn


def hidden_states(
    folder: Path, tokens: policy.ItemTokens, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A row for each token of the responses of items `rows`, the one that ends it too.

    The model's last hidden state before it float32[n, d], the token int64[n], and the place of its item in `rows` int64[n].
    """
    opened = policy.load_language_model(folder)
    limit = policy.MAX_POLICY_TOKENS if policy.torch_device().type == "cuda" else policy.MAX_CPU_POLICY_TOKENS
    parts = []
    with torch.inference_mode():
        for some in batches_by_length(tokens.length[rows], limit):
            ids, mask, response = tokens.padded_batch(rows[some], policy.torch_device())
            hidden = opened.get_decoder()(ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            line, place = response.nonzero(as_tuple=True)
            found = hidden[line, place - 1].float(), ids[line, place], torch.from_numpy(some).to(line)[line]
            parts.append([part.cpu() for part in found])
    hidden, token, place = (torch.cat(part).clone() for part in zip(*parts, strict=True))
    return hidden, token, place
