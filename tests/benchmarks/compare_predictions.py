"""Other people's predictions beside this project's, on the same pairs of the same people: paired gaps with intervals.

`manyminds export SUITE DIR` writes each task's splits as tables. Any program, such as the code of a paper's authors, reads
DIR/TASK/pairs.parquet and items.parquet and writes a table (.parquet or .csv) with a row for each pair of the part
`test/query`: seed, user, place, shots, log_odds, and method where it has several. Then:

    python tests/benchmarks/compare_predictions.py DIR/TASK THEIR_TABLE
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl

from harness.scores.metrics import label_of_preferred
from harness.scores.stats import paired_differences

PAIR = ["seed", "user", "place", "shots"]


def read_table(path: Path) -> pl.DataFrame:
    """Read a table of predictions; end with what is wrong where columns are missing."""
    if not path.is_file():
        sys.exit(f"there is no file {path}")
    table = pl.read_csv(path, schema_overrides={"user": pl.String}) if path.suffix == ".csv" else pl.read_parquet(path)
    if missing := {*PAIR, "log_odds"} - set(table.columns):
        sys.exit(f"{path} has no columns {', '.join(sorted(missing))}")
    if table["log_odds"].is_null().any() or table["log_odds"].is_nan().any():
        sys.exit(f"{path} has rows without log_odds")
    return table.with_columns(pl.col(c).cast(pl.Int64) for c in ("seed", "place", "shots"))


def accuracy_of_people(answered: pl.DataFrame) -> pl.DataFrame:
    """Return a row per seed, user and number of shots: the mean label of the sides that were preferred."""
    right = label_of_preferred(answered["log_odds"].to_numpy(), answered["label"].to_numpy())
    return answered.with_columns(right=right).group_by("shots", "seed", "user").agg(pl.col("right").mean())


def compare(folder: Path, theirs: Path) -> None:
    """Print the accuracies and the paired gap of each of their methods with each of ours, per number of shots."""
    ours = read_table(folder / "predictions.parquet").filter(pl.col("part") == "test/query")
    questions = ours.select(*PAIR, "label").unique(PAIR)
    foreign = read_table(theirs)
    if "method" not in foreign.columns:
        foreign = foreign.with_columns(method=pl.lit(theirs.stem))
    scored = {}
    for (name,), told in foreign.group_by("method", maintain_order=True):
        shots = told["shots"].unique()
        asked = questions.filter(pl.col("shots").is_in(shots.implode()))
        answered = asked.join(told.select(*PAIR, "log_odds"), on=PAIR, how="left")
        if len(answered) != len(asked):
            sys.exit(f"{name} answers some pairs twice")
        if lacking := answered["log_odds"].null_count():
            sys.exit(f"{name} leaves {lacking:,} of {len(asked):,} pairs of the part test/query unanswered")
        scored[name] = accuracy_of_people(answered)
    print(f"{'shots':>5}  {'theirs':24}{'ours':40}{'theirs':>7}{'ours':>7}  ours - theirs (95 %)")
    for (method,), own in ours.group_by("method", maintain_order=True):
        for name, other in scored.items():
            both = accuracy_of_people(own).join(other, on=["shots", "seed", "user"], suffix="_theirs")
            for (shots,), cells in both.sort("shots", "seed", "user").group_by("shots", maintain_order=True):
                values = np.stack([cells["right"], cells["right_theirs"]])
                person, seed = cells["user"].to_numpy(), cells["seed"].to_numpy()
                found = paired_differences(values, np.unique(person, return_inverse=True)[1], seed)
                low, high = (edge[0, 1] for edge in found.interval())
                limits = f"no interval: {found.note}" if found.note else f"({low:+.3f}, {high:+.3f})"
                print(
                    f"{shots:>5}  {name[:22]:24}{method[:38]:40}{values[1].mean():7.3f}{values[0].mean():7.3f}  "
                    f"{found.value[0, 1]:+.3f} {limits}"
                )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    compare(Path(sys.argv[1]), Path(sys.argv[2]))
