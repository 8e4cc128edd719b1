"""ICRA: in-context reward adaptation by one trained matrix or a small GPT-2, from choices (and response times)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, softplus

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning.factors import whitening_matrix
from harness.learning.linear import LinearMethod, padded_gaps
from harness.learning.networks import train_network
from harness.learning.priors import best_prior_on_validation
from harness.method import Run, State, TaskFacts, Users
from harness.methods.moment import Signal, answer_signals, mean_signed_gaps, refusal_without_times, shortest_seconds
from harness.search_space import SearchSpace, Span

# Strengths of the ridge, each divided by the number of training users; one of these seven is selected on validation
# users.
RIDGE_STRENGTHS = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.1)
# Most pairs in a training context of the network: as many as the paper shows at inference; training takes a minute.
MAX_TRAINING_CONTEXT = 60
USERS_PER_CHUNK = 64  # users per forward pass of the network
TRANSFORMER_HEADS = 4  # attention heads in each layer of the network


@dataclass(frozen=True)
class Icra(LinearMethod):
    """A trained model that predicts the answer to a pair x_q from the context's (x_i, signal_i), without fitting users.

    x: the features of left minus those of right.
    `signal`: "choice" is the answer y = 2 label - 1 (eq. 2). "response_time" is y divided by the response time; if
    several annotators answer a pair, y and the time are their means (section 4).

    `model="linear"`: the output is xqT G s with s = mean of signal_i x_i (eq. 4). With "choice" the output is the
    log-odds, and G minimises the cross-entropy of sigmoid(output) (eq. 5). With "response_time" the output is half the
    log-odds, and G minimises the squared error to the query's own signal (eq. 9). In training every pair of a user is a
    query once, and its context is all other pairs of that user, or the next `length` of them.

    `model="gpt2"`: a network of GPT-2's blocks reads tokens (x_i, signal_i), then (x_q, 0), and is trained with the
    same two losses. Each context pair is flipped so that its signal is positive, and the output is
    (f(x_q) - f(-x_q)) / 2, so that sides carry no information. A pair without a signal (a tie) has x = 0, because the
    sign of x would reveal the side. Training contexts have 0 to `length` pairs.

    Departures: for `linear`, a ridge pulls G towards a multiple of E[x xT]^-1, the matrix of the untrained method
    `moment`; it is selected on validation users, and the paper has none. Response times are clipped from below, as in
    `moment`. For `gpt2`, the size: two layers of width 64 with four heads, trained from scratch in 600 steps, where the
    paper has a GPT-2. There are no positions, attention within the context is full, because the context is a set, and
    the flips above are added.

    Compare the two models at the same `length`, because longer training contexts help people unlike those in training.
    On `response_times` (ten annotators, 60 context pairs), the sign accuracy of G is lower for such people than for
    people like those in training: by .05 after training with contexts of 199 pairs, and by .13 after training with 60
    pairs, the default of the network.
    """

    family = "linear"
    paper = "Sun et al. 2026, ICRA"
    version = 2
    search_space: ClassVar[SearchSpace] = {"length": Span(3, 300, whole=True)}

    model: Literal["linear", "gpt2"] = "linear"
    signal: Signal = "choice"
    length: int = 0  # most pairs in a training context; 0: all others of the user (linear), or 60 (gpt2)
    width: int = 64  # gpt2: length of a token's vector in the network
    layers: int = 2  # gpt2: number of transformer blocks
    steps: int = 600  # gpt2: training steps, each of 64 users with 10 queries
    rate: float = 1e-3  # gpt2: learning rate of Adam

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            min(self.width, self.layers, self.steps) < 1
            or self.width % TRANSFORMER_HEADS
            or self.length < 0
            or self.rate <= 0
        ):
            raise UserError(
                f"icra: width must be a multiple of {TRANSFORMER_HEADS}, layers and steps 1 or more, length 0 or more, "
                "and rate above 0",
                "for example width = 64, layers = 2, steps = 600, length = 0, rate = 1e-3",
            )

    @property
    def has_rewards(self) -> bool:
        return self.model != "gpt2"

    def refuses(self, task: TaskFacts) -> str | None:
        if task.feature_dim is not None and task.feature_dim > 1024:
            return "needs at most 1,024 features, because it computes d x d matrices of d features"
        return refusal_without_times(self.signal, task) or super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        if self.model == "gpt2":
            return train_transformer(self, train, run)
        return best_prior_on_validation(
            LinearAttention(train, self.signal, self.length, run),
            validation,
            lambda state, c: self.score(state, self.adapt(state, c, run), validation.query),
        )

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        if self.model == "gpt2":
            return context_tokens(state, context, self.signal)
        return (self.answer_log_odds(mean_signed_gaps(context, self.signal, state["floor"]) @ state["gamma"].T),)

    def answer_log_odds(self, output: torch.Tensor) -> torch.Tensor:
        """Convert the model's output, which is the log-odds for choices and half the log-odds for response times."""
        return output if self.signal == "choice" else 2 * output

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        if self.model == "gpt2":
            raise NotImplementedError("icra with model = gpt2 scores pairs only; call `score`")
        return super().reward(state, users, items, user, item)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        if self.model == "linear":
            return super().score(state, users, query)
        answers = []
        for start in range(0, query.n_users, USERS_PER_CHUNK):
            part = query.chunk(start, min(start + USERS_PER_CHUNK, query.n_users))
            if len(part):
                X, _, mask = padded_gaps(part)
                X = (X @ state["white"]).float()
                z = transformer_answers(state, users[0][start : start + len(X)], users[1][start : start + len(X)], X)
                answers.append(z[mask.bool()])
        return self.answer_log_odds(torch.cat(answers))


class LinearAttention(Sequence[State]):
    """One state for each of RIDGE_STRENGTHS, fitted when it is asked for: {"gamma": G, "floor": see `shortest_seconds`}.

    Each G, float64[d, d], minimises a convex loss; the search starts at the minimum found before. In coordinates where
    E[x xT] = I the matrix is a I + D, with a number a, and the ridge applies to D.
    """

    def __init__(self, train: Pairs, signal: Signal, length: int, run: Run) -> None:
        self.signal, self.run, self.users = signal, run, train.n_users
        self.white, self.floor = whitening_matrix(train), shortest_seconds(train)
        X = torch.from_numpy(train.gap).double() @ self.white
        self.own = answer_signals(train, signal, self.floor)
        self.label = torch.from_numpy(train.label).double()
        S = moments_of_others(train, self.own[:, None] * X, length)
        self.size = float(S.square().mean().sqrt()) or 1.0
        self.S = S / self.size
        # the same pair is often put to many people; its x is then multiplied once
        _, first, self.pair = np.unique(
            np.stack([train.left, train.right]), axis=1, return_index=True, return_inverse=True
        )
        self.X = X[first]
        self.order, self.start = np.argsort(self.pair, kind="stable"), np.r_[0, np.cumsum(np.bincount(self.pair))]
        self.flat = np.zeros(1 + X.shape[1] ** 2)
        self.fitted: dict[int, State] = {}

    def __len__(self) -> int:
        return len(RIDGE_STRENGTHS)

    def __getitem__(self, place):
        if place not in self.fitted:
            ridge = RIDGE_STRENGTHS[place] / self.users
            found = minimize(
                self._loss_and_slope, self.flat, (ridge,), method="L-BFGS-B", jac=True, options={"maxiter": 200}
            )
            self.flat = found.x
            self.run.log(train_loss=found.fun, iterations=found.nit)
            G = self._matrix(torch.from_numpy(found.x.copy()))
            self.fitted[place] = {"gamma": self.white @ G @ self.white / self.size, "floor": self.floor}
        return self.fitted[place]

    def _matrix(self, flat: torch.Tensor) -> torch.Tensor:
        """Return a I + D."""
        d = len(self.white)
        return flat[1:].view(d, d) + flat[0] * torch.eye(d, dtype=torch.float64)

    def _loss_and_slope(self, flat: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
        point, n = torch.from_numpy(flat), len(self.S)
        z = torch.linalg.vecdot((self.X @ self._matrix(point))[self.pair], self.S)
        if self.signal == "choice":
            loss, slope = (softplus(z) - self.label * z).mean(), torch.sigmoid(z) - self.label
        else:
            loss, slope = (z - self.own).square().mean() / 2, z - self.own
        sums = sparse.csr_array((slope.numpy()[self.order], self.order, self.start), (len(self.X), n)) @ self.S.numpy()
        gradient, D = self.X.T @ torch.from_numpy(sums) / n, point[1:]
        value = loss + ridge / 2 * D.square().sum()
        return float(value), torch.cat([gradient.trace()[None], gradient.flatten() + ridge * D]).numpy()


def moments_of_others(pairs: Pairs, rows: torch.Tensor, length: int) -> torch.Tensor:
    """Return float64[n, d]: for each row, the mean of the next `length` rows of the same user, cyclically.

    length 0: the mean of all other rows of that user.
    """
    start, stop = (torch.from_numpy(pairs.offsets[pairs.user + end]) for end in (0, 1))
    size = stop - start - 1 if length == 0 else (stop - start - 1).clamp(max=length)
    total = torch.cat([torch.zeros_like(rows[:1]), rows.cumsum(0)])
    first = torch.arange(1, len(rows) + 1)
    last = first + size
    found = total[torch.minimum(last, stop)] - total[first] + total[start + (last - stop).clamp(min=0)] - total[start]
    return found / size.clamp(min=1)[:, None]


def train_transformer(method: Icra, train: Pairs, run: Run) -> State:
    """Train the network on random contexts and queries of random training users; return its tensors and input scales."""
    white, floor = whitening_matrix(train), shortest_seconds(train)
    scale = answer_signals(train, method.signal, floor).square().mean().sqrt().clamp(min=1e-6)
    inputs = {"white": white, "scale": scale, "floor": floor}
    draw, d, width = run.generator("icra"), len(white), method.width

    def normal(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(*shape, generator=draw)  # the initial scale of GPT-2

    net = {"embed.weight": torch.randn(width, d + 1, generator=draw) / (d + 1) ** 0.5, "embed.bias": torch.zeros(width)}
    for i in range(method.layers):
        net |= {f"{i}.norm1": torch.ones(width), f"{i}.norm2": torch.ones(width)}
        shapes = {
            "qkv": (3 * width, width),
            "out": (width, width),
            "up": (4 * width, width),
            "down": (width, 4 * width),
        }
        for name, shape in shapes.items():
            net |= {f"{i}.{name}.weight": normal(*shape), f"{i}.{name}.bias": torch.zeros(shape[0])}
    net |= {"norm": torch.ones(width), "head": normal(1, width)}

    T, mask = context_tokens(inputs, train, method.signal)
    length, asked = min(method.length or MAX_TRAINING_CONTEXT, T.shape[1] - 1), max(1, min(10, T.shape[1] // 2))
    users = torch.from_numpy(np.flatnonzero(np.diff(train.offsets)))

    def loss(step: int) -> torch.Tensor:
        chosen = users[torch.randint(len(users), (64,), generator=draw)]
        order = (torch.rand(64, T.shape[1], generator=draw) + ~mask[chosen]).argsort(1)[:, : asked + length]
        t, real = T[chosen[:, None], order], mask[chosen[:, None], order]
        # Of each user's drawn pairs the first `asked` are the queries, and the next `shown` are the context.
        shown = torch.randint(length + 1, (64, 1), generator=draw)
        context = real[:, asked:] & (torch.arange(order.shape[1] - asked) < shown)
        z = transformer_answers(net, t[:, asked:], context, t[:, :asked, :d])[real[:, :asked]]
        target = t[:, :asked, d][real[:, :asked]]
        if method.signal == "choice":  # the signal 2 label - 1 becomes the label again
            return (softplus(z) - (1 + target * scale) / 2 * z).mean()
        return (z / scale - target).square().mean()

    return train_network(net, loss, method.steps, method.rate, run) | inputs


def context_tokens(state: State, pairs: Pairs, signal: Signal) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens float32[n_users, n, d + 1] and their mask bool[n_users, n].

    A token is a pair's whitened gap and its signal divided by `scale`, both times -1 where the signal is negative.
    """
    counts = np.diff(pairs.offsets)
    own = answer_signals(pairs, signal, state["floor"]) / state["scale"]
    gap = torch.from_numpy(pairs.gap).double() @ state["white"]
    rows = torch.cat([torch.where(own[:, None] < 0, -gap, gap), own.abs()[:, None]], 1)
    found = torch.zeros(pairs.n_users, int(counts.max(initial=0)), rows.shape[1])
    user, rank = torch.from_numpy(pairs.user).long(), torch.from_numpy(pairs.rank).long()
    found[user, rank] = rows.float()
    return found, torch.arange(found.shape[1]) < torch.from_numpy(counts)[:, None]


def transformer_answers(state: State, context: torch.Tensor, mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return float32[users, queries]: (f(x) - f(-x)) / 2, where f(x) is the network's output for a query x.

    Every token attends to the context and itself, so no query attends to another.
    context, mask: see `context_tokens`.  query: float32[users, queries, d], whitened gaps.
    """
    context = context * (context[..., -1:] > 0)  # a tie has no preferred side, so its x is set to zero
    ask = torch.cat([query, -query], 1)
    ask = torch.cat([ask, ask.new_zeros(*ask.shape[:2], 1)], 2)
    h = linear(torch.cat([context, ask], 1), state["embed.weight"], state["embed.bias"])
    n, width = h.shape[1], h.shape[2]
    seen = torch.cat([mask, mask.new_zeros(len(mask), ask.shape[1])], 1)[:, None, None] | torch.eye(n, dtype=torch.bool)
    for i in range(sum(name.endswith(".norm1") for name in state)):
        x = layer_norm(h, (width,), state[f"{i}.norm1"])
        qkv = linear(x, state[f"{i}.qkv.weight"], state[f"{i}.qkv.bias"])
        q, k, v = qkv.view(len(h), n, 3, TRANSFORMER_HEADS, -1).permute(2, 0, 3, 1, 4)
        x = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(h.shape)
        h = h + linear(x, state[f"{i}.out.weight"], state[f"{i}.out.bias"])
        x = layer_norm(h, (width,), state[f"{i}.norm2"])
        x = gelu(linear(x, state[f"{i}.up.weight"], state[f"{i}.up.bias"]))
        h = h + linear(x, state[f"{i}.down.weight"], state[f"{i}.down.bias"])
    plus, minus = (
        linear(layer_norm(h[:, context.shape[1] :], (width,), state["norm"]), state["head"]).squeeze(2).chunk(2, 1)
    )
    return (plus - minus) / 2
