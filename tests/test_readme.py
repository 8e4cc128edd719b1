"""README's files and commands, as written, in an empty folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.main import app

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
FILES = dict(re.findall(r"^```(?:python|toml) (\S+)\n(.*?)^```", README, re.M | re.S))
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S) for line in block.splitlines()]


def call(line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    assert not ended.value.code, out.err
    return out.out


def test_the_example_task_method_and_suite_run(tmp_path, monkeypatch, capsys):
    assert set(FILES) == {"make_choices.py", "my_task.py", "my_method.py", "my_suite.toml"}
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    exec(compile(FILES["make_choices.py"], "make_choices.py", "exec"), {})
    mine = [line for line in COMMANDS if "my_" in line and line.startswith("manyminds")]
    assert len(mine) == 4
    for line in mine:
        if " run " in line:
            line += " --local"  # the same run_trial; tests/on_ray/test_trials.py shows that Ray gives the same bytes
        out = call(line, monkeypatch, capsys)
    assert "my_method(crowd=25.0)" in out and "personalising pays" in out


def test_examples_are_as_short_as_promised():
    def code(name):
        return [line for line in FILES[name].splitlines() if line.strip()]

    assert len(code("my_task.py")) <= 25 and len(code("my_method.py")) <= 40


def test_every_verb_is_named():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert verbs == set(re.findall(r"^\| `manyminds (\w+)", README, re.M))
