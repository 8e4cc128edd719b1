"""Small networks as plain dicts of tensors, and the training loop that methods with such networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch.nn.functional import gelu, linear

from harness.method import Run, State


def initial_mlp(prefix: str, sizes: Sequence[int], generator: torch.Generator) -> State:
    """Draw layers `prefix.0.weight`, `prefix.0.bias`, ... from sizes[0] inputs to sizes[-1] outputs.

    All entries are uniform in +-1/sqrt(inputs of the layer).
    """
    state = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        for name, shape in (("weight", (n_out, n_in)), ("bias", (n_out,))):
            state[f"{prefix}.{i}.{name}"] = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(n_in)
    return state


def apply_mlp(state: State, prefix: str, x: torch.Tensor, activation: Callable = gelu) -> torch.Tensor:
    """Return float32[..., sizes[-1]]: the network's output for inputs float32[..., sizes[0]]."""
    for i in range(sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in state)):
        x = linear(activation(x) if i else x, state[f"{prefix}.{i}.weight"], state[f"{prefix}.{i}.bias"])
    return x


def learning_rate_share(step: int, steps: int, warmup: float = 0.05) -> float:
    """Return the share of the full learning rate at a step: it rises linearly, then falls to 0 as a cosine.

    warmup: the share of the steps that the warm-up takes.
    """
    first = max(1, round(warmup * steps))
    return (step + 1) / first if step < first else (1 + math.cos(math.pi * (step - first) / (steps - first))) / 2


def train_network(
    state: State,
    loss: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
    run: Run,
    warmup: float = 0.05,
    name: str = "train_loss",
    held_out: Callable[[State], float] | None = None,
) -> State:
    """Minimise loss(step) over the tensors of `state`, in place, by Adam; return them detached.

    The rate follows `learning_rate_share`.
    held_out: a held-out loss, evaluated ten times during training; the tensors with its lowest value are returned.
    """
    for tensor in state.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(state.values(), lr=rate, fused=True)
    best, lowest = None, math.inf
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate_share(step, steps, warmup)
        optimizer.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        optimizer.step()
        if step % max(1, steps // 200) == 0:  # 200 points are enough for a curve
            run.log(**{name: value.item()})
        if held_out and (step + 1) % max(1, steps // 10) == 0:
            now = {key: tensor.detach() for key, tensor in state.items()}
            reached = held_out(now)
            run.log(held_out=reached)
            if reached < lowest:
                best, lowest = {key: tensor.clone() for key, tensor in now.items()}, reached
    return best or {key: tensor.detach() for key, tensor in state.items()}
