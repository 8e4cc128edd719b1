"""Benchmarks of models still run: those for a GPU are seldom run, and must not fail on the day when there is one."""

import re
import subprocess
import sys

import pytest

from harness.registry import PROJECT_ROOT


def output_of(script, *options):
    done = subprocess.run(
        [sys.executable, f"tests/benchmarks/{script}", *options],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_path_has_a_rate():
    lines = output_of("bench_models.py", "--quick").splitlines()
    paths = {re.split(r"\s{2,}", line)[0] for line in lines}
    assert paths == {"write", "answer", "rate", "train", "encode", "encode, middle layer", "score"}
    assert all(float(re.search(r"([\d,]+) tokens/s", line)[1].replace(",", "")) > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.ray_cluster
def test_the_benchmark_for_a_gpu_runs_without_one():
    found = output_of("bench_gpu.py", "--tiny")
    assert "LoRA with FiLM" in found and "Ray, once started" in found and "cosine distance at most" in found
