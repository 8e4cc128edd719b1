"""Submits a job and follows it: python -m jobs.submit http://HEAD:8265 SUITE --store DIR ... [--job encode|generate]"""

import argparse
import asyncio
import logging
import os
import shlex
import sys
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

os.environ["RAY_AUTH_MODE"] = "token"  # read as Ray is imported
import requests
import typer
from ray import exceptions, job_submission

from harness import errors, registry
from harness.cli.main import app
from harness.sources import public_files
from harness.store import provenance
from harness.trials import suite

JOBS = ("run", "encode", "generate")  # verbs of `manyminds`, each with its file here
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of whichever click typer brings along
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def split_job_option(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that `--job` names, `run` without it, and the words that are for the verb."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--job", default="run")
    known, words = parser.parse_known_args(list(words))
    if known.job not in JOBS:
        raise errors.UserError(f"there is no job {known.job!r}", f"--job takes one of {', '.join(JOBS)}")
    return known.job, words


def parse_verb_words(verb: str, words: list[str]) -> tuple[str, dict[str, Any]]:
    """The file that the verb would read, and the options typed, by name: as the verb itself parses them, in any order.

    Raises UserError where the verb would not take them.
    """
    command = typer.main.get_group(app).commands[verb]
    try:
        context = command.make_context(verb, list(words))
    except UsageError as error:
        raise errors.UserError(
            f"{verb}: {getattr(error, 'message', error)}", f"manyminds {verb} --help lists what it takes"
        ) from error
    typed = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    file = context.params["suite" if verb == "run" else "what"]
    typed.pop("suite", None), typed.pop("what", None)
    return str(file), typed


async def submit(address: str, *words: str) -> bool:
    """Starts the job or finds it running; one that ended goes on from its store. Returns whether it failed.

    words: a suite or file and options, those of the verb, and `--job` with the verb where it is not `run`.
    """
    verb, own = split_job_option(words)
    file, typed = parse_verb_words(verb, own)
    if not str(typed.get("store", "")).startswith("/"):
        raise errors.UserError(
            "the job needs a store that outlives it, on all nodes", "--store /shared/store, from the root"
        )
    registry.add_plugins(typed.get("plugin", ()))
    what = suite.read_suite(file).digest if file.endswith(".toml") else public_files.files_content_digest(file)[:16]
    options = sorted((name, str(value)) for name, value in typed.items())
    name = f"manyminds-{verb}-{what}-{zlib.crc32(repr(options).encode()):08x}"
    if requests.get(f"{address}/api/jobs/", timeout=30).ok and urlsplit(address).hostname not in LOOPBACK:
        raise errors.UserError(
            f"{address} runs anyone's code: it asks for no token", "start it with RAY_AUTH_MODE=token"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray takes before RAY_ADDRESS, and that before an argument
    client = job_submission.JobSubmissionClient(address)
    state = {job.submission_id: job.status for job in client.list_jobs()}.get(name)
    print(f"{name} at {address}: {state or 'new'}", file=sys.stderr)
    if state is None or (state.is_terminal() and client.delete_job(name)):
        command = shlex.join(["python", "-m", f"jobs.{verb}", *own])
        clone = {"working_dir": str(registry.PROJECT_ROOT), "excludes": [".venv*"]}  # nor is shipped what git ignores
        there = clone | {"env_vars": {"MANYMINDS_CODE": provenance.code_state()}}
        client.submit_job(entrypoint=command, submission_id=name, runtime_env=there)
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)
    return client.get_job_status(name) != "SUCCEEDED"


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # Ray tells every file it leaves out
    try:
        sys.exit(asyncio.run(submit(*sys.argv[1:])) if len(sys.argv) > 2 else __doc__)
    except errors.UserError as error:
        message = str(error)
    except (OSError, RuntimeError, exceptions.AuthenticationError) as error:
        message = (
            f"{error}\n\nhint: is the cluster up, its address http://HOST:8265, and the token the same on both sides?"
        )
    except KeyboardInterrupt:
        message = "no longer following\n\nhint: the job goes on; the same command follows it, `ray job stop` ends it"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
