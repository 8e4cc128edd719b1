"""Direct preference optimisation of a policy: the training loop, alone or with other workers, which goes on after a kill."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.functional import logsigmoid
from torch.nn.parallel import DistributedDataParallel

from harness import parallel
from harness.atomic import write_atomically
from harness.learning.networks import learning_rate_share
from harness.learning.policy import (
    MAX_POLICY_TOKENS,
    ItemTokens,
    Policy,
    gpu_autocast,
    require_run_store,
    torch_device,
    transformer_blocks,
)
from harness.method import Run, State
from harness.models.tokens import batches_by_length

CHECKPOINT_SECONDS = (
    120.0  # between checkpoints: what a kill costs at most; MANYMINDS_CHECKPOINT_SECONDS says otherwise
)
WARMUP_SHARE = 0.05  # of the steps
MAX_GRADIENT_NORM = 1.0  # norm of the gradient of all weights together
ADAM_BYTES_PER_WEIGHT = 12  # bytes that each trained weight needs beside itself: its gradient and two moments
MAX_MEMORY_SHARE = 0.8  # of a GPU's memory that weights and moments may take; the rest is for a batch


class TrainingStep(NamedTuple):
    """The pairs of one step, drawn from seed and step alone."""

    left: np.ndarray  # int64[batch], items
    right: np.ndarray
    label: np.ndarray  # float32[batch], P(left preferred)
    shown: np.ndarray | None = None  # float32[batch, features]: mean gap of the context of each pair's user, see Film


def dpo_loss(margin: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """[n], nats: -log sigmoid of the margin toward the preferred side, averaged by the label (Rafailov et al. 2023, eq. 7).

    margin: beta times the policy's log-ratio left over right, less the reference's.
    """
    return -label * logsigmoid(margin) - (1 - label) * logsigmoid(-margin)


class TrainingSettings(NamedTuple):
    """Of the training. rates: learning rate by the first part of a tensor's name, `lm` or `film`."""

    beta: float
    steps: int
    rates: dict[str, float]


def train_policy(
    policy: Policy,
    tokens: ItemTokens,
    reference: torch.Tensor,
    step_at: Callable[[int], TrainingStep],
    settings: TrainingSettings,
    run: Run,
    held_out: Callable[[], dict[str, float]] | None = None,
) -> State:
    """Minimises the DPO loss of step_at(0), step_at(1), ... by Adam; returns the tensors it moved, by name.

    reference: float64[items], log-probabilities under the reference model. The rates rise linearly over the first WARMUP_SHARE
    of the steps and fall to zero as a cosine. held_out: logged ten times on the way. Several workers share each step's pairs; the sum of their gradients is
    that of one worker, but for rounding. A state is saved in run.checkpoint now and then, and training goes on from
    there: on a CPU to the same bits, for the same number of workers. ValueError where the loss is not finite.
    """
    sharded, whole, steps = needs_sharding(policy), wrap_for_workers(policy), settings.steps
    learned = policy.trained_tensors()
    optimizer = make_optimizer(learned, settings.rates)
    first, recent = restore_checkpoint(learned, optimizer, run)
    every = float(os.environ.get("MANYMINDS_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
    saved, read, busy = time.monotonic(), 0.0, 0.0
    for step in range(first, steps):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate_share(step, steps, WARMUP_SHARE)
        optimizer.zero_grad(set_to_none=True)
        drawn = step_at(step)
        found = accumulate_gradients(whole, tokens, reference, drawn, settings.beta)
        norm = clip_gradients(list(learned.values()))
        loss, margin, right, n_tokens = parallel.sum_over_workers(found).tolist()
        check_finite(loss, norm, step, drawn)
        optimizer.step()
        read, busy = read + n_tokens, busy + time.monotonic() - began
        recent.append((loss, margin, right))
        if (step + 1) % max(1, steps // 40) == 0:  # 40 points draw a curve; each is the mean since the one before
            loss, margin, right = np.mean(recent, axis=0)
            run.log(step=step + 1, train_loss=loss, train_margin=margin, train_accuracy=right)
            recent.clear()
        if held_out and not sharded and (step + 1) % max(1, steps // 10) == 0:
            run.log(**held_out())
        due = step + 1 == steps or time.monotonic() - saved >= every
        if run.checkpoint and parallel.first_workers_value(due):
            save_checkpoint(learned, optimizer, step + 1, recent, run)
            saved = time.monotonic()
    optimizer.zero_grad(set_to_none=True)  # gradients are as large as the model, which is opened again to be asked
    if steps > first:
        run.log(tokens_per_second=read / busy)
    return {name: gather_tensor(t.detach()).cpu().clone() for name, t in learned.items()}


def make_optimizer(learned: dict[str, torch.Tensor], rates: dict[str, float]) -> torch.optim.Optimizer:
    """Adam with a group of tensors for each learning rate, which the group keeps as `rate`."""
    groups = [
        {"params": [t for name, t in learned.items() if name.startswith(part)], "lr": rate, "rate": rate}
        for part, rate in rates.items()
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def check_finite(loss: float, norm: float, step: int, drawn: TrainingStep) -> None:
    """Raises ValueError, naming the step's item pairs, where the loss or the norm of its gradient is not finite."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        items = ", ".join(f"{a}:{b}" for a, b in zip(drawn.left.tolist(), drawn.right.tolist(), strict=True))
        raise ValueError(f"the loss is {loss:g} and its gradient {norm:g} at step {step}, of the item pairs {items}")


def accumulate_gradients(
    whole: torch.nn.Module, tokens: ItemTokens, reference: torch.Tensor, drawn: TrainingStep, beta: float
) -> torch.Tensor:
    """Adds this worker's part of the step's gradient; returns its part of [loss, margin, accuracy, tokens] float64.

    Of the pairs by length it takes every n-th, in batches under a budget of tokens that hold both sides of a pair. All
    workers have as many, since they gather each other's shards at every batch: some repeat a pair that does not count.
    """
    n, size = len(drawn.left), parallel.worker_count()
    length = np.maximum(tokens.length[drawn.left], tokens.length[drawn.right])
    order = np.argsort(-length, kind="stable")
    order = np.concatenate([order, order[-1:].repeat(-n % size)])
    mine, counts = order[parallel.worker_rank() :: size], np.arange(len(order))[parallel.worker_rank() :: size] < n
    found = torch.zeros(4, dtype=torch.float64)
    some = list(
        batches_by_length(2 * length[order[::size]], MAX_POLICY_TOKENS)
    )  # by the longest pair that any worker has
    for turn, places in enumerate(some):
        rows, weight = mine[places], torch.from_numpy(counts[places] / n).to(torch_device())
        items = np.concatenate([drawn.left[rows], drawn.right[rows]])
        shown = None
        if drawn.shown is not None:
            shown = torch.from_numpy(np.concatenate([drawn.shown[rows]] * 2)).to(torch_device())
        last = turn == len(some) - 1
        with whole.no_sync() if isinstance(whole, DistributedDataParallel) and not last else nullcontext():
            with gpu_autocast():
                said = whole(*tokens.padded_batch(items, torch_device()), shown)
            left, right = (said - reference[torch.from_numpy(items)].to(said)).chunk(2)
            margin = beta * (left - right)
            label = torch.from_numpy(drawn.label[rows]).to(margin)
            loss = weight @ dpo_loss(margin, label)
            (loss * size).backward()  # workers' gradients are averaged
        toward = margin.detach() * (2 * label - 1)
        correct = (toward.sign() + 1) / 2
        found[:3] += torch.stack([loss.detach(), weight @ toward, weight @ correct]).cpu()
        found[3] += tokens.length[items].reshape(2, -1)[:, counts[places]].sum()
    return found


def wrap_for_workers(policy: Policy) -> torch.nn.Module:
    """The policy as several workers train it: each whole (DDP), or where that does not fit a GPU in shards (FSDP).

    Shards spare gradients and moments, the most of it; to be loaded, and asked, the weights must fit each GPU whole.
    """
    if parallel.worker_count() == 1:
        return policy
    if needs_sharding(policy):
        from torch.distributed.fsdp import fully_shard

        for block in transformer_blocks(policy.lm):
            fully_shard(block)
        fully_shard(policy)
        return policy
    return DistributedDataParallel(policy)


def needs_sharding(policy: Policy) -> bool:
    """Whether weights, gradients and moments leave no room for a batch; MANYMINDS_SHARD=1 or 0 says so without asking."""
    if said := os.environ.get("MANYMINDS_SHARD"):
        return said == "1"
    if torch_device().type != "cuda":
        return False
    needed = sum(t.nbytes for t in policy.parameters()) + ADAM_BYTES_PER_WEIGHT * sum(
        t.numel() for t in policy.trained_tensors().values()
    )
    return needed > MAX_MEMORY_SHARE * torch.cuda.get_device_properties(torch_device()).total_memory


def clip_gradients(tensors: list[torch.Tensor]) -> float:
    """The norm of the gradient of all tensors together, which is made no longer than MAX_GRADIENT_NORM."""
    norm = torch.nn.utils.clip_grad_norm_(tensors, MAX_GRADIENT_NORM)
    return float(gather_tensor(norm))


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, where workers hold parts of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_checkpoint(
    learned: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, step: int, recent: list, run: Run
) -> None:
    """Weights, moments, step and curves so far, in one file, whole or not at all."""
    tensors = {f"weight/{name}": gather_tensor(t.detach()) for name, t in learned.items()}
    for name, t in learned.items():
        kept = optimizer.state[t]
        tensors |= {f"{moment}/{name}": gather_tensor(kept[moment]) for moment in ("exp_avg", "exp_avg_sq")}
    if parallel.worker_rank() == 0 and run.checkpoint is not None:
        content = safetensors.torch.save(
            {name: t.cpu().contiguous() for name, t in tensors.items()},
            metadata={"step": str(step), "curves": json.dumps(run.curves), "recent": json.dumps(recent)},
        )
        with require_run_store(run).os_errors_as_user_errors():
            write_atomically(run.checkpoint / "state.safetensors", content)


def restore_checkpoint(
    learned: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, run: Run
) -> tuple[int, list]:
    """Puts a saved state back, if there is one: the step to go on with, and what is not drawn yet of the curves."""
    if run.checkpoint is None:
        return 0, []
    file = run.checkpoint / "state.safetensors"
    if not parallel.first_workers_value(file.is_file()):
        return 0, []
    with safe_open(file, "pt") as kept:
        step, recent = int(kept.metadata()["step"]), json.loads(kept.metadata()["recent"])
        run.curves.update(json.loads(kept.metadata()["curves"]))
        for name, t in learned.items():
            with torch.no_grad():
                t.copy_(place_like(t, kept.get_tensor(f"weight/{name}")))
            optimizer.state[t] = {
                "step": torch.tensor(float(step)),
                "exp_avg": place_like(t, kept.get_tensor(f"exp_avg/{name}")),
                "exp_avg_sq": place_like(t, kept.get_tensor(f"exp_avg_sq/{name}")),
            }
    return step, recent


def place_like(other: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on the other's device, and in the same shards where workers hold parts of the other."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
