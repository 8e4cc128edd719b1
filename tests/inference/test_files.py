"""Files of texts: read in batches, encoded or answered, and written with rows in the same order."""

import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.cli.inference_jobs import made_summary
from harness.cli.verbs import app
from harness.errors import UserError
from harness.inference import encode, files, generate
from harness.inference.cache import text_id
from harness.inference.jobs import make_in_process
from harness.models import names, small
from harness.models.base import Sample
from harness.registry import PROJECT_ROOT
from harness.store.store import Store

TEXTS = ["one, two", "drei\nvier", "", "2020-01-01", "17", "null", "日本 語", 'say "hi"', "NA", "e" * 300]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    small.build_small_model(folder, steps=0)
    return folder


def write(path, columns):
    """Write a table in the format of the path's suffix and return the path."""
    frame = pl.DataFrame(columns, strict=False)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dicts()))
    elif path.suffix == ".csv":
        frame.write_csv(path, quote_style="necessary")
    else:
        frame.write_parquet(path)
    return path


def read(path, *columns):
    return pa.concat_tables(files.read_text_columns(path, *columns)).to_pydict()


@pytest.mark.parametrize("suffix", files.FILE_SUFFIXES)
def test_texts_of_any_kind_are_read_as_they_are(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"n": range(10), "response": TEXTS, "prompt": TEXTS[::-1]})
    assert read(path, "response", "prompt", "system?") == {
        "response": TEXTS,
        "prompt": TEXTS[::-1],
        "system": [None] * 10,
    }
    assert list(read(path, "prompt")) == ["prompt"]


def test_parquet_as_others_write_it(tmp_path):
    for name, kind in (("a", pa.string()), ("b", pa.large_string()), ("c", pa.dictionary(pa.int32(), pa.string()))):
        path = tmp_path / f"{name}.parquet"
        pa.parquet.write_table(pa.table({"response": pa.array(TEXTS, pa.string()).cast(kind)}), path, row_group_size=3)
        assert read(path, "response") == {"response": TEXTS}
        assert {batch.schema.field("response").type for batch in files.read_text_columns(path, "response")} == {
            files.TEXT_TYPE
        }


@pytest.mark.parametrize("suffix", files.FILE_SUFFIXES)
def test_long_files_come_in_batches(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(files, "ROWS_PER_BATCH", 100)
    monkeypatch.setattr(files, "BYTES_PER_READ", 4096)
    texts = [f"text {i} " + "x" * (i % 50) for i in range(1000)]
    path = write(tmp_path / f"t{suffix}", {"response": texts})
    batches = list(files.read_text_columns(path, "response"))
    assert max(map(len, batches)) <= 100
    assert pa.concat_tables(batches)["response"].to_pylist() == texts


ENCODERS = ("hashing-8", "transformers:{}", "transformers:{}?of=both")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_null_is_an_error_of_its_row_like_an_empty_text(tmp_path, store, model, suffix, encoder):
    null, empty = ["a"] * 37 + [None] + ["b"] * 5, ["a"] * 37 + [""] + ["b"] * 5
    path = write(tmp_path / f"t{suffix}", {"response": null, "prompt": null, "system": null})
    assert read(path, "response", "prompt", "system?") == {"response": empty, "prompt": empty, "system": null}
    name = encoder.format(model)
    job = encode.encode_job(name, lambda: files.read_text_columns(path, "response", "prompt"), store)
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    index = job.cached_rows(store).build_index()
    said = files.describe_errors(index, job.batches(), "texts")
    assert said.startswith("1 of 43 texts are errors; row 37: the ") and "is empty" in said
    assert files.write_vectors(tmp_path / "v.npy", index, job.batches)[0] == 43
    assert np.isnan(np.load(tmp_path / "v.npy")).any(axis=1).nonzero()[0].tolist() == [37]


def test_a_null_prompt_is_an_error_of_its_row(tmp_path, store, model):
    path = write(tmp_path / "t.jsonl", {"prompt": ["a"] * 30 + [None], "system": [None] * 31})
    job = generate.generate_job(
        f"transformers:{model}?max_tokens=2",
        1,
        lambda: map(generate.generator_inputs, files.read_text_columns(path, "prompt", "system?")),
        store,
    )
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    said = files.describe_errors(job.cached_rows(store).build_index(), job.batches(), "prompts")
    assert said.startswith("1 of 31 prompts are errors; row 30: the prompt is empty")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_half_a_character_costs_no_other_row(tmp_path, model, encoder):
    """31 rows, the last cut in the middle of an emoji, as programs that count UTF-16 units cut it."""
    rows = [{"response": f"text number {i}", "prompt": "Why?"} for i in range(30)]
    path, out = tmp_path / "t.jsonl", tmp_path / "v.npy"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"response": "cut \ud83d", "prompt": "Why?"}]))
    run("encode", path, "--encoder", encoder.format(model), "--local", "--store", tmp_path / "store", "--out", out)
    assert np.isfinite(np.load(out)).all() and np.load(out).shape[0] == 31


def test_half_a_character_in_a_prompt_is_an_error_of_its_row(tmp_path, model):
    path, out = tmp_path / "t.jsonl", tmp_path / "c.parquet"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [*["Why?"] * 30, "cut \ud83d"]))
    name = f"transformers:{model}?max_tokens=2"
    run("generate", path, "--generator", name, "-n", 1, "--local", "--store", tmp_path / "store", "--out", out)
    assert pl.read_parquet(out)["error"].is_not_null().arg_true().to_list() == [30]
    assert "U+FFFD" in pl.read_parquet(out)["error"][30]


HALVES = st.sampled_from(["\ud83d", "\ude00", "\udfff", "\ud800"])
BROKEN = st.lists(
    st.lists(HALVES | st.text(max_size=3) | st.sampled_from(["\\", "\\ud83d", '"', "\n"])).map("".join), max_size=9
)


@given(BROKEN, st.booleans(), st.integers(1, 60))
def test_jsonl_is_read_like_json_with_half_characters_replaced(tmp_path_factory, texts, ascii, block):
    """Escaped backslashes before a u are no escapes, and a pair of halves is one character."""
    path = tmp_path_factory.mktemp("halves") / "t.jsonl"
    wanted = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    lines = [
        json.dumps({"response": text if ascii else good}, ensure_ascii=ascii)
        for text, good in zip(texts, wanted, strict=True)
    ]
    path.write_bytes("\n".join(['{"response": "first"}', *lines, ""]).encode())
    with files.WholeCharacters(path) as opened:
        parts = list(iter(lambda: opened.read(block), b""))
    assert max(map(len, parts)) <= block
    assert [json.loads(line)["response"] for line in b"".join(parts).splitlines()] == ["first", *wanted]
    assert read(path, "response")["response"] == ["first", *wanted]


@pytest.mark.parametrize("suffix", [".CSV", ".JSONL", ".PARQUET", ".Csv", ".JsonL"])
def test_suffixes_may_be_in_capitals(tmp_path, suffix):
    words = [text or "more" for text in TEXTS]
    path = write(tmp_path / f"t{suffix.lower()}", {"response": words}).rename(tmp_path / f"T{suffix}")
    assert read(path, "response") == {"response": words}
    out = tmp_path / "V.NPY"
    run("encode", path, "--encoder", "hashing-8", "--local", "--store", tmp_path / "store", "--out", out)
    assert np.load(out).shape == (len(words), 8)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_huge_text_in_a_small_file_is_refused_with_its_row(tmp_path, kind, monkeypatch):
    """A few kB of parquet unpack to any number of bytes; the text is refused before it is copied, hashed or tokenised."""
    monkeypatch.setattr(files, "ROWS_PER_BATCH", 10)
    path = tmp_path / "t.parquet"
    texts = [*["a"] * 36, None, "é" * (files.MAX_TEXT_BYTES // 2 + 1), *["b"] * 5]
    pa.parquet.write_table(pa.table({"response": pa.array(texts, pa.string()).cast(kind)}), path, compression="zstd")
    assert path.stat().st_size < 50_000
    with pytest.raises(UserError, match="row 37 of column response holds a text of more than 16 MiB"):
        read(path, "response")


def test_a_larger_text_is_refused_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_GROUP_BYTES", 1 << 25)
    monkeypatch.setattr(files, "_too_long_row", None)  # would be called with the first rows read
    path, texts = tmp_path / "t.parquet", ["a", "b", "c" * (1 << 26)]
    pa.parquet.write_table(pa.table({"response": texts}), path, compression="zstd", row_group_size=2)
    with pytest.raises(UserError, match="one of the rows 2 to 2 of column response holds a text of more than 16 MiB"):
        read(path, "response")


@pytest.mark.parametrize("suffix", files.FILE_SUFFIXES)
def test_a_missing_column_is_named(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", {"answer": ["a"], "n": [1]})
    with pytest.raises(UserError, match="has no column response; its columns are answer, n"):
        read(path, "response")


def test_what_is_no_text_is_said(tmp_path):
    chats = [[{"role": "user", "content": "hi"}]]
    for path, columns in ((tmp_path / "n.parquet", {"response": [1.5]}), (tmp_path / "c.parquet", {"response": chats})):
        with pytest.raises(UserError, match="column response holds .*, not text"):
            read(write(path, columns), "response")
    for value in (17, chats, {"text": "a"}):
        path = tmp_path / "t.jsonl"
        path.write_text(json.dumps({"response": "a"}) + "\n" + json.dumps({"response": value}) + "\n")
        with pytest.raises(UserError, match="cannot be read: .*response.* row 1"):
            read(path, "response")


def test_broken_files_are_said(tmp_path):
    whole = write(tmp_path / "whole.parquet", {"response": ["some text"] * 100}).read_bytes()
    broken = {
        "cut.parquet": whole[: len(whole) // 2],
        "other.parquet": b"response\na\n",
        "cut.jsonl": b'{"response": "a"}\n{"response": "b',
        "other.jsonl": b"response\na\n",
        "latin.csv": "response,n\ncaf\xe9,1\n".encode("latin-1"),
        "ragged.csv": b"response,n\na,1\nb\n",
        "empty.csv": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(tmp_path / name, "response")
        assert name in caught.value.message and caught.value.hint
    for name in ("absent.jsonl", "texts.xlsx", "."):
        (tmp_path / "texts.xlsx").touch()
        with pytest.raises(UserError, match="does not exist|unknown file type"):
            read(tmp_path / name, "response")


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=30)


@settings(deadline=None, max_examples=30)
@given(texts, st.integers(1, 7))
def test_vectors_are_written_in_the_order_of_the_file(tmp_path_factory, texts, batch):
    """The vectors are scikit-learn's counts of the same tokens."""
    from sklearn.feature_extraction.text import HashingVectorizer

    from harness.inference.words import visible_tokens

    folder = tmp_path_factory.mktemp("vectors")
    columns = pa.table({"response": pa.array([*texts, "some words"], pa.large_string())})
    store = Store(folder / "store").open()
    slices = [columns.slice(at, batch) for at in range(0, len(columns), batch)]
    job = encode.encode_job("hashing-32", lambda: iter(slices), store)
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    shape = files.write_vectors(folder / "v.npy", job.cached_rows(store).build_index(), job.batches)
    found = np.load(folder / "v.npy")
    assert shape == found.shape == (len(columns), 32) and found.dtype == np.float32
    counts = (
        HashingVectorizer(analyzer=visible_tokens, n_features=32, norm=None).transform([*texts, "some words"]).toarray()
    )
    expected = np.sign(counts) * np.where(counts, 1 + np.log(np.maximum(abs(counts), 1)), 0)
    expected[[not text.strip() for text in [*texts, "some words"]]] = np.nan  # an empty text is an error
    np.testing.assert_allclose(found, expected, 1e-6)


def test_a_text_that_is_an_error_is_nan(store, model, tmp_path, monkeypatch):
    """Errors are NaN at the start, where the number of columns is still unknown, and in the middle; float16 is kept."""
    name = f"transformers:{model}?storage=float16&normalize=true"
    columns = pa.table({"response": ["", " ", "Is it cold?", "\n", "Yes.", "Is it cold?"]})
    job = encode.encode_job(name, lambda: iter([columns.slice(at, 2) for at in (0, 2, 4)]), store)
    assert make_in_process(job.cached_rows(store), job.recipe, job.batches())["errors"] == 3
    index = job.cached_rows(store).build_index()
    assert files.write_vectors(tmp_path / "v.npy", index, job.batches) == (6, 128)
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float16 and np.isnan(found).any(axis=1).tolist() == [True, True, False, True, False, False]
    np.testing.assert_allclose(np.linalg.norm(found[[2, 4]].astype(float), axis=1), 1, atol=2e-3)
    assert (found[2] == found[5]).all() and (found[2] != found[4]).any()
    shard = job.cached_rows(store).store.read_manifest(
        job.cached_rows(store).store_kind, sorted(store.committed_keys(job.cached_rows(store).store_kind))[0]
    )
    assert store.object_path(shard, "rows.arrow").stat().st_size < 2 * 128 * 2 + 3000  # two bytes for each number
    with pytest.raises(UserError, match="3 of 6 texts are errors"):
        encode.stored_vectors(columns, name, store)
    np.testing.assert_array_equal(encode.stored_vectors(columns.take([2, 4]), name, store), found[[2, 4]])


def test_nothing_to_write_leaves_nothing(store, model, tmp_path):
    columns = pa.table({"response": ["", " "]})
    job = encode.encode_job(f"transformers:{model}", lambda: iter([columns]), store)
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    with pytest.raises(UserError, match="none of the 2 texts"):
        files.write_vectors(tmp_path / "v.npy", job.cached_rows(store).build_index(), job.batches)
    assert not [path for path in tmp_path.iterdir() if "v.npy" in path.name]
    with pytest.raises(UserError, match="cannot be written: No such file.*--out|cannot be written"):
        files.write_candidates(tmp_path / "no" / "c.parquet", job.cached_rows(store).build_index(), lambda: iter([]))


def test_candidates_stand_beside_their_prompts(store, model, tmp_path, monkeypatch):
    """Rows are in the file's order, and an error has its reason: as the first row, in the middle, and alone."""
    prompts = ["", "How are you?", "So \ufffd?", "Hello", "How are you?", "word " * 3000, "Who?"]
    systems = [None, "Be brief.", None, None, None, None, "Be brief."]
    columns = pa.table({"system": pa.array(systems, pa.string()), "prompt": prompts})
    slices = [generate.generator_inputs(columns.slice(i, 2)) for i in (0, 2, 4, 6)]
    job = generate.generate_job(f"transformers:{model}?max_tokens=5", 3, lambda: iter(slices), store)
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    out = tmp_path / "c.parquet"
    assert files.write_candidates(out, job.cached_rows(store).build_index(), job.batches) == 7
    found = pl.read_parquet(out)
    assert found["row"].to_list() == list(range(7))
    assert found["prompt"].to_list() == prompts and found["system"].to_list() == systems
    wrong = ["empty", None, "could not be decoded", None, None, "tokens", None]
    for reason, row in zip(wrong, found.to_dicts(), strict=True):
        assert (row["error"] is None) == (reason is None) == (row["responses"] is not None)
        assert reason is None or reason in row["error"]
        assert reason or len(row["responses"]) == len(row["n_tokens"]) == 3 == len(row["mean_logprob"])
    assert found["responses"][1].to_list() != found["responses"][4].to_list()  # the system line differs
    asked = generate.stored_candidates(systems[3:5], prompts[3:5], f"transformers:{model}?max_tokens=5", 3, store)
    assert asked == found["responses"][3:5].to_list()

    only = generate.generator_inputs(columns.slice(0, 1))
    assert files.write_candidates(out, job.cached_rows(store).build_index(), lambda: iter([only])) == 1
    assert pl.read_parquet(out)["responses"].to_list() == [None]


def test_failed_prompts_stop_a_task_past_a_rate(store, model):
    name, prompts = f"transformers:{model}?max_tokens=2", ["Why?"] * 19 + [""]
    job = generate.generate_job(
        name, 1, lambda: [generate.generator_inputs(pa.table({"system": [None] * 20, "prompt": prompts}))], store
    )
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    assert [len(row) for row in generate.stored_candidates([None] * 20, prompts, name, 1, store)] == [1] * 19 + [0]
    with pytest.raises(
        UserError, match="2 of 20 prompts are errors, more than the 5% allowed; row 18: the prompt is empty"
    ):
        generate.stored_candidates([None] * 20, [*prompts[:18], "", ""], name, 1, store)


def test_an_empty_sample_is_an_error(model, store, monkeypatch):
    """A prompt keeps either all its samples or none."""

    class Engine:
        def sample(self, prompts, seeds, n, **settings):
            said = [["a", "b"], ["a", " "], ["", ""]]
            return [[Sample(text, "stop", 1, -1.0) for text in said[i % 3]] for i in range(len(prompts))]

    monkeypatch.setattr("harness.models.engine.open_engine", lambda *_, **__: Engine())
    recipe = generate.generate_job(f"transformers:{model}", 2, lambda: [], store).recipe
    ready, early = recipe.prepare(
        generate.generator_inputs(pa.table({"system": [None] * 3, "prompt": ["x", "y", "z"]}))
    )
    worker = recipe.start()
    made, bad, facts = worker(ready)
    assert made["id"].to_pylist() == [text_id(None, "x")] and made.schema == generate.SAMPLE_SCHEMA
    assert bad["id"].to_pylist() == [text_id(None, "y"), text_id(None, "z")] and len(early) == 0
    counted = {"stopped": 6, "samples": 6, "tokens": 6}
    # At most REPEATED_PROMPTS prompts of a worker's first block are sampled again.
    assert facts == {"again": 3, "same": 3} | counted
    assert worker(ready)[2] == {"again": 0, "same": 0} | counted


def test_seeds_lie_far_apart():
    """Sample k of a prompt draws from seed + k, so no two seeds of 20,000 prompts are within 4,096 of each other."""
    seeds = sorted(generate.prompt_seed("maker", text_id(str(i))) for i in range(20_000))
    assert seeds[0] >= 0 and seeds[-1] < 2**62
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 4096
    assert generate.prompt_seed("maker", text_id("a")) == generate.prompt_seed("maker", text_id("a"))
    assert generate.prompt_seed("maker", text_id("a")) != generate.prompt_seed("another", text_id("a"))


def test_what_decides_the_rows_is_in_the_identity(model, store, tmp_path):
    """The identity contains options, model content and n, but no path."""
    import shutil

    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    name = f"transformers:{model}"
    assert encode.parse_encoder(name).identity == encode.parse_encoder(f"transformers:{elsewhere}").identity
    for option in ("pooling=last", "normalize=true", "storage=float16", "dtype=bfloat16", "max_length=9", "of=both"):
        assert encode.parse_encoder(f"{name}?{option}").identity != encode.parse_encoder(name).identity
    assert encode.parse_encoder(f"vllm:{model}").identity != encode.parse_encoder(name).identity
    for option in ("seed=1", "temperature=0.5", "top_p=0.9", "max_tokens=9", "dtype=bfloat16"):
        assert generate.parse_generator(f"{name}?{option}").identity != generate.parse_generator(name).identity
    writer = generate.parse_generator(name)
    assert generate.generator_identity(writer, 2) != generate.generator_identity(writer, 4)
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | {"rope_theta": 2.0}))
    assert names.model_folder_digest(elsewhere) != names.model_folder_digest(model)


def test_the_prompt_counts_where_the_encoder_reads_it(model, store):
    columns = pa.table({"prompt": ["a", "b"], "response": ["same", "same"]})
    assert len(set(encode.encoder_inputs(columns, f"transformers:{model}")["id"].to_pylist())) == 1
    assert len(set(encode.encoder_inputs(columns, f"transformers:{model}?of=both")["id"].to_pylist())) == 2


def run(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return found.stdout


def test_a_second_run_needs_neither_ray_nor_a_model(tmp_path):
    path, out = write(tmp_path / "t.csv", {"response": ["a b", "c d", "a b"]}), tmp_path / "v.npy"
    verb = ("encode", path, "--encoder", "hashing-16", "--store", tmp_path / "store")
    assert run(*verb, "--local", "--out", out).startswith("2 rows made")
    first = out.read_bytes()
    out.unlink()
    code = (
        "import sys; from harness.cli.verbs import app; sys.argv[1:] = sys.argv[1].split('|'); app(standalone_mode=False); "
        "print(sorted({'ray', 'sklearn', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, "|".join(map(str, (*verb, "--out", out)))],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "[]" and out.read_bytes() == first


def test_cut_texts_are_counted(model, tmp_path, capsys):
    """The end of a text beyond max_length decides nothing: the command says of how many texts."""
    path = write(tmp_path / "t.csv", {"response": ["a short text", "word " * 50, "word " * 51]})
    encoder = f"transformers:{model}?max_length=8"
    CliRunner().invoke(
        app,
        [
            "encode",
            str(path),
            "--encoder",
            encoder,
            "--local",
            "--store",
            str(tmp_path / "s"),
            "--out",
            str(tmp_path / "v.npy"),
        ],
    )
    vectors = np.load(tmp_path / "v.npy")
    assert (vectors[1] == vectors[2]).all()
    job = encode.encode_job(encoder, lambda: files.read_text_columns(path, "response"), Store(tmp_path / "s"))
    (facts,) = job.cached_rows(Store(tmp_path / "s")).block_facts()
    assert facts["cut"] == 2
    assert "2 texts of this encoder fill its max_length" in made_summary(
        {"what": "vectors", "rows": 3, "errors": 0, "seconds": 1.0, "start_seconds": 0.0, **facts}
    )


def test_npy_files_are_as_numpy_writes_them(store, tmp_path):
    columns = pa.table({"response": ["a b", "c"]})
    job = encode.encode_job("hashing-4", lambda: iter([columns]), store)
    make_in_process(job.cached_rows(store), job.recipe, job.batches())
    files.write_vectors(tmp_path / "v.npy", job.cached_rows(store).build_index(), job.batches)
    plain = io.BytesIO()
    np.save(plain, encode.stored_vectors(columns, "hashing-4", store))
    assert (tmp_path / "v.npy").read_bytes() == plain.getvalue()
