"""The `manyminds` command: data goes to stdout, everything else to stderr, and every user error has a hint."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import typer

from harness.cli.app import app
from harness.cli.compare_verb import compare
from harness.cli.describe_data import describe
from harness.cli.inspect_verbs import check, doctor, list_, plan, show
from harness.cli.make_verbs import encode, generate, prepare, score
from harness.cli.run_verbs import board, export, publish, reproduce, run
from harness.cli.suite_schema import schema
from harness.cli.terminal import only_json_on_stdout, stderr
from harness.errors import UserError, did_you_mean, note_former_name
from harness.store.secrets import without_secrets

app.command("list")(list_)
for verb in (
    describe,
    check,
    prepare,
    generate,
    score,
    encode,
    plan,
    run,
    board,
    compare,
    reproduce,
    publish,
    export,
    show,
    schema,
    doctor,
):  # as --help has them
    app.command()(verb)


UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer does not export its name
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


def run_command_line(words: Sequence[str]) -> int:
    """Run the command line without the program's name; print user errors, and return the exit code."""
    try:
        with only_json_on_stdout() if "--json" in words else contextlib.nullcontext():
            return app(with_current_options(words), prog_name="manyminds", standalone_mode=False) or 0
    except UserError as mistake:
        error = mistake
    except UsageError as mistake:
        error = as_user_error(mistake)
    stderr.print("error:", style="red", end=" ")
    stderr.print(without_secrets(f"{error.message}\n\nhint: {error.hint}"))
    return 2


def as_user_error(mistake: Any) -> UserError:
    """Return a mistake in a command line, as Typer reports it, in the form of all other user errors."""
    context = mistake.ctx
    path = context.command_path if context else "manyminds"
    options = sorted(getattr(mistake, "possibilities", None) or ())
    message, _, near = (mistake.message if options else mistake.format_message()).partition(" Did you mean ")
    if options:
        near = did_you_mean(mistake.option_name, options, options[0], cutoff=0).removeprefix("did you mean ")
    for former, plain in (("No such option:", "there is no option"), ("No such command", "there is no command")):
        message = message.replace(former, plain)
    hint = f"did you mean {near}" if near else f"{path} --help shows what it takes"
    return UserError(f"{message[:1].lower()}{message[1:]}".rstrip("."), hint)
