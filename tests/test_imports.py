"""Rooms: only some files may import Ray or MLflow, and looking things up imports neither, nor torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RAY = {"harness/on_ray/session.py", "harness/on_ray/inference.py", "harness/on_ray/trials.py"}
ROOMS = {"ray": RAY, "mlflow": {"harness/report/to_mlflow.py"}}


def imported(file):
    """Top-level names of all modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_ray_and_mlflow_stay_in_their_rooms():
    files = [f for folder in ("harness", "tasks", "jobs") for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 25
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for library, rooms in ROOMS.items():
            allowed = name in rooms or (library == "ray" and name.startswith("jobs/"))
            assert allowed or library not in set(imported(file)), f"{name} imports {library}"
    assert "ray" in set(imported(ROOT / "harness/on_ray/trials.py")) and "mlflow" in set(
        imported(ROOT / "harness/report/to_mlflow.py")
    )


def test_statistics_know_nothing_of_the_rest():
    assert not {"harness", "tasks", "torch", "ray"} & set(imported(ROOT / "harness/scores/stats.py"))


def test_looking_up_is_light():
    code = "import sys; from harness.cli.main import app; from harness import registry; from harness.cli import doctor; from harness.store import store; registry.names('task'); registry.names('method'); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not {"torch", "ray", "mlflow", "matplotlib", "scipy"} & set(loaded)
