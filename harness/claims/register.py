"""Registration of claims: which commit last changed what a claim expects, and which results were known by then.

What a claim expects is its checks, without their words, and the suite's seeds, tasks and methods. Its digest and its last
change are in `register.json` beside the shipped claims, written by `.docs/register.py`. Raising the number of seeds after
looking at results is a change too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.claims.schema import CLAIMS_FOLDER
from harness.trials.suite import load_toml
from harness.trials.trial import identity_hash

REGISTER_FILE = CLAIMS_FOLDER / "register.json"
WORDS_OF_CHECK = ("says", "published_value")  # they decide no verdict


@dataclass(frozen=True)
class Registration:
    """The last change of what a claim expects."""

    digest: str
    commit: str  # the commit of the change
    date: str
    known: str  # which results were known when the change was made

    def __str__(self) -> str:
        return f"{self.date}, commit {self.commit[:12]}; {self.known}"


def expectation_digest(content: dict[str, Any], claim_id: str) -> str | None:
    """Return the digest of what a claim of a suite file expects; None where the file has no such claim with checks."""
    for claim in content.get("claims", ()):
        if claim["id"] == claim_id and claim.get("checks"):
            checks = [{k: v for k, v in check.items() if k not in WORDS_OF_CHECK} for check in claim["checks"]]
            settings = {name: content.get(name) for name in ("seeds", "tasks", "methods")}
            return identity_hash({"checks": json.dumps(checks, sort_keys=True), **settings})
    return None


def read_register() -> dict[str, Registration]:
    """Return the registration of every shipped claim, by the claim's id."""
    return {name: Registration(**entry) for name, entry in json.loads(REGISTER_FILE.read_text()).items()}


def describe_registration(file: Path, claim_id: str) -> str:
    """Say when what a claim expects was last changed, and what was known then."""
    if file.resolve().parent != CLAIMS_FOLDER.resolve():
        return "not registered: the claim is not one of this project's own"
    found = read_register().get(claim_id)
    if found is None or found.digest != expectation_digest(load_toml(file), claim_id):
        return "changed since it was registered"
    return str(found)
