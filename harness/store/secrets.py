"""Secrets of the environment, which are written nowhere: not into results, failures, logs or messages."""

from __future__ import annotations

import os
import re

NAME_OF_SECRET = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?!.*PATH)", re.I
)
MIN_CHARACTERS = 8  # a shorter value is too common a word to be replaced everywhere
PASSWORD_IN_ADDRESS = re.compile(r"(?<=//)[^/\s@]+:[^/\s]*@")  # user:password@ of a URL


def secret_names() -> list[str]:
    """Return the names of environment variables that hold secrets."""
    return sorted(
        name for name, value in os.environ.items() if NAME_OF_SECRET.search(name) and len(value) >= MIN_CHARACTERS
    )


def without_secrets(text: str) -> str:
    """Return the text with every secret of the environment, and the user and password of every address, left out."""
    for name in secret_names():
        text = text.replace(os.environ[name], f"<{name}>")
    return PASSWORD_IN_ADDRESS.sub("", text)
