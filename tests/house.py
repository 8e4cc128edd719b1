"""The import graph of the project: modules, imports between them, cycles, and levels ("floors") of imports.

python tests/house.py [ROOT]      # print the figures of a checkout; tests/test_imports.py checks the rules
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

Arrows = dict[str, set[str]]  # importing module -> imported modules


def modules(root: Path, *folders: str) -> dict[str, Path]:
    """Return dotted name -> file for every Python module under the folders."""
    found = {}
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names of all imports of a file, at any place in it; `from a import b` gives `a` and `a.b`.

    Imports for the type checker alone do not count.
    """
    tree = ast.parse(file.read_text())
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    unseen = {id(node) for block in typed for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def arrows(known: dict[str, Path]) -> Arrows:
    """Return the imports between known modules; of a package and a module in it, only the module counts."""
    found: Arrows = {name: set() for name in known}
    for name, file in known.items():
        hits = {other for other in imports(file) if other in known}
        found[name] = {h for h in hits if not any(o.startswith(f"{h}.") for o in hits)} - {name}
    return found


def folded(between: Arrows, room_of) -> Arrows:
    """Return the same imports between groups of modules ("rooms"), such as folders; room_of(module) is its group."""
    found: Arrows = {room_of(name): set() for name in between}
    for name, others in between.items():
        found[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    return found


def circles(between: Arrows) -> list[set[str]]:
    """Return the cycles: sets of rooms that import each other, directly or through others (Tarjan 1972)."""
    number, low, stack, found = {}, {}, [], []

    def visit(room: str) -> None:
        number[room] = low[room] = len(number)
        stack.append(room)
        for other in between[room]:
            if other not in number:
                visit(other)
            if other in stack:
                low[room] = min(low[room], low[other])
        if low[room] == number[room]:
            at = stack.index(room)
            found.append(set(stack[at:]))
            del stack[at:]

    for room in between:
        if room not in number:
            visit(room)
    return [group for group in found if len(group) > 1]


def floors(between: Arrows) -> dict[str, int]:
    """Return room -> level: 0 imports nothing, others are one above the highest that they import.

    Cycles are not allowed.
    """
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(other) for other in between[room]), default=-1)
        return found[room]

    for room in between:
        floor(room)
    return found


def wing(module: str) -> str:
    """Return a module's package in harness/, or the module itself directly in harness/, or else its top folder."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "harness" else parts[0]


def figures(root: Path) -> str:
    """Return the text that `python tests/house.py` prints."""
    every = arrows(modules(root, "harness", "tasks", "jobs"))
    rooms = folded(every, wing)
    lines = [f"modules {len(every)}, imports between them {sum(map(len, every.values()))}"]
    lines.append(f"circles of modules: {[sorted(group) for group in circles(every)] or 'none'}")
    lines.append(f"wings and ground rooms {len(rooms)}, imports between them {sum(map(len, rooms.values()))}")
    lines.append(f"circles of wings: {[sorted(group) for group in circles(rooms)] or 'none'}")
    if not circles(rooms):
        lines.append(f"floors of wings {1 + max(floors(rooms).values())}")
    for room in sorted(rooms):
        inside = {
            name: others & {n for n in every if wing(n) == room} for name, others in every.items() if wing(name) == room
        }
        if len(inside) > 1 and not circles(inside):
            lines.append(f"  {room}: {len(inside)} files on {1 + max(floors(inside).values())} floors")
    return "\n".join(lines)


if __name__ == "__main__":
    print(figures(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
