"""The store under crashes, concurrent commits, damage and full disks: a result is complete or absent."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store.store import CRASH_POINTS, Store, _seal, identity_hash

FILES = {"a": b"alpha" * 1000, "b": b"beta"}
COMMIT = """
import sys
from harness.store.store import Store
store = Store(sys.argv[1]).open()
print(store.commit("references", "k" * 16, {"of": 1}, {"a": b"alpha" * 1000, "b": b"beta"}, {"by": "child"}))
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


def contents(store, key="k" * 16):
    manifest = store.read_manifest("references", key)
    return manifest and {name: store.read_verified(manifest, name) for name in manifest["files"]}


def test_what_is_committed_is_read(store):
    assert contents(store) is None
    assert store.commit("references", "k" * 16, {"of": 1}, FILES, {"by": "me"})
    assert contents(store) == FILES
    assert store.committed_keys("references") == {"k" * 16}
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("step", CRASH_POINTS)
def test_a_crash_at_every_step_leaves_all_or_nothing(store, step):
    """After SIGKILL at any step a reader sees nothing or everything, and the next run commits the result once."""
    crashed = subprocess.run(
        [sys.executable, "-c", COMMIT, str(store.root)], env=os.environ | {"MANYMINDS_CRASH": step}, check=False
    )
    assert crashed.returncode == -signal.SIGKILL
    assert contents(store) == (FILES if step in ("linked", "cleaned") else None)
    again = subprocess.run([sys.executable, "-c", COMMIT, str(store.root)], capture_output=True, text=True, check=True)
    assert again.stdout == ("False\n" if step in ("linked", "cleaned") else "True\n")
    assert contents(store) == FILES
    assert store.committed_keys("references") == {"k" * 16} and not store.has_diverged("k" * 16)


def test_the_crash_steps_are_all_there():
    """Every step of CRASH_POINTS is reached by a commit; otherwise the test above would not test that step."""
    source = Path(Store.commit.__code__.co_filename).read_text()
    assert all(f'_crash_point("{step}")' in source for step in CRASH_POINTS)


TRIAL = identity_hash({})  # the key of a trial is the hash of its identity


def _rival(root, content, barrier, firsts):
    barrier.wait()
    firsts.put(Store(root).commit("trials", TRIAL, {}, {"a": content}, {"pid": os.getpid()}))


@pytest.mark.parametrize("same", [True, False])
def test_of_rivals_one_wins_and_a_difference_is_noted(store, same):
    context = multiprocessing.get_context("fork")
    barrier, firsts = context.Barrier(8), context.Queue()
    rivals = [
        context.Process(target=_rival, args=(store.root, b"x" if same else str(i).encode(), barrier, firsts))
        for i in range(8)
    ]
    for rival in rivals:
        rival.start()
    won = [firsts.get(timeout=30) for _ in rivals]
    for rival in rivals:
        rival.join()
    assert sum(won) == 1
    assert store.has_diverged(TRIAL) is not same
    assert store.committed_keys("trials") == {TRIAL}


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["identity"].update(method="the best@1"),
        lambda manifest: manifest.update(key="0" * 16),
        lambda manifest: manifest["files"]["a"].update(sha256="../../../etc/passwd"),
        lambda manifest: manifest.pop("facts"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].update(a=manifest["files"]["b"]),
        lambda manifest: manifest["facts"].update(seconds=1),
    ],
)
def test_a_forged_manifest_is_refused_by_its_own_name(store, change):
    store.commit("trials", TRIAL, {}, FILES, {})
    path = store.root / "trials" / f"{TRIAL}.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was changed after it was committed") as caught:
        store.read_manifest("trials", TRIAL)
    assert caught.value.hint.startswith(f"rm {path}") and "passwd" not in str(caught.value)


def test_secrets_are_written_nowhere(store, monkeypatch):
    """A token in an exception's message and traceback reaches neither the record of the failure nor a log."""
    from harness.store.logs import LOGGER, log_to_store

    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_1")
    monkeypatch.setenv("MY_SERVICE_API_KEY", "another-secret")
    told = "hf_very_secret_1 at https://ann:pass-word@host/x?key=another-secret"
    store.record_failure(TRIAL, {}, f"ValueError: {told}", f"Traceback: {told}")
    with log_to_store(store, "run"):
        try:
            raise ValueError(told)
        except ValueError:
            LOGGER.exception("failed with %s", told)
    written = "".join(file.read_text() for folder in ("failures", "logs") for file in (store.root / folder).iterdir())
    assert not any(secret in written for secret in ("hf_very_secret_1", "another-secret", "pass-word"))
    assert "<HF_TOKEN>" in written and "https://host/x" in written


def test_a_file_cut_short_is_not_finished_and_is_mended(store):
    store.commit("references", "k" * 16, {}, FILES, {})
    path = store.object_path(store.read_manifest("references", "k" * 16), "a")
    path.write_bytes(b"alp")
    assert store.read_manifest("references", "k" * 16) is None
    store.commit("references", "k" * 16, {}, FILES, {})
    assert contents(store) == FILES


def test_lost_files_are_made_anew_even_if_they_differ(store):
    store.commit("references", "k" * 16, {}, FILES, {})
    store.object_path(store.read_manifest("references", "k" * 16), "a").unlink()
    assert store.read_manifest("references", "k" * 16) is None
    store.commit("references", "k" * 16, {}, {"a": b"another"}, {})
    assert contents(store) == {"a": b"another"}


def test_a_manifest_cut_short_is_made_anew(store):
    store.commit("references", "k" * 16, {}, FILES, {})
    for damage in (b"{", b"", b"\xff{}"):
        (store.root / "references" / ("k" * 16 + ".json")).write_bytes(damage)
        assert store.read_manifest("references", "k" * 16) is None
        store.commit("references", "k" * 16, {}, FILES, {})
        assert contents(store) == FILES


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b"{}"])
def test_a_damaged_note_of_a_failure_is_none(store, damage):
    store.record_failure("f" * 16, {"of": 2}, "ValueError: no", "trace")
    (store.root / "failures" / ("f" * 16 + ".json")).write_bytes(damage)
    assert store.read_failure("f" * 16) is None


def test_facts_with_numbers_as_names_are_read_back(store):
    """JSON makes text of them, which sorts in another order: 10 before 2."""
    store.commit("trials", "k" * 16, {}, FILES, {"readings": {2: 0.5, 10: 0.25}})
    path = store.root / "trials" / ("k" * 16 + ".json")
    manifest = json.loads(path.read_text())
    assert manifest["seal"] == _seal(manifest)


def test_a_changed_file_is_told(store):
    store.commit("references", "k" * 16, {}, FILES, {})
    manifest = store.read_manifest("references", "k" * 16)
    store.object_path(manifest, "b").write_bytes(b"BETA")
    with pytest.raises(UserError, match="damaged"):
        store.read_verified(manifest, "b")


def test_a_failure_is_no_result(store):
    store.record_failure("f" * 16, {"of": 2}, "ValueError: no", "trace")
    assert store.read_failure("f" * 16)["reason"] == "ValueError: no"
    assert store.read_manifest("references", "f" * 16) is None and store.committed_keys("references") == set()


def test_a_full_disk_loses_nothing(store):
    """A file size limit, which stops a write as a full disk does, loses no result, and the hint says what to do."""
    store.commit("references", "k" * 16, {}, FILES, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match="full") as caught:
            store.commit("references", "n" * 16, {}, {"big": os.urandom(50_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "--store" in caught.value.hint
    assert store.read_manifest("references", "n" * 16) is None and contents(store) == FILES


def test_a_store_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "store").open()


def test_manifests_are_plain_json(store):
    store.commit("references", "k" * 16, {"of": 1}, FILES, {"by": "me"})
    told = json.loads((store.root / "references" / ("k" * 16 + ".json")).read_text())
    assert set(told) == {"key", "identity", "files", "facts", "seal"}


def test_a_removed_file_is_said_to_be_gone(tmp_path):
    store = Store(tmp_path).open()
    store.commit("references", "g" * 16, {}, {"a": b"alpha"}, {})
    manifest = store.read_manifest("references", "g" * 16)
    store.object_path(manifest, "a").unlink()
    for read in (store.read_verified, store.verified_path):
        with pytest.raises(UserError, match="is gone"):
            read(manifest, "a")
