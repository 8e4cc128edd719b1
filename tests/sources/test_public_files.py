"""Public files whose download fails."""

import http.client
import urllib.request

import pytest

from harness.errors import UnavailableError
from harness.sources.public_files import PublicFile


def test_a_download_that_is_cut_off_leaves_nothing(monkeypatch, tmp_path):
    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self):
            raise http.client.IncompleteRead(b"half")

    monkeypatch.delenv("MANYMINDS_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer())
    with pytest.raises(
        UnavailableError, match=r"could not be downloaded from https://nowhere.invalid \(IncompleteRead"
    ):
        PublicFile("a.csv", "https://nowhere.invalid", "0" * 64).local_path()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
