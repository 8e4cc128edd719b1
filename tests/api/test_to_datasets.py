"""An exported suite is the split that was judged: it loads with `datasets`, and its scores can be computed again."""

import json

import datasets
import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.api import run_suite
from harness.api.running import make_suite
from harness.errors import UserError
from tasks.choices import Choices
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
    frame = found["train"].to_polars().filter(panel="test")
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
        panel="test", shots=3, method="shared"
    )
    assert asked.join(own, on="row").filter(pl.col("user") == pl.col("user_right")).height == len(asked)
    query = pairs.filter(part="test/query")
    assert asked.select("seed", "row").sort("seed", "row").equals(query.select("seed", "row").sort("seed", "row"))


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
    validator = pytest.importorskip("mlcroissant", reason="needs mlcroissant")
    validator.Dataset(jsonld=folder / "out" / "croissant.json")


def test_a_folder_with_files_is_not_written_into(exported):
    _, run, _ = exported
    with pytest.raises(UserError, match="is not an empty folder"):
        run.export(exported[0] / "out")
