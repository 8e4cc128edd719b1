"""What every method must keep."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from harness import registry
from harness.check.findings import _apart, _described, _finite, _missing, _settled, arrays_of
from harness.data import TEXT, Pairs, PreferenceDataset, arrays, digest
from harness.inference.cache import ids_of
from harness.method import Manifest, Method, Run
from harness.models import small
from harness.store.store import FOLDER
from harness.trials.run import per_pair, run_trial
from harness.trials.trial import Trial, fields_of, hashed


@contextlib.contextmanager
def in_miniature(method: Method) -> Iterator[Method]:
    """Within it, a policy is of an untrained small language model, and tuned for two steps, in a store of its own."""
    if type(method).generate is Method.generate:
        yield method
        return
    before = os.environ.get(FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        small.build_small_model(Path(folder, "model"), steps=0)
        os.environ[FOLDER] = folder
        try:
            less = {"model": f"transformers:{folder}/model", "steps": 2}
            yield replace(method, **{name: value for name, value in less.items() if name in fields_of(method)})
        finally:
            os.environ.pop(FOLDER) if before is None else os.environ.update({FOLDER: before})


def method_checks(method: Method) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """(question, check) for each rule of a method, asked on a small simulated task."""
    task = registry.make(
        "task",
        "low_rank",
        {"n_users": 30, "new_users": 12, "pairs_per_user": 24, "feature_dim": 6, "rank": 2, "shots": [0, 3, 8]},
    )
    data = spelled(task.build(0))
    splits = task.split(data, 0)
    panel = splits.panels["test"]
    context, query = panel.context, panel.query.without_labels()
    run = Run(0, truth=data.truth if method.privileged else None)

    def everything() -> dict[str, np.ndarray]:
        gaps = {"train.gap": splits.train.gap, "context.gap": context.gap, "query.gap": query.gap}
        return arrays(data) | gaps

    untouched = digest(arrays_of(splits) | everything())
    states: list[dict] = []

    def fitted() -> dict:
        if not states:
            states.append(method.fit(splits.train, splits.panels["validation"], run))
        return states[0]

    def answers(shown: Pairs, asked: Pairs) -> np.ndarray:
        return method.score(fitted(), method.adapt(fitted(), shown, run), asked).detach().numpy()

    def ragged() -> Pairs:
        return context.take(context.rank < context.user % 9)  # 0 to 8 pairs each

    def frozen() -> str | None:
        answers(context, query)
        return None if set(vars(method)) == set(fields_of(method)) else "fit or adapt changed the method's attributes"

    def shapes() -> str | None:
        users = method.adapt(fitted(), context, run)
        if not isinstance(users, tuple) or not all(
            isinstance(t, torch.Tensor) and len(t) == context.n_users for t in users
        ):
            return "adapt must return a tuple of tensors with leading dimension n_users"
        if not isinstance(fitted(), dict) or not all(isinstance(t, torch.Tensor) for t in fitted().values()):
            return "fit must return a dict of tensors"
        return None

    def again() -> str | None:
        state = method.fit(splits.train, splits.panels["validation"], Run(0, truth=run.truth))
        other = method.score(state, method.adapt(state, context, run), query).numpy()
        return None if np.array_equal(other, answers(context, query), equal_nan=True) else "two runs of one seed differ"

    def reordered() -> str | None:
        order = np.lexsort((-context.rank, context.user))
        return _apart(answers(context.take(order), query), answers(context, query))

    def other_users() -> str | None:
        order = np.arange(context.n_users)[::-1]
        return _apart(answers(context.of(order), query.of(order)), answers_of(order))

    def answers_of(order: np.ndarray) -> np.ndarray:
        flat = answers(context, query)
        return np.concatenate([flat[query.offsets[u] : query.offsets[u + 1]] for u in order])

    def alone() -> str | None:
        shown = ragged()
        together = answers(shown, query)
        one = [answers(shown.of([u]), query.of([u])) for u in range(context.n_users)]
        return _apart(np.concatenate(one), together)

    def swapped_sides() -> str | None:
        return _apart(answers(context, query.swapped()), -answers(context, query))

    def swapped_context() -> str | None:
        return _apart(answers(context.swapped(), query), answers(context, query))

    def no_shots() -> str | None:
        zero = answers(context.first(0), query)
        return None if np.isfinite(zero).all() else "without context some log-odds are not finite"

    def soft() -> str | None:
        softened = replace(context, label=np.float32(0.2) + np.float32(0.6) * context.label)
        return None if np.isfinite(answers(softened, query)).all() else "soft labels give log-odds that are not finite"

    def unchanged() -> str | None:
        answers(context, query)
        return (
            None
            if digest(arrays_of(splits) | everything()) == untouched
            else "fit, adapt or score wrote into its input"
        )

    def asks() -> str | None:
        asking, pool = replace(method, elicit="uncertainty"), context.without_labels()
        state = asking.fit(splits.train, splits.panels["validation"], Run(0, truth=run.truth))

        def worth(shown: Pairs, asked: Pairs) -> np.ndarray:
            return per_pair(
                asking.uncertainty(state, asking.adapt(state, shown, run), asked), len(asked), "uncertainty"
            )

        shown = ragged()
        together = worth(shown, pool)
        one = [worth(shown.of([u]), pool.of([u])) for u in range(pool.n_users)]
        if problem := _apart(np.concatenate(one), together):
            return f"a user alone and among others: {problem}"
        problem = _apart(worth(shown, pool.swapped()), together)
        return problem and f"sides swapped: {problem}"

    def whole() -> str | None:
        result = run_trial(Trial(task, method, 0, "check", "check"), splits, data.truth)
        return _missing({f"test/{k}" for k in task.shots} - set(result.predictions))

    def keyed() -> str | None:
        return hashed({"fields": fields_of(method)}) and None

    def refusal() -> str | None:
        said = [method.refuses(Manifest(d, has_text=True, has_seconds=False, has_truth=False)) for d in (None, 6)]
        return None if all(s is None or isinstance(s, str) for s in said) else "refuses must return a reason or None"

    yield "its file says in one line what it is", lambda: _described(method)
    yield "its settings can be a key", keyed
    yield (
        "it is a frozen dataclass",
        lambda: (
            None
            if dataclasses.is_dataclass(method) and type(method).__dataclass_params__.frozen
            else "write @dataclass(frozen=True)"
        ),
    )
    yield "its fields take nothing else than they say", lambda: _settled(method)
    yield "it answers why it sits out, or None", refusal
    yield "state and users are tensors", shapes
    yield "it holds nothing learned", frozen
    yield "the same seed gives the same answers", again
    yield "with context its answers are finite", lambda: _finite(answers(context, query))
    yield "without context it answers", no_shots
    yield "swapping the sides of a query flips the sign", swapped_sides
    yield "swapping the sides of the context changes nothing", swapped_context
    yield "the order of the context changes nothing", reordered
    yield "the order of users changes nothing", other_users
    yield "a user alone and among others with longer contexts gets the same answers", alone
    yield "soft labels are allowed", soft
    yield "inputs are left as they were", unchanged
    if "elicit" in fields_of(method):
        yield "what it asks next depends on the user and the pair alone", asks
    yield "run_trial scores every number of shots", whole


def spelled(data: PreferenceDataset) -> PreferenceDataset:
    """The same data with items that can be read, of many lengths, and people who wrote about themselves."""
    items, people = data.pairs.items, range(data.pairs.n_users)
    rows = range(len(items))
    text = pa.table([[f"Prompt {i // 2}" for i in rows], ["!" * (i % 7) + f" {i}" for i in rows]], schema=TEXT)
    profiles = pa.array([f"I am {i}" for i in people], pa.large_string())
    return replace(data, pairs=replace(data.pairs, items=replace(items, text=text), profiles=profiles))


def without_sense(name: str, words: tuple[str, str], table: pa.Table) -> np.ndarray:
    """Log-odds by a question's hash, for methods that ask a language model: another letter is another answer."""
    return ids_of(table["id"]).view(np.uint8).reshape(-1, 16)[:, 0] / 32 - 4
