"""Files of the Hugging Face hub, pinned, cached or unreachable, tested against a local server."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import datasets
import polars as pl
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from harness.errors import UnavailableError, UserError
from harness.sources import hub
from harness.sources.hub import hub_files, numbered_rows, read_typed_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A server that answers as huggingface.co does for one data set: its files under /resolve/COMMIT, with headers."""

    files: ClassVar = {"a.jsonl": b'{"user": "u"}\n', "deep/b.jsonl": b'{"user": "v"}\n'}
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(self.files.get(self.path.partition("/resolve/")[2].partition("/")[2], b""))

    def answer(self, body):
        self.asked.append((self.command, self.path))
        repo, _, rest = self.path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        missing = {"RepoNotFound": repo != "org/data", "RevisionNotFound": revision != COMMIT}
        missing["EntryNotFound"] = file not in self.files
        error = next((name for name, is_so in missing.items() if is_so), None)
        self.send_response(404 if error else 200)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", "0")
        else:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(self.files[file]).hexdigest()}"')
            self.send_header("Content-Length", str(len(self.files[file])))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The requests to a local hub, which huggingface_hub uses with a separate cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(Hub, "asked", [])
    reach(monkeypatch, tmp_path, server.server_port)
    yield Hub.asked
    server.shutdown()
    server.server_close()


def reach(monkeypatch, tmp_path, port):
    here = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        here + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT),
    )
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_files_are_fetched_once_at_their_commit(served):
    found = hub_files("org/data", COMMIT, list(Hub.files))
    assert [path.read_bytes() for path in found] == list(Hub.files.values())
    got = [path for verb, path in served if verb == "GET" and path.startswith("/datasets/")]
    assert got == [f"/datasets/org/data/resolve/{COMMIT}/{file}" for file in Hub.files]
    before = len(served)
    assert hub_files("org/data", COMMIT, list(Hub.files)) == found and len(served) == before


def test_the_cache_is_enough_without_a_network(served, monkeypatch):
    found = hub_files("org/data", COMMIT, ["a.jsonl"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(served)
    assert hub_files("org/data", COMMIT, ["a.jsonl"]) == found
    with pytest.raises(UnavailableError, match=r"deep/b.jsonl of the data set org/data is not in the hub's cache"):
        hub_files("org/data", COMMIT, ["a.jsonl", "deep/b.jsonl"])
    assert len(served) == before


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT + "0", COMMIT.upper(), "", f"{COMMIT}\n"])
def test_a_revision_that_may_move_is_refused(served, revision):
    with pytest.raises(UserError, match="not the 40 hex digits of a commit") as refused:
        hub_files("org/data", revision, ["a.jsonl"])
    assert "git ls-remote https://huggingface.co/datasets/org/data" in refused.value.hint and not served


@pytest.mark.parametrize(
    ("repo", "revision", "file"),
    [("org/other", COMMIT, "a.jsonl"), ("org/data", COMMIT[::-1], "a.jsonl"), ("org/data", COMMIT, "c.jsonl")],
)
def test_what_the_hub_does_not_have_is_a_mistake(served, repo, revision, file):
    with pytest.raises(UserError, match=f"the hub has no {file} in the data set {repo}") as refused:
        hub_files(repo, revision, [file])
    assert not isinstance(refused.value, UnavailableError)  # another machine would not have the file either


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_a_missing_network_is_told_with_the_line_to_type(monkeypatch, tmp_path, how):
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        if how == "is silent":
            there.listen()  # accepts the request and never answers
            monkeypatch.setattr(hub, "HUB_TIMEOUT_SECONDS", 0.2)
        reach(monkeypatch, tmp_path, there.getsockname()[1])
        with pytest.raises(UnavailableError, match="could not be fetched") as missing:
            hub_files("org/data", COMMIT, ["a.jsonl", "deep/b.jsonl"])
    line = f"hf download org/data a.jsonl deep/b.jsonl --repo-type dataset --revision {COMMIT} --local-dir DIR"
    assert line in missing.value.hint and 'file = "DIR"' in missing.value.hint


def test_jsonl_and_parquet_are_read_alike(tmp_path):
    written = [{"user": "é", "turn": 2, "kept": True, "more": {"a": [1]}}, {"user": None, "turn": 0, "kept": False}]
    lines, columns = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("\n\n".join(map(json.dumps, written)) + "\n")
    pl.DataFrame(written).write_parquet(columns)
    assert [number for number, _ in numbered_rows(lines)] == [0, 2] and [
        number for number, _ in numbered_rows(columns)
    ] == [0, 1]
    wanted = pl.DataFrame({"turn": [2, 0], "user": ["é", ""], "kept": [True, False]})
    for path in (lines, columns):
        assert read_typed_table(path, {"turn": int, "user": str, "kept": bool}).equals(wanted)
    lines.write_text("")
    assert read_typed_table(lines, {"turn": int, "user": str}).schema == {"turn": pl.Int64, "user": pl.String}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"user": 3, "turn": 0}', r"row 1: \{'user': 3, 'turn': 0\}"),
        ('{"user": "u", "turn": "0"}', "row 1: .*'turn': '0'"),
        ('{"user": "u", "turn": true}', "row 1: .*'turn': True"),
        ('{"user": "u", "turn": null}', "row 1: .*'turn': None"),
        ('{"turn": 0}', r"row 1: \{'turn': 0\}"),
        ("[1]", r"row 1: \[1\]"),
        ('{"user": "u"', "row 1 is not JSON"),
        ('"\udcff"', "row 1 is not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, says):
    path = tmp_path / "a.jsonl"
    path.write_text('{"user": "u", "turn": 0}\n' + line, errors="surrogateescape")
    with pytest.raises(UserError, match=says):
        read_typed_table(path, {"user": str, "turn": int})


def test_half_a_character_is_replaced_and_suffixes_may_be_in_capitals(tmp_path):
    path = tmp_path / "a.JSONL"
    path.write_text(
        json.dumps({"user": "cut \ud83d", "turn": 0}) + "\n" + json.dumps({"user": "😀 \\ud83d", "turn": 1})
    )
    found = read_typed_table(path, {"user": str, "turn": int})
    assert found["user"].to_list() == ["cut \ufffd", "😀 \\ud83d"]
    found.write_parquet(tmp_path / "a.PARQUET")
    assert read_typed_table(tmp_path / "a.PARQUET", {"user": str, "turn": int}).equals(found)


def test_no_file_and_no_table(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a.parquet is not a parquet table"):
        list(numbered_rows(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"b.jsonl does not exist"):
        list(numbered_rows(tmp_path / "b.jsonl"))


class Asked(dict):
    """The arguments of a call of `datasets.load_dataset`, which answers with three rows."""

    def __call__(self, repo, config, **options):
        self.update(options, repo=repo, config=config)
        rows = datasets.Dataset.from_list([{"user": f"u{i}", "text": "x" * i} for i in range(3)])
        return rows.to_iterable_dataset() if options["streaming"] else rows


@pytest.fixture
def library(monkeypatch):
    asked = Asked()
    monkeypatch.setattr(datasets, "load_dataset", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    return asked


def test_a_data_set_is_read_at_its_pinned_revision(library):
    found = hub.load_hub_table(f"org/data@{COMMIT}", "comparisons", "validation")
    assert found.rows() == [("u0", ""), ("u1", "x"), ("u2", "xx")]
    told = {name: library[name] for name in ("repo", "config", "revision", "split", "streaming")}
    wanted = {
        "repo": "org/data",
        "config": "comparisons",
        "revision": COMMIT,
        "split": "validation",
        "streaming": False,
    }
    assert told == wanted and not library["download_config"].local_files_only


def test_first_rows_are_streamed(library):
    assert hub.load_hub_table(f"org/data@{COMMIT}", first_rows=2)["user"].to_list() == ["u0", "u1"]
    assert library["streaming"] and library["config"] is None


def test_without_a_network_the_librarys_cache_is_asked_at_once(library, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    assert len(hub.load_hub_table(f"org/data@{COMMIT}")) == 3 and library["download_config"].local_files_only
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UnavailableError, match="could not be read from the hub or its cache") as caught:
        hub.load_hub_table(f"org/data@{COMMIT}")
    assert f"hf download org/data --repo-type dataset --revision {COMMIT}" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/data", "is not the 40 hex digits"),
        (f"data@{COMMIT}", "is not the name of a data set"),
        ("org/data@main", "40 hex"),
    ],
)
def test_only_a_pinned_revision_is_read(library, name, said):
    with pytest.raises(UserError, match=said):
        hub.load_hub_table(name)
    assert not library


def test_an_unknown_split_and_an_unknown_data_set_are_said(library, monkeypatch):
    def wrong(*_, **__):
        raise ValueError("Unknown split 'dev'. Should be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", wrong)
    with pytest.raises(UserError, match="org/data: Unknown split 'dev'") as caught:
        hub.load_hub_table(f"org/data@{COMMIT}", split="dev")
    assert "config and hub_split" in caught.value.hint

    def missing(*_, **__):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", missing)
    with pytest.raises(UserError, match="the hub has no data set org/data"):
        hub.load_hub_table(f"org/data@{COMMIT}")
