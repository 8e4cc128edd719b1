"""Rows are computed once, for any batches and blocks, and despite concurrent drivers, dead workers and a full disk."""

import itertools
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.inference import cache, jobs
from harness.inference.cache import ID_TYPE, CachedRows, check_error_rate, error_table, id_array, text_id
from harness.inference.jobs import Job, NotCachedError, counted_tries, make_in_process, merge_jobs
from harness.store.store import STALE_AFTER_SECONDS, Store

FORK = multiprocessing.get_context("fork")  # starts a process quickly
IDENTITY = {"engine": "shapes", "model": "a test's"}


@dataclass(frozen=True)
class Shapes:
    """A recipe whose vectors are a text's length and its number of e's; logs every block, and fails at some texts."""

    folder: str
    rows_per_block: int = 4
    cpus: int = 1
    refuses: bool = False

    def check(self):
        """Do nothing: the recipe always runs."""

    def prepare(self, table):
        empty = pa.compute.equal(table["text"], "")
        early = table.filter(empty)
        return table.filter(pa.compute.invert(empty)), error_table(early["id"].to_pylist(), ["empty"] * len(early))

    def start(self):
        if self.refuses:
            raise UserError("this engine cannot start", "use another")

        def worker(ready):
            texts = ready["text"].to_pylist()
            with Path(self.folder, "log").open("a") as log:
                log.write(f"{os.getpid()} {'|'.join(texts)}\n")
            for text in texts:
                hurt(text, self.folder)
            bad = [i for i, text in enumerate(texts) if "NAN" in text]
            good = [i for i in range(len(texts)) if i not in bad]
            found = np.array([[len(texts[i]), texts[i].count("e")] for i in good], np.float32).reshape(-1, 2)
            ids = ready["id"].to_pylist()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), 2)
            made = pa.table({"id": pa.array([ids[i] for i in good], ID_TYPE), "vector": vectors})
            return made, error_table([ids[i] for i in bad], ["not a number"] * len(bad)), {}

        return worker


def hurt(text, folder):
    if "KILL" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "HOLD" in text and not Path(folder, "go").exists():
        time.sleep(600)
    if "ONCE" in text and not Path(folder, text).exists():
        Path(folder, text).touch()
        time.sleep(600 * ("SLEEP" in text))
        re.match(r"(a+)+$", "a" * 60 + "b")  # backtracks for ever and never releases the interpreter
    if "RAISE" in text:
        raise UserError("the worker cannot go on", "think again")


def table(texts):
    return pa.table(
        {"id": pa.array([text_id(text) for text in texts], ID_TYPE), "text": pa.array(texts, pa.large_string())}
    )


def ids(texts):
    return id_array(table(texts)["id"])


def expected(texts):
    return np.array([[len(t), t.count("e")] for t in texts], np.float32).reshape(-1, 2)


def blocks(folder):
    """Return the texts of every block that a worker began."""
    log = Path(folder, "log")
    return [line.partition(" ")[2].split("|") for line in log.read_text().splitlines()] if log.exists() else []


def committed(rows):
    """Count how often each id occurs in shards, as a row or an error."""
    found = Counter()
    for key in rows.store.committed_keys(rows.store_kind):
        manifest = rows.store.read_manifest(rows.store_kind, key)
        for name in manifest["files"]:
            read = pa.ipc.open_file(pa.memory_map(str(rows.store.object_path(manifest, name)))).read_all()
            found.update(read["id"].to_pylist())
    return found


def shards(rows):
    """Return the digests of every committed file."""
    return {
        key: {name: file["sha256"] for name, file in rows.store.read_manifest(rows.store_kind, key)["files"].items()}
        for key in rows.store.committed_keys(rows.store_kind)
    }


def left_behind(store):
    return sorted(path.name for path in (store.root / "tmp").iterdir())


@pytest.fixture
def rows(tmp_path):
    return CachedRows(Store(tmp_path / "store").open(), IDENTITY)


TEXTS = [f"text number {i} {'e' * (i % 5)}" for i in range(30)]


def test_a_text_is_named_by_its_content():
    assert text_id("a", "b") == text_id("a", "b") != text_id("b", "a")
    assert text_id(None, "b") == text_id("", "b")
    named = [
        ("a", "b"),
        ("a\x1f", "b"),
        ("a", "\x1fb"),
        ("a\x1fb", ""),
        ("a\x1e1", "b"),
        ("a\x1e", "1b"),
        ("a\x1e1b", ""),
    ]
    assert len({text_id(*parts) for parts in named}) == len(named)
    assert text_id("\ud800")  # half a surrogate pair
    many = [text_id(str(i)) for i in range(2000)]
    assert {len(one) for one in many} == {16} and not any(one.endswith(b"\0") for one in many)
    assert ids([str(i) for i in range(2000)]).tolist() == many  # numpy keeps all 16 bytes, zeros inside them too
    assert id_array(table(TEXTS)["id"].slice(3, 5)).tolist() == [text_id(text) for text in TEXTS[3:8]]


def test_equal_texts_are_made_once_and_found_in_the_order_asked_for(rows, tmp_path):
    batches = [table(TEXTS[:10] * 2), table(TEXTS[5:20]), table(TEXTS[:1])]
    found = make_in_process(rows, Shapes(str(tmp_path)), batches)
    assert found["rows"] == 20 and found["errors"] == 0
    assert Counter(sum(blocks(tmp_path), [])) == Counter(TEXTS[:20])
    assert [len(block) for block in blocks(tmp_path)] == [4] * 5
    asked = TEXTS[17:3:-1] + TEXTS[3:5] * 2
    np.testing.assert_array_equal(rows.build_index().vectors(ids(asked)), expected(asked))
    made = rows.build_index().rows_table(ids(asked))
    assert made["place"].to_pylist() == list(range(len(asked)))
    assert made["id"].to_pylist() == [text_id(text) for text in asked]
    assert rows.build_index().is_missing(ids(TEXTS)).tolist() == [False] * 20 + [True] * 10


def test_a_second_driver_makes_only_what_is_missing(rows, tmp_path):
    make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[:10])])
    told = []
    again = make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[:10])], told.append)
    assert again == {"rows": 0, "errors": 0, "start_seconds": 0, "seconds": 0} and told == [0]
    make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[5:15])], told.append, told.append)
    assert told == [0, 5, 4, 1]
    assert committed(rows) == Counter(text_id(text) for text in TEXTS[:15])
    assert Counter(sum(blocks(tmp_path), [])) == Counter(TEXTS[:15])
    assert left_behind(rows.store) == []


def test_another_maker_has_rows_of_its_own(rows, tmp_path):
    make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS)])
    other = CachedRows(rows.store, IDENTITY | {"model": "another"})
    assert len(rows.build_index()) == 30 and len(other.build_index()) == 0
    assert other.build_index().is_missing(ids(TEXTS)).all()
    assert (
        other.build_index().vectors(ids(TEXTS)).shape == (30, 0)
        and len(other.build_index().rows_table(ids(TEXTS))) == 0
    )


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 12), max_size=40),
    st.integers(1, 9),
    st.lists(st.integers(0, 40), max_size=4),
    st.integers(0, 40),
)
def test_any_batches_and_blocks_give_the_same_rows(tmp_path_factory, numbers, block, cuts, before):
    """Rows are the same for texts with repeats, for any batches, and with some computed by an earlier run."""
    folder = tmp_path_factory.mktemp("any")
    rows = CachedRows(Store(folder / "store").open(), IDENTITY)
    texts = ["" if n == 0 else "NAN" if n == 1 else "e" * n + str(n) for n in numbers]
    make_in_process(rows, Shapes(str(folder), rows_per_block=3), [table(texts[:before])])
    cuts = [0, *sorted(cuts), len(texts)]
    make_in_process(rows, Shapes(str(folder), block), [table(texts[a:b]) for a, b in itertools.pairwise(cuts)])
    assert committed(rows) == Counter(text_id(text) for text in set(texts))
    index, good = rows.build_index(), [t not in ("", "NAN") for t in texts]
    found = index.vectors(ids(texts))
    if any(good):
        np.testing.assert_array_equal(found[good], expected([t for t, g in zip(texts, good, strict=True) if g]))
        assert np.isnan(found[~np.array(good)]).all()
    reasons = {"": "empty", "NAN": "not a number"}
    assert index.error_reasons(ids(texts)) == {i: reasons[t] for i, t in enumerate(texts) if t in reasons}
    assert index.rows_table(ids(texts))["place"].to_pylist() == [i for i, g in enumerate(good) if g]


def test_errors_are_kept_counted_and_refused_beyond_a_rate(rows, tmp_path):
    texts = [*TEXTS[:7], "NAN", "", *TEXTS[7:8]]
    found = make_in_process(rows, Shapes(str(tmp_path)), [table(texts)])
    assert (found["rows"], found["errors"]) == (10, 2)
    assert sum(facts["errors"] for facts in rows.block_facts()) == 2
    assert sum(facts["rows"] for facts in rows.block_facts()) == 8
    index = rows.build_index()
    assert index.error_reasons(ids(texts)) == {7: "not a number", 8: "empty"}
    # A text with an error is not tried again.
    assert make_in_process(rows, Shapes(str(tmp_path)), [table(texts)])["rows"] == 0
    check_error_rate(index, ids(texts), 0.2, "texts")
    with pytest.raises(UserError, match="2 of 10 texts are errors, more than the 19% allowed; row 7: not a number"):
        check_error_rate(index, ids(texts), 0.19, "texts")
    check_error_rate(index, ids(texts[:7]), 0, "texts")


def test_a_block_of_nothing_but_errors_needs_no_worker(rows, tmp_path):
    assert make_in_process(rows, Shapes(str(tmp_path)), [table([""])])["errors"] == 1
    assert blocks(tmp_path) == [] and rows.build_index().error_reasons(ids([""])) == {0: "empty"}


def test_of_rows_made_twice_the_first_committed_is_read(rows):
    """Two drivers with different blocks both commit, and all readers get the same rows."""
    for texts, value in ((["b", "c"], 1.0), (["a", "b"], 2.0), (["c", "d"], 3.0)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.full(2, value, np.float32)), 1)
        made = pa.table({"id": pa.array(ids(texts).tolist(), ID_TYPE), "vector": vectors})
        rows.commit(ids(texts), made, error_table([], []), {"rows": 2, "errors": 0})
        time.sleep(0.02)  # so that the file system's clock advances
    assert rows.build_index().vectors(ids(["a", "b", "c", "d"])).ravel().tolist() == [2, 1, 1, 3]
    assert len(rows.build_index()) == 4


def test_the_same_block_is_committed_once(rows):
    made = pa.table({"id": pa.array(ids(["a"]).tolist(), ID_TYPE), "n": [1]})
    rows.commit(ids(["a"]), made, error_table([], []), {"rows": 1, "errors": 0})
    rows.commit(ids(["a"]), made.set_column(1, "n", pa.array([2])), error_table([], []), {"rows": 1, "errors": 0})
    assert rows.build_index().rows_table(ids(["a"]))["n"].to_pylist() == [1]
    assert len(rows.store.committed_keys(rows.store_kind)) == 1


def test_a_shard_that_is_lost_is_made_anew(rows, tmp_path):
    make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[:28])])
    before = shards(rows)
    rows.store.object_path(rows.store.read_manifest(rows.store_kind, sorted(before)[0]), "rows.arrow").unlink()
    assert make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[:28])])["rows"] == 4
    assert shards(rows) == before
    np.testing.assert_array_equal(rows.build_index().vectors(ids(TEXTS[:28])), expected(TEXTS[:28]))


def test_jobs_of_one_maker_are_one(tmp_path):
    job = Job("vectors", IDENTITY, Shapes(str(tmp_path)), lambda: [table(["a"])])
    other = Job("vectors", IDENTITY | {"model": "b"}, Shapes(str(tmp_path)), lambda: [table(["c"])])
    same = Job("vectors", dict(IDENTITY), Shapes(str(tmp_path)), lambda: [table(["b"])])
    found = merge_jobs([job, other, same])
    texts = [[text for batch in one.batches() for text in batch["text"].to_pylist()] for one in found]
    assert texts == [["a", "b"], ["c"]]
    assert "3 vectors by a test's are not computed yet" in NotCachedError(job, 3).message


def here(rows, folder, texts):
    """Return a new process that computes texts without Ray."""
    driver = FORK.Process(target=make_in_process, args=(rows, Shapes(str(folder)), [table(texts)]))
    driver.start()
    return driver


def exitcode(driver):
    driver.join(60)
    return driver.exitcode


def test_a_row_that_kills_its_worker_becomes_an_error(rows, tmp_path):
    """The block is tried twice, then each row alone; the fatal row is given up after two tries, the others succeed."""
    texts = [*TEXTS[:6], "a KILL", *TEXTS[6:8]]
    deaths = 0
    while (code := exitcode(here(rows, tmp_path, texts))) == -signal.SIGKILL:
        deaths += 1
        assert deaths <= 4
        assert rows.build_index().is_missing(ids(["a KILL"])).all()
    assert code == 0 and deaths == 4
    assert Counter(map(tuple, blocks(tmp_path)))[tuple(texts[4:8])] == 2
    assert Counter(map(tuple, blocks(tmp_path)))[("a KILL",)] == 2
    assert Counter(map(tuple, blocks(tmp_path)))[tuple(texts[:4])] == 1
    assert rows.build_index().error_reasons(ids(texts)) == {
        6: "the worker died or hung while it computed this row by itself"
    }
    assert committed(rows) == Counter(text_id(text) for text in texts)
    good = [i for i in range(9) if i != 6]
    np.testing.assert_array_equal(rows.build_index().vectors(ids(texts))[good], expected([texts[i] for i in good]))
    assert not [name for name in left_behind(rows.store) if not name.startswith(".waiting.arrow.")]


def test_what_is_told_is_no_death(rows, tmp_path):
    for _ in range(5):
        with pytest.raises(UserError, match="cannot go on"):
            make_in_process(rows, Shapes(str(tmp_path)), [table([*TEXTS[:4], "RAISE"])])
    assert committed(rows) == Counter(text_id(text) for text in TEXTS[:4])
    assert left_behind(rows.store) == []


def test_a_rival_at_the_same_block_is_no_death(rows):
    """A living process holds the lock on the mark; a dead process has released it."""
    ready = FORK.Event()

    def hold():
        with counted_tries(rows.store, "block"):
            ready.set()
            time.sleep(60)

    rival = FORK.Process(target=hold)
    rival.start()
    assert ready.wait(30)
    for _ in range(4):
        with counted_tries(rows.store, "block") as tries:
            assert tries == 1
    assert left_behind(rows.store) == ["block.tries"]
    rival.kill()
    rival.join()
    with counted_tries(rows.store, "block") as tries:
        assert tries == 2
    with counted_tries(rows.store, "block") as tries:
        assert tries == 1


def test_two_drivers_at_once(rows, tmp_path):
    texts = [f"{text} {i}" for i in range(10) for text in TEXTS]
    drivers = [here(rows, tmp_path, texts) for _ in range(2)]
    assert [exitcode(driver) for driver in drivers] == [0, 0]
    assert committed(rows) == Counter(text_id(text) for text in texts)
    np.testing.assert_array_equal(rows.build_index().vectors(ids(texts)), expected(texts))
    assert left_behind(rows.store) == []


def test_rivals_with_other_blocks_agree(rows, tmp_path):
    """Two concurrent drivers with overlapping blocks may compute a row twice, but it is read once."""
    recipes = [(Shapes(str(tmp_path), rows_per_block=b), TEXTS[::step]) for b, step in ((3, 1), (4, -1))]
    threads = [threading.Thread(target=make_in_process, args=(rows, recipe, [table(t)])) for recipe, t in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows.build_index()) == len(TEXTS)
    np.testing.assert_array_equal(rows.build_index().vectors(ids(TEXTS)), expected(TEXTS))


@pytest.mark.parametrize("room", [600, 3000])
def test_a_full_disk_is_said_and_loses_nothing(rows, tmp_path, room):
    """A limit on file size, for the waiting texts or for their results, raises a UserError and loses no rows."""
    make_in_process(rows, Shapes(str(tmp_path)), [table(TEXTS[:8])])
    before, more = shards(rows), [f"{'e' * 40} {i}" for i in range(40 if room == 3000 else 400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recipe = Shapes(str(tmp_path), rows_per_block=400)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(UserError) as caught:
            make_in_process(rows, recipe, [table(more)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "is full" in caught.value.message and "--store DIR" in caught.value.hint
    assert shards(rows) == before and left_behind(rows.store) == []
    make_in_process(rows, recipe, [table(more + TEXTS[:8])])
    assert committed(rows) == Counter(text_id(text) for text in more + TEXTS[:8])


def test_texts_that_wait_are_not_taken_for_left_behind(rows, tmp_path, monkeypatch):
    """Another driver that opens the store during a job of days does not remove the waiting texts."""

    class Slow(Shapes):
        def prepare(self, block):
            for path in (rows.store.root / "tmp").iterdir():
                old = path.stat().st_mtime - 0.9 * STALE_AFTER_SECONDS
                os.utime(path, (old, old))
            Store(rows.store.root).open()
            return super().prepare(block)

    make_in_process(rows, Slow(str(tmp_path)), [table(TEXTS)])
    assert len(rows.build_index()) == 30


def test_ids_seen_are_kept_without_objects():
    """200,000 ids, each given twice, take 16 bytes of memory each, plus what merging needs for a moment."""
    import tracemalloc

    raw = np.random.default_rng(0).integers(0, 256, (200_000, 16), dtype=np.uint8)
    raw[:, 15] |= 1
    one = pa.FixedSizeBinaryArray.from_buffers(ID_TYPE, len(raw), [None, pa.py_buffer(raw)])
    batches = (pa.table({"id": one.slice(start, 20_000)}) for _ in range(2) for start in range(0, len(raw), 20_000))
    empty = cache.RowIndex(np.empty(0, "S16"), np.empty(0, np.int32), np.empty(0, np.int32), ())
    tracemalloc.start()
    seen = sum(len(block) for block in jobs.missing_blocks(batches, empty, 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == len(raw) and peak < 4 * raw.nbytes
