"""Register what claims expect: python .docs/register.py "which results were known", after committing the change."""

import dataclasses
import json
import subprocess
import sys
import tomllib

from harness.claims.register import REGISTER_FILE, Registration, expectation_digest, read_register
from harness.claims.schema import CLAIMS_FOLDER
from harness.registry import PROJECT_ROOT


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=PROJECT_ROOT, check=True, capture_output=True, text=True).stdout


def last_change(name: str, claim_id: str, digest: str) -> tuple[str, str]:
    """Return the commit and date since which the claim of the file `name` expects what it expects now."""
    found = None
    for line in git("log", "--format=%H %cs", "--", name).splitlines():
        commit, date = line.split()
        if expectation_digest(tomllib.loads(git("show", f"{commit}:{name}")), claim_id) != digest:
            break
        found = commit, date
    if found is None:
        sys.exit(f"{name}: commit the change first")
    return found


def main(known: str) -> None:
    before = read_register() if REGISTER_FILE.exists() else {}
    register = {}
    for file in sorted(CLAIMS_FOLDER.glob("*.toml")):
        name, content = file.relative_to(PROJECT_ROOT).as_posix(), tomllib.loads(file.read_text())
        for claim_id in [claim["id"] for claim in content.get("claims", ())]:
            if digest := expectation_digest(content, claim_id):
                entry = before.get(claim_id)
                if entry is None or entry.digest != digest:
                    entry = Registration(digest, *last_change(name, claim_id, digest), known)
                register[claim_id] = dataclasses.asdict(entry)
    REGISTER_FILE.write_text(json.dumps(register, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
