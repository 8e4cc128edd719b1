"""The command line called in this process, and what a user error looks like."""

import sys

import pytest

from harness.cli import main


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["manyminds", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return ended.value.code or 0, out.out, out.err

    return run


@pytest.fixture
def suite(tmp_path):
    def write(text, name="suite.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def told(answer, *said):
    """Exit code 2, the message, a blank line, and a hint."""
    code, out, err = answer
    err = " ".join(err.split("\x1b")[0].split(" "))
    assert code == 2 and out == "" and "\n\nhint: " in err, err
    for words in said:
        assert words in err, err
