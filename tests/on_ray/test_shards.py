"""Policies trained by two processes, with all weights (DDP) or half of each (FSDP), equal those of one process."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import distributed

from harness.data import TEXT_SCHEMA, Items, Pairs, Panel
from harness.learning import dpo_training
from harness.method import Run
from harness.models import small
from harness.registry import PROJECT_ROOT, make_instance
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store

USERS, PAIRS, STEPS, LATER = 4, 6, 6, 3
METHODS = {
    "dpo": {"tune": "lora", "rank": 4, "rate": 1e-2},
    "np_dpo": {"tune": "full", "targets": 1, "context": 3},
}
CASES = [("dpo", "1"), ("np_dpo", "1"), ("np_dpo", "0")]  # and whether in shards
WORK = "import sys; from pathlib import Path; from tests.on_ray.test_shards import work; work(Path(sys.argv[1]), int(sys.argv[2]))"


def data() -> Pairs:
    rng, n = np.random.default_rng(0), USERS * PAIRS
    prompts = [PROMPTS[i] for i in np.repeat(rng.integers(len(PROMPTS), size=n), 2)]
    responses = [write_response(p, int(s)) for p, s in zip(prompts, rng.integers(1 << 30, size=2 * n), strict=True)]
    items = Items(rng.normal(size=(2 * n, 3)).astype(np.float32), pa.table([prompts, responses], schema=TEXT_SCHEMA))
    left, user = np.arange(0, 2 * n, 2, dtype=np.int32), np.repeat(np.arange(USERS, dtype=np.int32), PAIRS)
    return Pairs(
        user, np.arange(USERS, dtype=np.int32), left, left + 1, rng.integers(0, 2, n).astype(np.float32), items
    )


def fit(folder: Path, name: str, checkpoint: Path | None = None, kept: Path | None = None) -> dict[str, torch.Tensor]:
    """What training finds in steps of an odd number of pairs and several batches.

    What is saved in `checkpoint` before step LATER is copied to `kept`.
    """
    method = make_instance(
        "method", name, {"model": f"transformers:{folder / 'lm'}", "steps": STEPS, "batch": 5} | METHODS[name]
    )
    train, schedule = data(), type(method).training_schedule

    def watched(*given):
        drawn = schedule(*given)

        def step_at(step):
            if step == LATER and kept:
                shutil.copytree(checkpoint, kept)
            return drawn(step)

        return step_at

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYMINDS_CHECKPOINT_SECONDS", "0")
        patch.setattr(dpo_training, "MAX_POLICY_TOKENS", 500)  # of one or two pairs
        patch.setattr(type(method), "training_schedule", watched)
        return method.fit(
            train, Panel(train.first(2), train), Run(0, checkpoint=checkpoint, store=Store(folder / "store"))
        )


def work(folder: Path, rank: int) -> None:
    """Run one of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, shard in CASES:
        os.environ["MANYMINDS_SHARD"] = shard
        found = fit(folder, name, folder / f"all_{name}{shard}", folder / f"kept_{name}{shard}" if rank == 0 else None)
        if rank == 0:
            safetensors.torch.save_file(found, folder / f"{name}{shard}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder in which two processes have trained every case."""
    folder = tmp_path_factory.mktemp("shards")
    small.build_small_model(folder / "lm", steps=0)
    Store(folder / "store").open()
    command, home = [sys.executable, "-c", WORK, str(folder)], PROJECT_ROOT
    workers = [subprocess.Popen([*command, rank], cwd=home) for rank in "01"]
    try:
        assert [worker.wait(timeout=480) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Return what one process finds."""
    return {name: fit(folder, name) for name in METHODS}


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=partial("{}: {}".format, name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shard"), CASES)
def test_two_processes_learn_what_one_does(folder, alone, name, shard):
    assert_alike(safetensors.torch.load_file(folder / f"{name}{shard}"), alone[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shard"), CASES)
def test_one_process_goes_on_from_what_two_saved(folder, alone, name, shard):
    assert_alike(fit(folder, name, folder / f"kept_{name}{shard}"), alone[name])
