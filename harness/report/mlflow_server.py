"""The command and the address that open MLflow at the leaderboard."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

from harness.store.secrets import without_secrets

SERVER_SETTINGS = {  # for a server on this machine that shows the store
    "MLFLOW_HOST": "127.0.0.1",
    "MLFLOW_PORT": "5000",
    "MLFLOW_WORKERS": "1",  # the default of 4 would take 300 MB each
    "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost,127.0.0.1,localhost:*,127.0.0.1:*",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVE_ARTIFACTS": "false",  # no uploads; artifacts of runs are still shown
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def way_to_open(uri: str, page: str, settings_file: Path, artifacts: Path) -> str:
    """Return the address of a page on a server, or the command that starts one, followed by the address.

    A command for a SQLite file reads its settings from `settings_file`, which is written and keeps the command short. That
    for another database names it without user and password. page: the URL's path.
    """
    if uri.startswith("http"):
        return without_password(uri).rstrip("/") + page
    beside = Path(sys.executable).with_name("mlflow")
    command = "mlflow" if shutil.which("mlflow") == str(beside) else shlex.quote(str(beside))
    address = f"http://{SERVER_SETTINGS['MLFLOW_HOST']}:{SERVER_SETTINGS['MLFLOW_PORT']}{page}"
    if not uri.startswith("sqlite:"):
        return f"{command} server --backend-store-uri {shlex.quote(without_password(uri))}  # {address}"
    settings = SERVER_SETTINGS | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts.as_uri(),
    }
    lines = (f"{name}={_dotenv_quoted(value)}\n" for name, value in settings.items())
    settings_file.write_text("".join(lines), "utf-8")
    return f"{command} --env-file {shlex.quote(str(settings_file))} server  # {address}"


def without_password(text: str) -> str:
    """Remove the user and password from the text's URIs, and secrets of the environment."""
    return re.sub(r"//[^/\s]+@", "//", without_secrets(text))


def _dotenv_quoted(value: str) -> str:
    """Quote a value for a dotenv file."""
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"
