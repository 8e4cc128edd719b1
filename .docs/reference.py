"""The reference of suites and claims in jobs/README.md, written from the fields' own types and comments.

python .docs/reference.py           # writes it again
python .docs/reference.py --check   # exit code 1 where it is out of date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.claims.figures.kinds import FIGURE_KINDS
from harness.claims.schema import Check, Claim, Selection
from harness.cli.describe import fields_of_class
from harness.trials.suite import SuiteFile

FILE = Path(__file__).resolve().parent.parent / "jobs" / "README.md"
START, END = "<!-- reference: python .docs/reference.py -->\n", "<!-- end of reference -->\n"


def reference() -> Iterator[str]:
    """Yield the lines of the reference: a table of fields for each kind of table in a suite file."""
    yield from _table("Keys of a suite", SuiteFile)
    yield from _table("`[[claims]]`", Claim)
    yield from _table("`[[claims.checks]]` and `[[claims.beside]]`", Check)
    yield from _table("A selection: `of`, `minus`, `over`", Selection)
    for kind, cls in FIGURE_KINDS.items():
        yield from _table(f'`[[claims.figures]]` with `kind = "{kind}"`', cls)


def _table(title: str, cls: type) -> Iterator[str]:
    yield f"### {title}\n\n{(inspect.getdoc(cls) or '').splitlines()[0]}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for line in fields_of_class(cls):
        meaning, kind = line.meaning.replace("|", "\\|"), line.type.replace("|", "\\|")
        yield f"| `{line.name}` | {kind} | {f'`{line.default}`' if line.default else 'required'} | {meaning} |"
    yield ""


def main() -> int:
    """Write the reference into jobs/README.md, or compare it with what stands there."""
    text = FILE.read_text("utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = before + START + "\n" + "\n".join(reference()) + END + after
    if "--check" in sys.argv:
        return int(text != wanted)
    FILE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
