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

os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it while it is imported
import requests
import typer
from ray import exceptions, job_submission

from harness import errors, registry
from harness.cli.verbs import UsageError, app, as_user_error
from harness.sources import public_files
from harness.store import provenance
from harness.trials import suite

JOBS = ("run", "encode", "generate")  # verbs of `manyminds`, each with a file in this folder
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def split_job_option(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb that `--job` names (default `run`), and the remaining words, which are for the verb."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--job", default="run")
    known, words = parser.parse_known_args(list(words))
    if known.job not in JOBS:
        raise errors.UserError(f"there is no job {known.job!r}", f"--job takes one of {', '.join(JOBS)}")
    return known.job, words


def parse_verb_words(verb: str, words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the file that the verb would read, and the typed options by name, as the verb itself parses them.

    Raises UserError where the verb does not accept them.
    """
    command = typer.main.get_group(app).commands[verb]
    try:
        context = command.make_context(verb, list(words))
    except UsageError as error:
        raise as_user_error(error) from error
    typed = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    file = context.params["suite" if verb == "run" else "what"]
    typed.pop("suite", None), typed.pop("what", None)
    return str(file), typed


async def submit(address: str, *words: str) -> bool:
    """Start the job, or follow it if it runs already; return whether it failed.

    A job that ended is started again and continues from its store.

    words: a suite or file, options of the verb, and `--job VERB` if the verb is not `run`. Raises UserError for words
    that the verb does not accept, for a store that is not an absolute path, and for a cluster without a token.
    """
    verb, own = split_job_option(words)
    file, typed = parse_verb_words(verb, own)
    if not str(typed.get("store", "")).startswith("/"):
        raise errors.UserError(
            "the job needs a store that outlives it, in a folder that all nodes share",
            "name it by an absolute path: --store /shared/store",
        )
    registry.add_plugins(typed.get("plugin", ()))
    what = (
        suite.read_suite(file).digest
        if file.lower().endswith(".toml")
        else public_files.files_content_digest(file)[:16]
    )
    options = sorted((name, str(value)) for name, value in typed.items())
    name = f"manyminds-{verb}-{what}-{zlib.crc32(repr(options).encode()):08x}"
    if requests.get(f"{address}/api/jobs/", timeout=30).ok and urlsplit(address).hostname not in LOOPBACK:
        raise errors.UserError(
            f"{address} asks for no token, so anyone can run code on it", "start the cluster with RAY_AUTH_MODE=token"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to RAY_ADDRESS, and RAY_ADDRESS to an argument
    client = job_submission.JobSubmissionClient(address)
    state = {job.submission_id: job.status for job in client.list_jobs()}.get(name)
    print(f"{name} at {address}: {state or 'new'}", file=sys.stderr)
    if state is None or (state.is_terminal() and client.delete_job(name)):
        command = shlex.join(["python", "-m", f"jobs.{verb}", *own])
        clone = {
            "working_dir": str(registry.PROJECT_ROOT),
            "excludes": [".venv*"],
        }  # files that git ignores are not sent either
        there = clone | {"env_vars": {"MANYMINDS_CODE": provenance.code_state()}}
        client.submit_job(entrypoint=command, submission_id=name, runtime_env=there)
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)
    return client.get_job_status(name) != "SUCCEEDED"


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # Ray lists every file that it leaves out
    try:
        sys.exit(asyncio.run(submit(*sys.argv[1:])) if len(sys.argv) > 2 else __doc__)
    except errors.UserError as error:
        message = str(error)
    except (OSError, RuntimeError, exceptions.AuthenticationError) as error:
        message = (
            f"{error}\n\nhint: check that the cluster is up, that its address is http://HOST:8265, and that the token "
            "is the same on both sides"
        )
    except KeyboardInterrupt:
        message = (
            "no longer following the job, which goes on\n\nhint: the same command follows it again; "
            "`ray job stop` ends it"
        )
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
