"""Every document: its code runs, its commands exist, its links lead somewhere, and what is generated is up to date."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer

from harness import registry
from harness.cli import main
from harness.cli.verbs import app
from harness.registry import PROJECT_ROOT
from harness.report import mlflow_records
from harness.scores.metrics import METRICS_VERSION
from harness.trials.trial import KEY_VERSION

NAMES = [
    "README.md",
    "harness/README.md",
    "harness/CHANGELOG.md",
    "harness/methods/README.md",
    "tasks/README.md",
    "jobs/README.md",
    "cluster/README.md",
    "tests/README.md",
    ".github/CONTRIBUTING.md",
]
DOCUMENTS = {name: (PROJECT_ROOT / name).read_text() for name in NAMES}
BLOCK = re.compile(r"(?:^\*\*`(?P<file>\S+)`\*\*\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```", re.M | re.S)
BLOCKS = [(name, found) for name, text in DOCUMENTS.items() for found in BLOCK.finditer(text)]
FILES = {found["file"]: found["text"] for _, found in BLOCKS if found["file"]}
LINES = [  # of shell blocks, lines that end in a backslash joined
    (name, line.strip())
    for name, found in BLOCKS
    if found["kind"] == "sh"
    for line in found["text"].replace("\\\n", " ").splitlines()
]
ELSEWHERE = (  # programs that are not this project's: their lines are shown, and not run
    *("docker", "kubectl", "export", "ray", "sbatch", "sed", "umask", "(umask", "for", "done", "REGISTRY="),
    *("srun", "scancel", "squeue", "cp", "git", "pip", "source", "REGISTRY"),
)


def call(line, monkeypatch, capsys, code=0):
    """Run a line of the command as typed, and return what it prints."""
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    assert (ended.value.code or 0) == code, out.err
    return out.out


def commands(name):
    """The `manyminds` lines of a document about files that the documents give."""
    return [line for where, line in LINES if where == name and line.startswith("manyminds") and "my_" in line]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with every file that the documents give, and the table that one of them makes."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    exec(compile(FILES["make_choices.py"], "make_choices.py", "exec"), {})
    return tmp_path


def test_the_example_task_method_and_suite_run(newcomer, monkeypatch, capsys):
    assert set(FILES) == {
        "make_choices.py",
        "my_data.toml",
        "my_task.py",
        "text_task.py",
        "my_method.py",
        "my_suite.toml",
        "curt_judge.py",
    }
    checks = ["manyminds check text_task.py", "manyminds check curt_judge.py"]
    mine = [*commands("README.md"), *commands("harness/methods/README.md"), *checks]
    assert len(mine) == 9
    boards = []
    for line in mine:
        if " run " in line:
            line += " --local"  # the same run_trial; tests/on_ray/test_trials.py shows that Ray gives the same bytes
        out = call(line, monkeypatch, capsys)
        boards += [out] if " run " in line else []
    assert len(boards) == 3 and all("personalising pays" in out for out in boards)
    assert ["my_method(crowd=25.0)" in out for out in boards] == [False, True, True]


@pytest.mark.parametrize("name", ["README.md", "harness/README.md"])
def test_the_python_examples_run(name, newcomer, capsys):
    blocks = [
        found["text"] for where, found in BLOCKS if where == name and found["kind"] == "python" and not found["file"]
    ]
    assert len(blocks) == 1
    exec(compile(blocks[0], name, "exec"), {})
    assert capsys.readouterr().out


def test_pages_are_installed_with_the_package():
    """An installed copy, unlike an editable one, has only the files that pyproject.toml names."""
    named = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for page in (file for suffix in ("html", "js", "bib") for file in (PROJECT_ROOT / "harness").rglob(f"*.{suffix}")):
        patterns = named.get(page.parent.relative_to(PROJECT_ROOT).as_posix().replace("/", "."), [])
        assert any(page.match(pattern) for pattern in patterns), page


def test_examples_are_as_short_as_promised():
    def code(name):
        return [line for line in FILES[name].splitlines() if line.strip()]

    assert len(code("my_task.py")) <= 25 and len(code("my_method.py")) <= 40
    assert len(DOCUMENTS["README.md"].splitlines()) <= 155


@pytest.mark.parametrize(("name", "line"), LINES, ids=range(len(LINES)))
def test_a_command_in_a_document_exists(name, line):
    """Its options are those of the command, its make target and its files are there."""
    words = shlex.split(line, comments=True)
    if not words or words[0].startswith(ELSEWHERE):
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (PROJECT_ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "manyminds":
        verb = typer.main.get_group(app).commands[words[1]]
        verb.make_context(words[1], words[2:])  # raises where an option does not exist
    elif words[:2] == ["python", "make_choices.py"]:
        assert "make_choices.py" in FILES
    elif words[0].endswith("python") and words[1] == "-m":
        assert words[2] in ("pytest", "jobs.submit")
        for word in words[3:]:
            assert not word.startswith(("tests/", "jobs/")) or (PROJECT_ROOT / word).exists(), word
    elif words[0] in ("python", "pre-commit"):
        assert words[0] == "pre-commit" or (PROJECT_ROOT / words[1]).is_file()
    else:
        pytest.fail(f"nothing checks {words[0]!r}")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```.*?^```", "", DOCUMENTS[name], flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (PROJECT_ROOT / name).parent / path if path else PROJECT_ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("name", NAMES)
def test_files_named_in_a_document_exist(name):
    """`trials/run.py` in harness/README.md, `tests/house.py` anywhere: nothing that has moved or gone is named."""
    homes = [PROJECT_ROOT, (PROJECT_ROOT / name).parent, PROJECT_ROOT / "jobs"]
    for target in re.findall(r"`([\w./*-]+/[\w.*-]+\.(?:py|toml|md|html|yaml|sh))`", DOCUMENTS[name]):
        if "NAME" not in target and not target.startswith("store/"):
            assert any(list(home.glob(target)) for home in homes), target


def test_every_block_is_of_a_known_kind():
    for name, found in BLOCKS:
        assert found["kind"] in ("sh", "python", "toml", "text"), (name, found["text"][:60])
        if found["kind"] == "toml":
            tomllib.loads(found["text"])


def test_every_command_is_named():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert verbs == set(re.findall(r"^\| `manyminds (\w+)", DOCUMENTS["jobs/README.md"], re.M))


def test_every_task_is_in_its_family():
    rows = re.findall(
        r"^\| (simulated|human choices|human text|written by models) \| (.+) \|$", DOCUMENTS["tasks/README.md"], re.M
    )
    found = {name: family for family, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert found == {name: registry.load_class("task", name).family for name in registry.list_names("task")}


def test_the_reference_is_that_of_the_fields():
    done = subprocess.run([sys.executable, ".docs/reference.py", "--check"], cwd=PROJECT_ROOT, check=False)
    assert done.returncode == 0, "python .docs/reference.py writes it again"


def test_the_changelog_names_every_version_above_one():
    text = DOCUMENTS["harness/CHANGELOG.md"]
    for name, version in {
        "KEY_VERSION": KEY_VERSION,
        "METRICS_VERSION": METRICS_VERSION,
        "PUBLISH_VERSION": mlflow_records.PUBLISH_VERSION,
    }.items():
        assert re.search(rf"`{name}`\) \| {version} \|", text), name
    for kind in ("task", "method"):
        for name in registry.list_names(kind):
            version = registry.load_class(kind, name).version
            listed = re.findall(rf"^\| {kind} `{name}` \| (\d+) \|", text, re.M)
            assert [int(v) for v in listed][-1:] == ([version] if version > 1 else []), name


@pytest.mark.slow
@pytest.mark.skipif("MANYMINDS_DATA" not in os.environ, reason="MANYMINDS_DATA names no folder of public data")
def test_the_board_in_the_readme_is_what_the_command_prints(tmp_path, monkeypatch):
    """The same words, and numbers that differ by no more than another processor's rounding."""
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / ".docs"))
    import board

    number = re.compile(r"[-+]?\d*\.\d+")
    shown, printed = board.board_in_readme(), board.snacks_board(tmp_path / "store")
    assert re.sub(r"\s+", " ", number.sub("x", shown)) == re.sub(r"\s+", " ", number.sub("x", printed))
    a, b = ([float(found) for found in number.findall(text)] for text in (shown, printed))
    np.testing.assert_allclose(a, b, atol=0.0021)
