"""A suite that needs samples, vectors and answers of language models: `manyminds run` computes each exactly once."""

import json
import subprocess
import sys

import pytest

from harness.inference.cache import CachedRows
from harness.models import small
from harness.store.store import Store

SUITE = """
title = "Text, small"
seeds = 2
controls = false
[[tasks]]
name = "attributes"
encoder = "transformers:small?pooling=last&max_length=64"
generator = "transformers:small?max_tokens=8&seed=1"
n_users = 8
new_users = 4
pairs = 30
pairs_per_user = 20
pool = 12
queries = 5
shots = [0, 4]
n_candidates = 3
choice_prompts = 4
[[methods]]
name = "shared"
[[methods]]
name = "per_user"
[[methods]]
name = "oracle"
[[methods]]
name = "in_context"
max_examples = 2
max_characters = 60
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the suite, and a store that contains the untrained small model."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "text.toml").write_text(SUITE)
    (folder / "store" / "models").mkdir(parents=True)
    small.build_small_model(folder / "store" / "models" / f"small-{small.SMALL_MODEL_VERSION}", steps=0)
    return folder


def call(folder, *arguments, code=0):
    """Run the command; return its stdout and stderr, and the modules that it had loaded at the end."""
    program = (
        "import sys, atexit; from harness.cli import main; "
        "atexit.register(lambda: print('LOADED', *[m for m in ('torch', 'transformers', 'ray') if m in sys.modules],"
        " file=sys.stderr)); main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def ran(folder):
    return call(folder, "run", "text.toml", "--local", "--json")


@pytest.mark.slow
def test_what_is_not_made_yet_is_named_with_what_makes_it(folder, ran, tmp_path):
    (tmp_path / "text.toml").write_text(SUITE)
    _, told = call(tmp_path, "plan", "text.toml", code=2)
    assert "4 samples by small@" in told and "manyminds generate SUITE" in told


@pytest.mark.slow
def test_everything_is_made_and_every_method_chooses(ran):
    out, told = ran
    assert "samples to make" in told and "vectors to make" in told and "answers to make" in told
    (task,) = json.loads(out)["tasks"]
    rows = {row["label"].partition("(")[0]: row for row in task["rows"]}
    assert {"shared", "per_user", "oracle", "in_context"} == set(rows)
    assert not any(row["incomplete"] for row in rows.values())
    assert not rows["in_context"]["best_of"], "a round robin of a language model is left out"
    gain = rows["oracle"]["best_of"]["4"]["gain"]["3"]["value"]
    assert gain == pytest.approx(1)


@pytest.mark.slow
def test_a_second_run_loads_no_model(folder, ran):
    out, told = call(folder, "run", "text.toml", "--local", "--json")
    assert (
        "to make" not in told and "transformers" not in told.split("LOADED")[1] and "ray" not in told.split("LOADED")[1]
    )
    assert json.loads(out)["tasks"][0]["rows"] == json.loads(ran[0])["tasks"][0]["rows"]


@pytest.mark.slow
def test_every_row_is_there_once(folder, ran):
    store = Store(folder / "store")
    kinds = {kind.name for kind in (store.root / "rows").iterdir()}
    assert len(kinds) == 3
    for kind in kinds:
        manifests = [store.read_manifest(f"rows/{kind}", key) for key in store.committed_keys(f"rows/{kind}")]
        committed = sum(m["facts"]["rows"] + m["facts"]["errors"] for m in manifests)
        assert committed == len(CachedRows(store, manifests[0]["identity"]).build_index()) > 0


@pytest.mark.slow
def test_generate_stops_before_vectors(tmp_path, folder):
    (tmp_path / "text.toml").write_text(SUITE)
    (tmp_path / "store" / "models").mkdir(parents=True)
    small.build_small_model(tmp_path / "store" / "models" / f"small-{small.SMALL_MODEL_VERSION}", steps=0)
    out, told = call(tmp_path, "generate", "text.toml", "--local")
    assert "samples made" in told and "ended by themselves" in told and "vectors" not in told
    out, told = call(tmp_path, "encode", "text.toml", "--local")
    assert "vectors made" in told and "samples" not in told
    texts = 2 * (2 * (30 + 2 * 5 + 20) + 4 * 3)  # for two seeds: texts of context and query pairs, and candidates
    assert out.startswith(f"{texts} rows made")
    assert call(tmp_path, "encode", "text.toml", "--local")[0].startswith("nothing to make: all rows are in ")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder", "small", "there is no text encoder"),
        ("encoder", "transformers:org/name", "needs a revision"),
        ("encoder", "transformers:small?poling=last", "unknown option 'poling'"),
        ("encoder", "transformers:small?pooling=first", "pooling is not auto, authors, mean, last, cls or heads"),
        ("encoder", "transformers:./nowhere", "contains no language model"),
        ("encoder", "transformers:package:not_there/model", "package not_there is not installed"),
        ("generator", "gpt:small", "not the name of a language model"),
        ("generator", "transformers:small?temperature=hot", "is not a finite number"),
        ("responses", "nobody", "not the name of a writer"),
        ("raters", "nobody", "not the name of a language model"),
    ],
)
def test_wrong_names_are_explained(field, value, message):
    from harness import registry
    from harness.errors import UserError
    from harness.fields import identity_fields

    with pytest.raises(UserError, match=message):
        identity_fields(registry.make_instance("task", "attributes", {field: value}))
