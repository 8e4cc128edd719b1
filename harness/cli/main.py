"""The `manyminds` command: data goes to stdout, everything else to stderr, and every user error has a hint."""

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


FORMER_OPTIONS = {  # former names, still accepted with a note
    "--gpu": "--require-gpu",
    "--minutes": "--minutes-per-block",
    "--reader": "--axis-namer",
    "--together": "--workers-per-policy",
}


def with_current_options(words: Sequence[str]) -> list[str]:
    """Replace former names of options in a command line by current ones, with a note on stderr."""
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
        stderr.print("interrupted: finished work is kept, and the same command continues from there")
        sys.exit(130)
    except UserError as mistake:
        stderr.print("error:", style="red", end=" ")
        stderr.print(f"{mistake.message}\n\nhint: {mistake.hint}")
        sys.exit(2)
