"""The verbs of `manyminds`: data to stdout, everything else to stderr, and a hint for every mistake."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.cli.app import app
from harness.cli.inspect_verbs import check, doctor, list_, plan, show
from harness.cli.make_verbs import encode, generate, prepare
from harness.cli.run_verbs import board, publish, reproduce, run
from harness.cli.terminal import stderr
from harness.errors import UserError, note_former_name

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


FORMER_OPTIONS = {  # accepted still, and said to be old
    "--gpu": "--require-gpu",
    "--minutes": "--minutes-per-block",
    "--reader": "--axis-namer",
    "--together": "--workers-per-policy",
}


def with_current_options(words: Sequence[str]) -> list[str]:
    """The words of a command line, options under their present names; says on stderr which of them are old."""
    current = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in FORMER_OPTIONS:
            note_former_name(option, FORMER_OPTIONS[option])
            word = FORMER_OPTIONS[option] + equals + value
        current.append(word)
    return current


def main() -> None:
    """Run the `manyminds` command. Exit codes: 0 done, 1 some trials failed, 2 a user error, 130 interrupted."""
    try:
        app(with_current_options(sys.argv[1:]))
    except KeyboardInterrupt:
        stderr.print("interrupted: what is finished is kept, and the same command goes on from there")
        sys.exit(130)
    except UserError as mistake:
        stderr.print("error:", style="red", end=" ")
        stderr.print(f"{mistake.message}\n\nhint: {mistake.hint}")
        sys.exit(2)
