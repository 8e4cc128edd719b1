"""Rules of imports: between packages, without cycles, few importers of Ray, MLflow and vLLM, and fast look-ups."""

import os
import subprocess
import sys

import pytest

from harness.registry import PROJECT_ROOT
from tests.house import arrows, circles, floors, folded, imports, modules, wing

# Allowed imports, as drawn in harness/README.md. Names are packages ("wings") or single modules of harness/.
# File writes, user errors, field checks, data frames, workers, names of tasks and methods, rows, texts and units.
GROUND = {
    "atomic",
    "errors",
    "fields",
    "frames",
    "machine",
    "parallel",
    "registry",
    "rows",
    "sameness",
    "scaling",
    "search_space",
    "table_files",
}
CONTRACT = {"data", "judgements", "method", "table_task", "task"}  # modules that authors of tasks and methods import
MAY_IMPORT = {
    "errors": set(),
    "atomic": set(),
    "machine": set(),
    "parallel": set(),
    "fields": {"errors"},
    "frames": {"errors"},
    "registry": {"errors", "fields"},
    "rows": {"errors", "sameness"},
    "sameness": set(),
    "scaling": {"errors"},
    "search_space": set(),
    "table_files": {"errors"},
    "data": {"errors", "frames", "rows", "sameness", "table_files"},
    "method": {"data", "fields", "search_space"},
    "task": {"data", "errors", "fields", "method"},
    "judgements": {"data", "errors", "rows"},
    "table_task": {"errors", "inference", "sources", "store", "table_files", "task", "data"},
    "sources": GROUND,
    "store": GROUND | {"data"},
    "scores": {"data"},
    "models": GROUND | {"sources", "store"},
    "inference": GROUND | {"models", "sources", "store"},
    "learning": GROUND | CONTRACT | {"models", "scores", "store"},
    "methods": GROUND | CONTRACT | {"inference", "learning", "models", "scores", "store"},
    "trials": GROUND | CONTRACT | {"inference", "scores", "store"},
    "on_ray": GROUND | {"inference", "store", "trials"},
    "board": CONTRACT | {"errors", "fields", "inference", "machine", "scores", "store", "trials"},
    "report": CONTRACT | {"atomic", "board", "errors", "fields", "inference", "scores", "store", "trials"},
    "claims": GROUND | CONTRACT | {"board", "report", "scores", "store", "trials"},
    "check": GROUND | CONTRACT | {"inference", "models", "scores", "store", "trials"},
    "api": GROUND | CONTRACT | {"board", "inference", "on_ray", "report", "scores", "sources", "store", "trials"},
    "cli": GROUND
    | CONTRACT
    | {
        "api",
        "board",
        "check",
        "claims",
        "inference",
        "learning",
        "on_ray",
        "report",
        "scores",
        "sources",
        "store",
        "trials",
    },
    "tasks": CONTRACT | {"errors", "inference", "rows", "sameness", "sources", "store", "table_files"},
    "jobs": {"cli", "errors", "registry", "sources", "store", "trials"},
}
DOORS = {  # library -> the only files or folders that may import it, at any place in a file
    "ray": {"harness/on_ray/", "jobs/"},
    "mlflow": {"harness/report/to_mlflow.py"},
    "optuna": {"harness/learning/search.py"},
    "vllm": {"harness/models/on_vllm.py"},
}
MAX_FLOORS = 6  # levels of imports inside one folder; more are hard to read from top to bottom

EVERY = modules(PROJECT_ROOT, "harness", "tasks", "jobs")
BETWEEN = arrows(EVERY)


@pytest.mark.parametrize("room", sorted({wing(name) for name in EVERY} - {"harness"}))
def test_a_wing_imports_what_the_map_allows(room):
    """Each package imports only what MAY_IMPORT allows; a package that is not listed fails too."""
    found = {other.removeprefix("harness.") for other in folded(BETWEEN, wing)[room] if other != "harness"}
    assert found - MAY_IMPORT[room.removeprefix("harness.")] == set()


def test_nothing_imports_in_a_circle():
    assert circles(BETWEEN) == [] and circles(folded(BETWEEN, wing)) == []


@pytest.mark.parametrize("folder", sorted({name.rpartition(".")[0] for name in EVERY if name.count(".") > 1}))
def test_no_folder_is_deeper_than_six_floors(folder):
    """Imports between a folder's files, where a subfolder counts as one file, have at most MAX_FLOORS levels."""
    inside = {name for name in EVERY if name.startswith(f"{folder}.")}

    def room_of(name):
        return ".".join(name.split(".")[: folder.count(".") + 2])

    between = folded({name: BETWEEN[name] & inside for name in inside}, room_of)
    assert max(floors(between).values()) < MAX_FLOORS


def test_the_script_that_draws_the_map_sees_circles_and_floors():
    between = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"e"}, "e": {"d"}}
    assert circles(between) == [{"d", "e"}]
    assert floors({k: v for k, v in between.items() if k < "d"}) == {"a": 2, "b": 1, "c": 0}


def test_libraries_stay_behind_their_doors():
    for name, file in EVERY.items():
        used = {module.partition(".")[0] for module in imports(file)}
        path = file.relative_to(PROJECT_ROOT).as_posix()
        for library, doors in DOORS.items():
            assert library not in used or any(path.startswith(door) for door in doors), f"{name} imports {library}"
    assert "ray" in set(imports(PROJECT_ROOT / "harness/on_ray/trials.py"))
    assert "mlflow" in set(imports(PROJECT_ROOT / "harness/report/to_mlflow.py"))


def test_statistics_know_nothing_of_the_rest():
    for file in ("stats", "worst_off"):
        assert not {"harness", "tasks", "torch", "ray"} & {
            module.partition(".")[0] for module in imports(PROJECT_ROOT / f"harness/scores/{file}.py")
        }


def test_looking_up_is_light():
    code = (
        "import sys; from harness.cli.verbs import app; from harness import registry; from harness.cli import doctor;"
        "from harness.store import store; registry.list_names('task'); registry.list_names('method'); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    ).stdout.split()
    assert not {"torch", "ray", "mlflow", "matplotlib", "scipy"} & set(loaded)


def test_torch_waits_briefly_wherever_it_is_imported():
    """The number of rounds is set before torch's library of threads is loaded, unless the person sets another."""
    said = "import os, harness, torch; print(os.environ['GOMP_SPINCOUNT'])"
    for given, wanted in (({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        assert subprocess.check_output([sys.executable, "-c", said], env=plain | given, text=True).strip() == wanted
