"""The code that a task or a method rests on: its file and what that file imports, without comments and formatting."""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import lru_cache
from pathlib import Path

from harness.registry import PROJECT_ROOT

# Folders of the project whose code decides results, relative to its root. The others run, store and show results.
RESULT_FOLDERS = (
    "tasks",
    "harness/inference",
    "harness/learning",
    "harness/methods",
    "harness/models",
    "harness/sources",
)
DIGEST_VERSION = "2:"  # begins a digest of `code_digest`; older results have digests of one file's bytes


def code_digest(cls: type) -> str:
    """Return a digest of the class's file and of all files that it imports, directly or not, as DIGEST_VERSION + 16 hex digits.

    Imported files count where they lie in RESULT_FOLDERS, or beside a plug-in. Comments, docstrings and formatting do not
    count.
    """
    return (
        DIGEST_VERSION
        + hashlib.sha256("".join(sorted(map(_digest_of_file, used_files(cls)))).encode()).hexdigest()[:16]
    )


def used_files(cls: type) -> set[Path]:
    """Return the class's file and all files with code of results that it imports, directly or not."""
    first = Path(inspect.getfile(cls)).resolve()
    found, waiting = {first}, [first]
    while waiting:
        last = waiting.pop()
        for file in _imported_files(last, last.stat().st_mtime_ns, first.parent):
            if file not in found:
                found.add(file)
                waiting.append(file)
    return found


def is_unchanged(recorded: str, cls: type) -> bool:
    """Return whether the code of a class still has the digest that a result recorded."""
    if recorded.startswith(DIGEST_VERSION):
        return recorded == code_digest(cls)
    return recorded == hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:16]


@lru_cache(1000)  # every trial asks, and looking for the files took an eighth of a sweep of small trials
def _imported_files(file: Path, modified: int, beside: Path) -> tuple[Path, ...]:
    found = []
    for name in _imports(file):
        path = Path(*name.split("."))
        for root in (PROJECT_ROOT, beside):
            for candidate in ((root / path).with_suffix(".py"), root / path / "__init__.py"):
                inside = root is beside or any(candidate.is_relative_to(PROJECT_ROOT / one) for one in RESULT_FOLDERS)
                if inside and candidate.is_file():
                    found.append(candidate.resolve())
    return tuple(found)


def _imports(file: Path) -> tuple[str, ...]:
    """Return the dotted names of a file's imports, wherever they stand; `from a import b` gives `a` and `a.b`."""
    names: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= dict.fromkeys([node.module, *(f"{node.module}.{name.name}" for name in node.names)])
    return tuple(names)


def _digest_of_file(file: Path) -> str:
    return _digest_of_code(file, file.stat().st_mtime_ns)


@lru_cache(1000)
def _digest_of_code(file: Path, modified: int) -> str:
    """Return the digest of a file's syntax tree without docstrings."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
