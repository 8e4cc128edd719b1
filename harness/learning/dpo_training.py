"""Direct preference optimisation of a policy: a training loop for one or several workers that resumes after a kill."""

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

# Seconds between checkpoints, the most work a kill can cost. MANYMINDS_CHECKPOINT_SECONDS overrides it.
CHECKPOINT_SECONDS = 120.0
WARMUP_SHARE = 0.05  # of the steps
HELD_OUT_PAIRS = 64  # scored during training
MAX_GRADIENT_NORM = 1.0  # norm of the gradient of all weights together
ADAM_BYTES_PER_WEIGHT = 12  # extra bytes per trained weight: its gradient and two moments
MAX_MEMORY_SHARE = 0.8  # share of a GPU's memory for weights, gradients and moments; the rest is for a batch


class TrainingStep(NamedTuple):
    """The pairs of one training step; they depend on the seed and the step alone."""

    left: np.ndarray  # int64[batch], items
    right: np.ndarray
    label: np.ndarray  # float32[batch], P(left preferred)
    # float32[batch, features]: the features of winner minus loser, averaged over the context of each pair's user; the
    # input of policy.Film
    context_gap: np.ndarray | None = None


def dpo_loss(margin: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the DPO loss [n] in nats (Rafailov et al. 2023, eq. 7).

    The losses for left preferred and for right preferred are added, weighted by label and 1 - label.

    margin: beta times (the policy's log-ratio of left to right minus the reference model's).
    label: P(left preferred).
    """
    return -label * logsigmoid(margin) - (1 - label) * logsigmoid(-margin)


class TrainingSettings(NamedTuple):
    """Settings of `train_policy`.

    rates: learning rate by the first part of a tensor's name, `lm` or `film`.
    """

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
    """Minimise the DPO loss of step_at(0), step_at(1), ... by Adam; return the trained tensors by name.

    The learning rates rise linearly over the first WARMUP_SHARE of the steps and fall to zero as a cosine. Several
    workers share each step's pairs, and their gradients add up to the gradient that a single worker would compute, up
    to rounding. Checkpoints go to run.checkpoint, and training resumes from the last one: on a CPU bit for bit, for the
    same number of workers. Raises ValueError where the loss or the norm of its gradient is not finite.
    reference: float64[items], log-probabilities under the reference model.
    held_out: returns named values from held-out data, logged about ten times during training, less often where steps are
        few or small, and not at all where the policy is sharded.
    """
    sharded, wrapped, steps = needs_sharding(policy), wrap_for_workers(policy), settings.steps
    learned = policy.trained_tensors()
    optimizer = make_optimizer(learned, settings.rates)
    first, recent = restore_checkpoint(learned, optimizer, run)
    seconds_between = float(os.environ.get("MANYMINDS_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
    saved_at, tokens_read, busy_seconds = time.monotonic(), 0.0, 0.0
    for step in range(first, steps):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate_share(step, steps, WARMUP_SHARE)
        optimizer.zero_grad(set_to_none=True)
        pairs = step_at(step)
        found = accumulate_gradients(wrapped, tokens, reference, pairs, settings.beta)
        norm = clip_gradients(list(learned.values()))
        loss, margin, accuracy, n_tokens = parallel.sum_over_workers(found).tolist()
        check_finite(loss, norm, step, pairs)
        optimizer.step()
        tokens_read, busy_seconds = tokens_read + n_tokens, busy_seconds + time.monotonic() - began
        recent.append((loss, margin, accuracy))
        if (step + 1) % max(1, steps // 40) == 0:  # a curve has 40 points; each is the mean since the previous one
            loss, margin, accuracy = np.mean(recent, axis=0)
            run.log(step=step + 1, train_loss=loss, train_margin=margin, train_accuracy=accuracy)
            recent.clear()
        if held_out and not sharded and (step + 1) % held_out_every(steps, len(pairs.left)) == 0:
            run.log(**held_out())
        due = step + 1 == steps or time.monotonic() - saved_at >= seconds_between
        if run.checkpoint and parallel.first_workers_value(due):
            save_checkpoint(learned, optimizer, step + 1, recent, run)
            saved_at = time.monotonic()
    optimizer.zero_grad(set_to_none=True)  # free the gradients before a second copy of the model is loaded for scoring
    if steps > first:
        run.log(tokens_per_second=tokens_read / busy_seconds)
    return {name: gather_tensor(t.detach()).cpu().clone() for name, t in learned.items()}


def held_out_every(steps: int, batch: int) -> int:
    """Return after how many steps held-out pairs are scored: a tenth of all, or more, so that scoring costs less than training.

    Scoring a pair costs a third of training on it, and HELD_OUT_PAIRS are scored.
    """
    return min(steps, max(steps // 10, HELD_OUT_PAIRS // batch, 1))


def make_optimizer(learned: dict[str, torch.Tensor], rates: dict[str, float]) -> torch.optim.Optimizer:
    """Return Adam with one group of tensors per learning rate; each group keeps its full rate as `rate`."""
    groups = [
        {"params": [t for name, t in learned.items() if name.startswith(part)], "lr": rate, "rate": rate}
        for part, rate in rates.items()
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def check_finite(loss: float, norm: float, step: int, pairs: TrainingStep) -> None:
    """Raise ValueError, naming the step's item pairs, where the loss or the norm of its gradient is not finite."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        items = ", ".join(f"{a}:{b}" for a, b in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
        raise ValueError(
            f"the loss is {loss:g} and the norm of its gradient {norm:g} at step {step}, for the item pairs {items}"
        )


def accumulate_gradients(
    wrapped: torch.nn.Module, tokens: ItemTokens, reference: torch.Tensor, pairs: TrainingStep, beta: float
) -> torch.Tensor:
    """Add this worker's part of the step's gradient; return its part of [loss, margin, accuracy, tokens] float64.

    Pairs are sorted by length, and each of W workers takes every W-th. A batch holds both responses of its pairs, within
    a budget of tokens. All workers have equally many batches, because they gather each other's shards at every batch.
    Where the pairs do not divide evenly, some workers repeat a pair with weight zero.

    wrapped: the policy, as `wrap_for_workers` returns it.
    """
    n, size = len(pairs.left), parallel.worker_count()
    length = np.maximum(tokens.length[pairs.left], tokens.length[pairs.right])
    order = np.argsort(-length, kind="stable")
    order = np.concatenate([order, order[-1:].repeat(-n % size)])
    mine = order[parallel.worker_rank() :: size]
    # bool[pairs of this worker]: false for a repeated pair, which has weight zero
    is_own_pair = np.arange(len(order))[parallel.worker_rank() :: size] < n
    found = torch.zeros(4, dtype=torch.float64)
    # lengths are those of the longest of every W successive pairs, so that all workers make the same batches
    batches = list(batches_by_length(2 * length[order[::size]], MAX_POLICY_TOKENS))
    for turn, places in enumerate(batches):
        rows, weight = mine[places], torch.from_numpy(is_own_pair[places] / n).to(torch_device())
        items = np.concatenate([pairs.left[rows], pairs.right[rows]])
        context_gap = None
        if pairs.context_gap is not None:
            context_gap = torch.from_numpy(np.concatenate([pairs.context_gap[rows]] * 2)).to(torch_device())
        last = turn == len(batches) - 1
        with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext():
            with gpu_autocast():
                log_probability = wrapped(*tokens.padded_batch(items, torch_device()), context_gap)
            left, right = (log_probability - reference[torch.from_numpy(items)].to(log_probability)).chunk(2)
            margin = beta * (left - right)
            label = torch.from_numpy(pairs.label[rows]).to(margin)
            loss = weight @ dpo_loss(margin, label)
            # times `size`, since gradients are averaged over workers and their sum is wanted
            (loss * size).backward()
        label_margin = margin.detach() * (2 * label - 1)  # positive where the policy agrees with the label
        correct = (label_margin.sign() + 1) / 2
        found[:3] += torch.stack([loss.detach(), weight @ label_margin, weight @ correct]).cpu()
        found[3] += tokens.length[items].reshape(2, -1)[:, is_own_pair[places]].sum()
    return found


def wrap_for_workers(policy: Policy) -> torch.nn.Module:
    """Wrap the policy for several workers: whole copies (DDP), or shards (FSDP).

    The policy is sharded where weights, gradients and moments together leave no room for a batch (`needs_sharding`).
    Sharding divides the gradients and moments, which need most of the memory. For loading and scoring the whole
    weights must still fit each GPU.
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
    """Return whether weights, gradients and moments leave no room for a batch; MANYMINDS_SHARD=1 or 0 overrides this."""
    if override := os.environ.get("MANYMINDS_SHARD"):
        return override == "1"
    if torch_device().type != "cuda":
        return False
    needed = sum(t.nbytes for t in policy.parameters()) + ADAM_BYTES_PER_WEIGHT * sum(
        t.numel() for t in policy.trained_tensors().values()
    )
    return needed > MAX_MEMORY_SHARE * torch.cuda.get_device_properties(torch_device()).total_memory


def clip_gradients(tensors: list[torch.Tensor]) -> float:
    """Clip the joint gradient of all tensors to the norm MAX_GRADIENT_NORM; return its norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(tensors, MAX_GRADIENT_NORM)
    return float(gather_tensor(norm))


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor where workers hold shards of it, else the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_checkpoint(
    learned: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, step: int, recent: list, run: Run
) -> None:
    """Save weights, moments, step and curves so far in one file, atomically."""
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
    """Restore a saved checkpoint if there is one; return the next step and the values not yet logged to the curves."""
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
    """Move the whole tensor to the other's device, and shard it in the same way where the other is sharded."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
