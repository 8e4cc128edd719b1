"""Tables of ratings and of votes: what is compared, what a method may see, and boards with a known ceiling."""

import numpy as np
import polars as pl
import pytest

from harness.api import run_suite
from harness.data import Items
from harness.errors import UserError
from harness.judgements import draw_cycles, from_ratings
from harness.method import Run
from harness.methods.majority import Majority
from harness.methods.rater_mean import RaterMean
from harness.sources.crowd import crowd_vectors
from harness.store.store import Store
from harness.trials.prepare import prepare_task
from tasks.ratings import Ratings
from tasks.votes import Votes

PEOPLE, ITEMS, NOISE = 60, 40, 0.5


@pytest.fixture(scope="module")
def world():
    """Ratings of every item by every person: common quality, two dimensions of taste, and noise; to one decimal."""
    rng = np.random.default_rng(0)
    quality, taste, sides = rng.normal(size=ITEMS), rng.normal(size=(PEOPLE, 2)), rng.normal(size=(ITEMS, 2))
    true = 0.7 * quality + 0.7 * taste @ sides.T
    rated = np.round(true + NOISE * rng.normal(size=true.shape) + rng.normal(size=(PEOPLE, 1)), 1)
    user, item = np.divmod(np.arange(rated.size), ITEMS)
    frame = pl.DataFrame(
        {"user": [f"p{u:02d}" for u in user], "item": [f"i{i:02d}" for i in item], "rating": rated.ravel()}
    )
    return frame, true, rated


def saved(frame, folder, cls, **fields):
    path = folder / "table.csv"
    frame.write_csv(path)
    return cls(**{"file": str(path)} | fields)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


def test_a_person_has_about_one_pair_for_each_rating(world):
    frame, _, rated = world
    long = frame.with_columns(item=pl.col("item").str.tail(2).cast(pl.Int64), group=pl.lit(0))
    data = from_ratings(long, Items(np.eye(ITEMS)), n_asked=10, seed=0)
    pairs = data.pairs
    assert (np.diff(pairs.offsets) == ITEMS).all()  # ties are made good
    # labels and ratings are the table's
    assert np.allclose(pairs.ratings[:, 0], rated[pairs.user, pairs.left], atol=1e-5)
    assert ((pairs.ratings[:, 0] > pairs.ratings[:, 1]) == (pairs.label == 1)).all() and 0.4 < pairs.label.mean() < 0.6
    for user in range(PEOPLE):
        mine = pairs.user == user
        asked = set(pairs.left[mine & (data.parts == 2)]) | set(pairs.right[mine & (data.parts == 2)])
        shown = set(pairs.left[mine & (data.parts == 0)]) | set(pairs.right[mine & (data.parts == 0)])
        assert len(asked) == 10 and len(shown) == ITEMS - 10 and not asked & shown


def test_ratings_that_tie_are_compared_with_others_or_kept():
    rng = np.random.default_rng(0)
    rating = rng.integers(1, 4, 600).astype(float)
    block = np.repeat(np.arange(20), 30)
    left, right = draw_cycles(rng, block, rating, keep_ties=False)
    assert (rating[left] != rating[right]).all() and (block[left] == block[right]).all()
    assert len(np.unique(np.stack([left, right]), axis=1).T) == len(left)
    assert (np.bincount(block[left]) == 30).all()
    left, right = draw_cycles(rng, block, rating, keep_ties=True)
    assert (rating[left] == rating[right]).any() and (np.bincount(block[left]) == 30).all()


def test_ratings_are_compared_within_a_prompt(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (f"p{u}", f"q{q}", f"answer {q} {k}", int(rng.integers(1, 8)))
        for u in range(8)
        for q in range(6)
        for k in range(4)
    ]
    frame = pl.DataFrame(rows, schema=["user", "prompt", "response", "rating"], orient="row")
    data = saved(frame, tmp_path, Ratings, shots=(0, 4), encoder="hashing-16").build(0)
    prompt = np.array(data.pairs.items.known_text["prompt"].to_pylist())
    assert (prompt[data.pairs.left] == prompt[data.pairs.right]).all()
    for user in range(data.pairs.n_users):  # a prompt is shown or asked
        mine = data.pairs.user == user
        asked, shown = (set(prompt[data.pairs.left[mine & (data.parts == part)]]) for part in (2, 0))
        assert asked and shown and not asked & shown


def test_the_mean_of_the_raters_is_that_of_the_training_people(world, tmp_path):
    frame, _, rated = world
    task = saved(frame, tmp_path, Ratings, item="item", shots=(0, 5))
    data = task.build(0)
    splits = task.split(data, 0)
    state = RaterMean().fit(splits.train, splits.panels["validation"], Run(0))
    train = splits.train
    seen = np.full((PEOPLE, ITEMS), np.nan)
    for side, column in ((train.left, 0), (train.right, 1)):
        seen[train.people[train.user], side] = train.ratings[:, column]
    assert not np.isfinite(seen[splits.panels["test"].query.people]).any()
    mean = np.nanmean(seen, axis=0)
    assert np.corrcoef(state["mean"].numpy(), mean)[0, 1] > 1 - 1e-6
    assert np.allclose(np.nanmax(np.abs(seen - rated)[np.isfinite(seen)]), 0, atol=1e-5)


def test_crowd_vectors_are_the_singular_vectors_of_a_full_table():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 12)) + rng.normal(size=(30, 1))
    person, item = np.divmod(np.arange(table.size), 12)
    vectors = crowd_vectors(person, item, table.ravel(), 12, 2).astype(np.float64)
    centred = table - table.mean(1, keepdims=True)
    mean = centred.sum(0) / 31
    _, values, right = np.linalg.svd(centred - mean, full_matrices=False)
    wanted = np.column_stack([mean, right[:2].T * values[:2] / np.sqrt(30)])
    scale = np.sqrt(2 * wanted.var(0).mean())
    assert np.allclose(np.abs(vectors), np.abs(wanted / scale), atol=1e-4)
    with pytest.raises(UserError, match="too few for 12 dimensions"):
        crowd_vectors(person, item, table.ravel(), 12, 12)


def test_no_rating_of_a_test_person_reaches_the_features(world, tmp_path):
    frame, _, _ = world
    task = saved(frame, tmp_path, Ratings, item="item", shots=(0, 5))
    data = task.build(0)
    test = {data.users["id"][int(p)].as_py() for p in task.split(data, 0).panels["test"].query.people}
    other = frame.with_columns(
        rating=pl.when(pl.col("user").is_in(list(test))).then(-pl.col("rating")).otherwise("rating")
    )
    again = saved(other, tmp_path, Ratings, item="item", shots=(0, 5)).build(0)
    assert np.array_equal(again.pairs.items.features, data.pairs.items.features)


def test_the_ratings_board_is_between_the_mean_and_the_ceiling(world, tmp_path):
    """Personalised methods beat the raters' mean and stay below who knows the true ratings, which nobody can beat."""
    frame, true, _ = world
    path = tmp_path / "ratings.csv"
    frame.write_csv(path)
    suite = tmp_path / "r.toml"
    suite.write_text(
        f'[[tasks]]\nname = "ratings"\nfile = "{path}"\nitem = "item"\nshots = [0, 20]\nencoder = "raters-4"\n'
    )
    run = run_suite(suite, tmp_path / "store")
    (task,) = run.board.tasks
    rows = {row.method.name: row for row in task.rows}
    final = {name: row.curves["accuracy"][20].value for name, row in rows.items()}
    ceiling, best = [], []
    for seed in range(5):
        data = task.task.build(seed)
        query = task.task.split(data, seed).panels["test"].query
        people = query.people[query.user]
        ceiling.append(((true[people, query.left] > true[people, query.right]) == (query.label == 1)).mean())
        mean = true.mean(0)
        best.append(((mean[query.left] > mean[query.right]) == (query.label == 1)).mean())
    assert np.mean(best) - 0.06 < final["rater_mean"] < np.mean(best) + 0.02  # 36 raters are fewer than all
    assert final["rater_mean"] + 0.08 < final["mixed_logit"] < np.mean(ceiling)
    rank, error = (rows["mixed_logit"].curves[name][20].value for name in ("rank_correlation", "scale_error"))
    assert rank > rows["rater_mean"].curves["rank_correlation"][20].value + 0.1
    assert NOISE < error < rows["rater_mean"].curves["scale_error"][20].value


def test_repeated_ratings_are_averaged_and_counted(world, tmp_path):
    frame, _, _ = world
    twice = pl.concat([frame.with_columns(pl.col("rating") - 1), frame.with_columns(pl.col("rating") + 1)])
    data, again = (saved(t, tmp_path, Ratings, item="item", shots=(0, 5)).build(0) for t in (frame, twice))
    assert again.notes == (f"averaged: {len(frame):,} repeated ratings of an item by a person",) and data.notes == ()
    assert np.allclose(again.pairs.ratings, data.pairs.ratings) and (again.pairs.left == data.pairs.left).all()


@pytest.fixture(scope="module")
def votes():
    rng, rows = np.random.default_rng(0), []
    for conversation in range(3):
        lean, taste, sides = rng.normal(size=15), rng.normal(size=40), 1.5 * rng.normal(size=15)
        for person in range(40):
            for s in rng.choice(15, 12, replace=False):
                agree = rng.random() < 1 / (1 + np.exp(-(lean[s] + taste[person] * sides[s])))
                vote = "pass" if rng.random() < 0.1 else "agree" if agree else "disagree"
                rows.append((f"c{conversation} p{person}", f"statement {s}", vote, f"c{conversation}"))
    return pl.DataFrame(rows, schema=["user", "statement", "vote", "group"], orient="row")


def test_a_vote_chooses_between_agreeing_and_disagreeing(votes, tmp_path):
    task = saved(votes, tmp_path, Votes, group="group", shots=(0, 3), min_votes=5)
    data = task.build(0)
    pairs, text = data.pairs, data.pairs.items.known_text
    assert (
        len(pairs) == (votes["vote"] != "pass").sum()
        and data.notes[0] == f"left out: {(votes['vote'] == 'pass').sum()} passes"
    )
    won = np.where(pairs.label == 1, pairs.left, pairs.right)
    ids = data.users["id"].to_pylist()
    found = {
        (ids[p], text["prompt"][i].as_py(), text["response"][i].as_py())
        for p, i in zip(pairs.people[pairs.user].tolist(), won.tolist(), strict=True)
    }
    decided = votes.filter(pl.col("vote") != "pass")
    assert found == {(u, f"{g}: {s}", v) for u, s, v, g in decided.iter_rows()}
    features = pairs.items.known_features
    assert np.array_equal(features[0::2], -features[1::2]) and features.shape == (90, 18)


def test_the_majority_is_that_of_the_training_peoples_votes(votes, tmp_path):
    task = saved(votes, tmp_path, Votes, group="group", shots=(0, 3), min_votes=5)
    data = task.build(0)
    splits = task.split(data, 0)
    query = splits.panels["test"].query
    z = Majority().score(Majority().fit(splits.train, splits.panels["validation"], Run(0)), (), query).numpy()
    agrees = np.where(splits.train.left % 2 == 0, splits.train.label, 1 - splits.train.label)
    share = np.bincount(splits.train.left // 2, agrees) / np.bincount(splits.train.left // 2)
    towards = np.where(query.left % 2 == 0, 1, -1) * (share[query.left // 2] - 0.5)
    assert (np.sign(z) == np.sign(np.round(towards, 6))).all()


@pytest.mark.parametrize(
    ("cls", "change", "said"),
    [
        (Ratings, lambda r, v: r.head(3), "none of 1 people has 6 ratings"),
        (Ratings, lambda r, v: r.with_columns(rating=pl.lit("good")), "no number in column rating"),
        (Ratings, lambda r, v: r.with_columns(rating=pl.lit(None)), "nothing in column rating"),
        (
            Ratings,
            lambda r, v: r.with_columns(rating=pl.lit(3)),
            "none of 60 people has 6 ratings, with two different ones",
        ),
        (Votes, lambda r, v: v.with_columns(vote=pl.lit("maybe")), r"row 0 .*user .*an unknown vote \('maybe'\)"),
        (Votes, lambda r, v: pl.concat([v, v.head(2)]), "a second vote of the same person"),
        (Votes, lambda r, v: v.drop("statement"), "there is no column statement"),
        (Votes, lambda r, v: v.with_columns(vote=pl.lit("pass")), "no person has"),
    ],
)
def test_what_cannot_be_used_is_said(cls, change, said, world, votes, tmp_path, store):
    fields = {"item": "item"} if cls is Ratings else {}
    with pytest.raises(UserError, match=said):
        prepare_task(store, saved(change(world[0], votes), tmp_path, cls, shots=(0, 3), **fields), 0)
