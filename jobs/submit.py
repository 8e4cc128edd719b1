"""Submits a suite to a Ray cluster and follows it: python -m jobs.submit http://HEAD:8265 SUITE --store DIR ..."""

import asyncio, logging, os, re, shlex, sys  # noqa: E401

os.environ["RAY_AUTH_MODE"] = "token"  # read as Ray is imported
import requests  # noqa: E402
from harness import find, mistake, run, suite  # noqa: E402
from ray import exceptions, job_submission  # noqa: E402

async def submit(address: str, file: str, *options: str) -> bool:
    """Starts the job, or finds it running; one that has ended goes on from what its store holds. Returns whether it failed."""
    find.add_plugins(file for option, file in zip(options, options[1:]) if option == "--plugin")
    if requests.get(f"{address}/api/jobs/", timeout=30).ok and not re.match(r"https?://(127\.|localhost[:/]|\[::1\])", address):
        raise mistake.Mistake(f"{address} runs anyone's code: it asks for no token", "start it with RAY_AUTH_MODE=token")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray takes before RAY_ADDRESS, and that before an argument
    client, name = job_submission.JobSubmissionClient(address), f"manyminds-{suite.read_suite(file).digest}"
    state = {job.submission_id: job.status for job in client.list_jobs()}.get(name)
    print(f"{name} at {address}: {state or 'new'}", file=sys.stderr)
    if state is None or state.is_terminal() and client.delete_job(name):
        there = {"working_dir": str(find.ROOT), "env_vars": {"MANYMINDS_CODE": run.code_state()}}
        client.submit_job(entrypoint=shlex.join(["python", "-m", "jobs.run", file, *options]), submission_id=name, runtime_env=there)
    [print(lines, end="", flush=True) async for lines in client.tail_job_logs(name)]
    return client.get_job_status(name) != "SUCCEEDED"

if __name__ == "__main__":
    logging.disable(logging.WARNING)  # Ray tells every file it leaves out
    try:
        sys.exit(asyncio.run(submit(*sys.argv[1:])) if len(sys.argv) > 2 else __doc__)
    except (mistake.Mistake, OSError, exceptions.AuthenticationError) as error:
        sys.exit(f"error: {error}")
