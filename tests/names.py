"""The names of the project: how long functions' names are, and which names mean more than one thing.

python tests/names.py [ROOT]      # print the figures of a checkout; tests/test_names.py holds them
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("harness", "jobs", "tasks")


def trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of every file of the project."""
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root).as_posix(), ast.parse(file.read_text())


def function_names(root: Path) -> list[str]:
    """Return the name of every function and method, without leading underscores; special methods are left out."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for _, tree in trees(root) for node in ast.walk(tree) if isinstance(node, kinds))
    return [node.name.strip("_") for node in nodes if not node.name.startswith("__")]


def shared_names(root: Path) -> dict[str, list[str]]:
    """Return the names of functions, classes and constants that more than one file defines, with these files."""
    files: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees(root):
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                files[node.name].append(path)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    files[target.id].append(path) if isinstance(target, ast.Name) else None
    return {name: sorted(set(paths)) for name, paths in sorted(files.items()) if len(set(paths)) > 1}


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    names = function_names(checkout)
    print(f"{len(names)} functions, mean length of a name {sum(map(len, names)) / len(names):.1f} characters")
    shared = shared_names(checkout)
    print(f"{len(shared)} names with more than one meaning")
    for name, paths in shared.items():
        print(f"  {name:24} {', '.join(paths)}")
