"""Value-augmented sampling: a user's predicted reward, per next token, adjusts a language model's logits."""

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
from harness.models.inputs import open_tokenizer
from harness.models.names import LanguageModel
from harness.models.tokens import batches_by_length
from harness.store.store import Store

HIDDEN_WIDTH = 256  # of the value head's hidden layer
TOKENS_PER_STEP = 2048  # tokens per training step of the value head
VALUE_HEAD_LEARNING_RATE = 3e-3
VALIDATION_SHARE = 8  # every eighth text is held out to choose the head's weights


@dataclass(frozen=True)
class Vas(LinearMethod):
    """A policy log pi(a | s) = log base(a | s) + strength * w Q(s, a) + const (Han et al. 2024; used by PReF on PRISM).

    Rewards, adaptation and scores are those of `mixed_logit` on the task's features. The value head Q(s, a) in R^axes
    predicts a response's final coordinates from the base model's last hidden state h after s and the next token a. The
    axes are those along which the rewards of users drawn from the learned prior differ most; w is the user's
    coordinates on them. Q = V(h) + G(h) e_a with e_a in R^rank needs one matrix product for the whole vocabulary. `fit`
    keeps in memory a hidden state for each token of the training pairs' responses.

    Departures: the value is a person's reward, and one head serves all people, where Han et al. have a value for each
    reward. The head reads the base model's hidden state and adjusts the whole vocabulary, where they run a value
    network on each of the likeliest tokens. It is trained by regression on the training pairs' responses (Monte Carlo
    returns), so it learns how the task's responses end, not how the base model's own would. PReF takes its own rewards
    on PRISM; here they are those of `mixed_logit`.

    A user without context gets the prior's mean as weights. Where people oppose each other, that policy is close to the
    base model. The reward is in log-odds of a choice, so `strength` is the inverse of DPO's beta. On validation users
    of `attributes` (40 shots) with 84 kinds of user (seed 100), strengths of 1, 2 and 4 add 1.3, 2.6 and 3.9 to the
    utility, at 1.1, 4.6 and 25 nats of KL from the base model. With two kinds (seeds 100 and 101), strengths of .5, 1
    and 2 add 1.3, 2.4 and 3.6, at 1.1, 4.7 and 26 nats. Strength 1 is the largest of these that passes two checks in
    both cases: the base model gives the sampled tokens the same mean log-probability as its own samples, to .05 nats,
    and texts still end.
    """

    family = "language model"
    paper = "Han et al. 2024, Value Augmented Sampling"

    generates: ClassVar[bool] = True
    trains_model: ClassVar[bool] = True  # so that a trial gets a GPU; several workers compute the same result

    model: str = field(default="transformers:small", metadata={"identity": policy.canonical_policy_model})
    strength: float = 1.0
    axes: int = 8
    rank: int = 16
    steps: int = 400  # of training the value head
    max_tokens: int = 128  # of a generated response

    def __post_init__(self) -> None:
        super().__post_init__()
        policy.parse_policy_model(self.model)
        if min(self.axes, self.rank, self.steps, self.max_tokens) < 1 or self.strength < 0:
            raise UserError(
                "vas: axes, rank, steps and max_tokens must be 1 or more, strength 0 or more",
                "for example strength = 1.0",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        return MixedLogit().refuses(task) if task.has_text else "needs items with text"

    @property
    def language_model(self) -> LanguageModel:
        """The language model that the field `model` names."""
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
        """Fit Q by least squares.

        hidden: float32[n, d].  token: int64[n], the token that follows.  target: float32[n, axes].
        held_out: bool[n], rows used only to choose the weights with the lowest error.
        """
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
            """Return the mean over tokens of the squared error, summed over the axes.

            The axes have such units that this is the expected squared error of the reward of a user from the prior.
            """
            value, gain = apply_value_head(state, hidden[rows])
            q = value + torch.einsum("njr,nr->nj", gain, state["tokens"][token[rows]])
            return (q - target[rows]).square().sum(1).mean()

        def loss(step: int) -> torch.Tensor:
            return misfit(start, known[torch.randint(len(known), (TOKENS_PER_STEP,), generator=generator)])

        def error(state: State) -> float:
            with torch.no_grad():
                return misfit(state, other).item()

        return train_network(
            start, loss, self.steps, VALUE_HEAD_LEARNING_RATE, run, held_out=error if len(other) else None
        )

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
        """Return `adjust_logits` of `policy_sampling.write_responses` for users with these weights float64[n, d]."""
        state = {name: tensor.to(policy.torch_device()) for name, tensor in state.items()}
        place = (weights.to(state["places"]) @ state["places"]).float()

        def adjust(rows: np.ndarray, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            _, gain = apply_value_head(state, hidden.float())
            return logits + self.strength * torch.einsum("bj,btjr->btr", place[rows], gain) @ state["tokens"].T

        return adjust


def apply_value_head(state: State, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return V float32[..., axes] and G float32[..., axes, rank] of hidden states float32[..., d]."""
    found = apply_mlp(state, "value", layer_norm(hidden, hidden.shape[-1:]))
    found = found.unflatten(-1, (-1, state["tokens"].shape[1] + 1))
    return found[..., 0], found[..., 1:]


def reward_axes(features: torch.Tensor, prior: State, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items' coordinates float64[items, n] on the n axes along which rewards differ most, and a map.

    The map float64[d, n] takes users' weights to coordinates on the same axes. The inner product of an item's and a
    user's coordinates approximates the reward. Axes are principal components of the rewards of users with weights
    mean + root v, v ~ N(0, I). On these axes, too, such users' coordinates have variance 1. So an error of an item's
    coordinate counts equally on all axes, namely as much as it changes the reward of such a user.
    features: float64[items, d], centred.
    """
    root = torch.cat([prior["mean"][:, None], prior["root"]], 1)
    turn = torch.linalg.svd(features @ root, full_matrices=False)[2][:n].T
    return features @ (root @ turn), torch.linalg.pinv(root).T @ turn


def hidden_states(
    folder: Path, tokens: policy.ItemTokens, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute a row for each response token of the items `rows`, including the end-of-text token.

    Returns the model's last hidden state before the token float32[n, d], the token int64[n], and the index of its item
    in `rows` int64[n].
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
