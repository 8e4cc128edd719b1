"""An exported suite is the split that was judged: it loads with `datasets`, and its scores can be computed again."""

import json

import datasets
import mlcroissant
import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.api import run_suite
from harness.api.running import make_suite
from harness.errors import UserError
from tasks.choices import Choices
from tasks.ratings import Ratings
from tests.tasks.test_choices import table


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    table(12).write_csv(folder / "choices.csv")
    task = Choices(file=str(folder / "choices.csv"), shots=(0, 3))
    methods = [registry.make_instance("method", name, {}) for name in ("shared", "per_user")]
    run = run_suite(make_suite([task], methods, 3), folder / "store")
    return folder, run, run.export(folder / "out")


def test_accuracy_comes_out_of_the_exported_predictions(exported):
    folder, run, _ = exported
    found = datasets.load_dataset(str(folder / "out"), "choices-predictions", cache_dir=str(folder / "cache"))
    frame = found["train"].to_polars().filter(part="test/query")
    for row in run.board.tasks[0].rows:
        mine = frame.filter(method=row.method.name, shots=3)
        right = (mine["log_odds"].to_numpy() > 0) == (mine["label"].to_numpy() > 0.5)
        right = np.where(mine["log_odds"].to_numpy() == 0, 0.5, right)
        of_person = mine.with_columns(right=right).group_by("seed", "user").agg(pl.col("right").mean())
        assert of_person["right"].mean() == pytest.approx(row.curves["accuracy"][3].value, abs=1e-9)


def test_predictions_join_back_to_the_persons_own_rows(exported):
    folder, _, _ = exported
    own = pl.read_csv(folder / "choices.csv").with_row_index("row").cast({"row": pl.Int64})
    pairs = pl.read_parquet(folder / "out" / "choices" / "pairs.parquet")
    joined = pairs.join(own, on="row", suffix="_own")
    assert len(joined) == len(pairs) and (joined["user"] == joined["user_own"]).all()
    won = joined.select(pl.when(pl.col("label") > 0.5).then("left_text").otherwise("right_text")).to_series()
    assert (won == joined["chosen"]).all()
    asked = pl.read_parquet(folder / "out" / "choices" / "predictions.parquet").filter(
        part="test/query", shots=3, method="shared"
    )
    assert asked.join(own, on="row").filter(pl.col("user") == pl.col("user_right")).height == len(asked)
    query = pairs.filter(part="test/query")
    assert asked.select("seed", "row").sort("seed", "row").equals(query.select("seed", "row").sort("seed", "row"))


def test_predictions_of_ratings_join_back_to_ones_own_ratings_by_item(tmp_path):
    """Items without text keep their names: a rating's two sides find the person's own numbers."""
    rng = np.random.default_rng(0)
    rows = [(f"p{u:02}", f"film {i}", int(rng.integers(1, 6))) for u in range(20) for i in range(24)]
    own = pl.DataFrame(rows, schema=["user", "film", "rating"], orient="row")
    own.write_csv(tmp_path / "ratings.csv")
    task = Ratings(file=str(tmp_path / "ratings.csv"), item="film", shots=(0, 3), encoder="raters-2")
    run = run_suite(make_suite([task], [registry.make_instance("method", "per_user", {})], 3), tmp_path / "store")
    run.export(tmp_path / "out")
    for name in ("pairs", "predictions"):
        found = pl.read_parquet(tmp_path / "out" / "ratings" / f"{name}.parquet")
        for side in ("left", "right"):
            joined = found.join(own, left_on=["user", f"{side}_name"], right_on=["user", "film"])
            assert len(joined) == len(found) > 0 and (joined[f"{side}_rating"] == joined["rating"]).all()
    items = pl.read_parquet(tmp_path / "out" / "ratings" / "items.parquet")
    assert set(items["name"]) == set(own["film"])


def test_items_hold_texts_and_features(exported):
    folder, run, _ = exported
    items = pl.read_parquet(folder / "out" / "choices" / "items.parquet").filter(seed=0)
    data = run.plan.suite.tasks[0].build(0)
    assert items["response"].to_list() == data.pairs.items.known_text["response"].to_pylist()
    assert np.allclose(np.stack(items["features"].to_numpy()), data.pairs.items.known_features)


def test_croissant_names_every_file_and_column(exported):
    folder, _, files = exported
    told = json.loads((folder / "out" / "croissant.json").read_text())
    tables = [file for file in files if file.suffix == ".parquet"]
    assert {found["contentUrl"] for found in told["distribution"]} == {f"choices/{file.name}" for file in tables}
    for record, file in zip(told["recordSet"], tables, strict=True):
        assert [field["name"] for field in record["field"]] == pl.read_parquet(file).columns
    found = mlcroissant.Dataset(jsonld=folder / "out" / "croissant.json")  # raises where the metadata is not valid
    assert next(iter(found.records("choices-items")))["choices-items/item"] == 0


def test_a_folder_with_files_is_not_written_into(exported):
    _, run, _ = exported
    with pytest.raises(UserError, match="is a folder with files"):
        run.export(exported[0] / "out")
