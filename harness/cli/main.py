"""The verbs of `manyminds`: data to stdout, everything else to stderr, and a hint for every mistake."""

from __future__ import annotations

import sys

from harness.cli.app import app
from harness.cli.inspect_verbs import check, doctor, list_, plan, show
from harness.cli.make_verbs import encode, generate, prepare
from harness.cli.run_verbs import board, publish, reproduce, run
from harness.cli.terminal import err
from harness.errors import Mistake

app.command("list")(list_)
for verb in (
    check,
    prepare,
    generate,
    encode,
    plan,
    run,
    board,
    reproduce,
    publish,
    show,
    doctor,
):  # as --help has them
    app.command()(verb)


def main() -> None:
    """The `manyminds` command: 0 done, 1 something failed, 2 a mistake, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("interrupted: what is finished is kept, and the same command goes on from there")
        sys.exit(130)
    except Mistake as mistake:
        err.print("error:", style="red", end=" ")
        err.print(f"{mistake.message}\n\nhint: {mistake.hint}")
        sys.exit(2)
