"""Benchmarks that are seldom run still run, such as those for a GPU, and compare what they say they compare."""

import re
import subprocess
import sys

import polars as pl
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


@pytest.mark.slow
def test_predictions_of_others_are_compared_pair_by_pair(tmp_path):
    """Our own predictions, turned round, are as wrong as ours are right; a table with a hole is refused."""
    suite = tmp_path / "suite.toml"
    suite.write_text("""
seeds = 3
controls = false
tasks = [{ name = "low_rank", n_users = 30, new_users = 8, feature_dim = 8, shots = [0, 5], queries = 10 }]
methods = [{ name = "shared" }, { name = "per_user" }]
""")
    for command in (["run", "--local"], ["export"]):
        folder = [str(tmp_path / "told")] if command == ["export"] else []
        where = ["--store", str(tmp_path / "store")]
        ran = subprocess.run(
            [sys.executable, "-m", "harness.cli", command[0], str(suite), *folder, *command[1:], *where],
            capture_output=True, text=True, check=False, cwd=PROJECT_ROOT,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    own = pl.read_parquet(tmp_path / "told/low_rank/predictions.parquet").filter(pl.col("part") == "test/query")
    theirs = own.filter(pl.col("method") == "per_user").with_columns(pl.col("log_odds") * -1, method=pl.lit("theirs"))
    theirs.select("seed", "user", "place", "shots", "log_odds", "method").write_parquet(tmp_path / "theirs.parquet")
    script = ["compare_predictions.py", str(tmp_path / "told/low_rank")]
    lines = output_of(*script, str(tmp_path / "theirs.parquet")).splitlines()
    five = next(line.split() for line in lines if line.split()[:3] == ["5", "theirs", "per_user"])
    right = own.filter((pl.col("method") == "per_user") & (pl.col("shots") == 5)).select(
        ((pl.col("log_odds") > 0) == (pl.col("label") > 0.5)).mean()
    )
    assert float(five[4]) == pytest.approx(right.item(), abs=6e-4)
    assert float(five[3]) == pytest.approx(1 - right.item(), abs=6e-4)
    assert float(five[5]) == pytest.approx(2 * right.item() - 1, abs=1.1e-3)
    theirs[1:].write_csv(tmp_path / "holes.csv")
    with pytest.raises(AssertionError, match="leaves 1 of 480 pairs"):
        output_of(*script, str(tmp_path / "holes.csv"))
