"""The register of claims: it is complete, and says truly since when each claim expects what it expects."""

import shutil
import subprocess
import tomllib

import pytest

from harness.claims import register
from harness.claims.reproduce import shipped_claims
from harness.claims.schema import CLAIMS_FOLDER
from harness.registry import PROJECT_ROOT


def git(*words):
    return subprocess.run(("git", *words), cwd=PROJECT_ROOT, capture_output=True, text=True)


def digest_at(commit, file, claim_id):
    found = git("show", f"{commit}:{file.relative_to(PROJECT_ROOT).as_posix()}")
    return register.expectation_digest(tomllib.loads(found.stdout), claim_id) if not found.returncode else None


def test_every_shipped_claim_is_registered_as_it_stands():
    """A change of a range, a seed or a task needs `python .docs/register.py`, which asks what was known."""
    checked = {claim.id: file for file, (_, claims) in shipped_claims().items() for claim in claims if claim.checks}
    assert register.read_register().keys() == checked.keys()
    for name, file in checked.items():
        assert "changed since" not in register.describe_registration(file, name), f"{name}: python .docs/register.py"


@pytest.mark.skipif(git("rev-parse", "--is-shallow-repository").stdout.strip() != "false", reason="needs git's history")
def test_the_registered_commit_is_the_last_change():
    registered = register.read_register()
    for file, (_, claims) in shipped_claims().items():
        for claim in (claim for claim in claims if claim.checks):
            entry = registered[claim.id]
            assert digest_at(entry.commit, file, claim.id) == entry.digest
            assert digest_at(f"{entry.commit}^", file, claim.id) != entry.digest


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("expected = [0.08, inf]", "expected = [0.07, inf]", True),
        ("seeds = [100, 101, 102, 103, 104]", "seeds = [100, 101, 102, 103, 104, 105]", True),
        ("pool = 1300", "pool = 1301", True),
        ('name = "pref"', 'name = "pref"\nrank = 9', True),
        ("shots = 10, task", "shots = 20, task", True),
        ('says = "pref - per_user at 10 answers, AUC"', 'says = "other words"', False),
        ('title = "Base rewards shared', 'title = "The base rewards shared', False),
    ],
)
def test_what_counts_as_a_change(tmp_path, monkeypatch, old, new, changes):
    shutil.copytree(CLAIMS_FOLDER, tmp_path / "claims")
    monkeypatch.setattr(register, "CLAIMS_FOLDER", tmp_path / "claims")
    file = tmp_path / "claims" / "pref_per_user.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1 if old.startswith("name") else -1))
    told = register.describe_registration(file, "P10")
    assert (told == "changed since it was registered") == changes


def test_claims_of_ones_own_are_not_registered(tmp_path):
    shutil.copy(CLAIMS_FOLDER / "pref_per_user.toml", tmp_path)
    assert register.describe_registration(tmp_path / "pref_per_user.toml", "P10").startswith("not registered")
