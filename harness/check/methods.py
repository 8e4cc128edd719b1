"""What every method must keep."""

from __future__ import annotations

import contextlib
import dataclasses
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
from harness.inference.answer import question_table
from harness.inference.cache import ids_of
from harness.method import Manifest, Method, Predictor, Questions, Run, State
from harness.models import small
from harness.store.store import Store
from harness.trials.outputs import log_odds, per_pair
from harness.trials.run import run_trial
from harness.trials.trial import Trial, fields_of, hashed


@contextlib.contextmanager
def in_miniature(method: Method) -> Iterator[tuple[Method, Store]]:
    """Within it, a store of its own, and the method: a policy of an untrained small language model, tuned for two steps."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder).open()
        if method.generates:
            small.build_small_model(Path(folder, "model"), steps=0)
            less = {"model": f"transformers:{folder}/model", "steps": 2}
            method = replace(method, **{name: value for name, value in less.items() if name in fields_of(method)})
        yield method, store


def method_checks(
    method: Method, store: Store, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """(question, check) for each rule of a method, asked on a small simulated task.

    stack: closes what the method holds open, such as a language model, once all checks are made.
    """
    task = registry.make(
        "task",
        "low_rank",
        {"n_users": 30, "new_users": 12, "pairs_per_user": 24, "feature_dim": 6, "rank": 2, "shots": [0, 3, 8]},
    )
    data = spelled(task.build(0))
    splits = task.split(data, 0)
    panel = splits.panels["test"]
    context, query = panel.context, panel.query.without_labels()
    run = Run(0, truth=data.truth if method.privileged else None, store=store)

    def everything() -> dict[str, np.ndarray]:
        gaps = {"train.gap": splits.train.gap, "context.gap": context.gap, "query.gap": query.gap}
        return arrays(data) | gaps

    untouched = digest(arrays_of(splits) | everything())
    fits: list[tuple[State, Predictor]] = []

    def fitted() -> tuple[State, Predictor]:
        if not fits:
            state = method.fit(splits.train, splits.panels["validation"], run)
            fits.append((state, stack.enter_context(method.opened(state, run))))
        return fits[0]

    def answers(shown: Pairs, asked: Pairs) -> np.ndarray:
        state, predictor = fitted()
        users = predictor.adapt(state, shown, run)
        return log_odds(method, predictor, state, users, asked, without_sense)

    def ragged() -> Pairs:
        return context.take(context.rank < context.user % 9)  # 0 to 8 pairs each

    def frozen() -> str | None:
        answers(context, query)
        return None if set(vars(method)) == set(fields_of(method)) else "fit or adapt changed the method's attributes"

    def shapes() -> str | None:
        state, predictor = fitted()
        users = predictor.adapt(state, context, run)
        if not isinstance(users, tuple) or not all(
            isinstance(t, torch.Tensor) and len(t) == context.n_users for t in users
        ):
            return "adapt must return a tuple of tensors with leading dimension n_users"
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            return "fit must return a dict of tensors"
        return None

    def again() -> str | None:
        anew = Run(0, truth=run.truth, store=store)
        state = method.fit(splits.train, splits.panels["validation"], anew)
        with method.opened(state, anew) as predictor:
            users = predictor.adapt(state, context, run)
            other = log_odds(method, predictor, state, users, query, without_sense)
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
        state = asking.fit(splits.train, splits.panels["validation"], Run(0, truth=run.truth, store=store))

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
        result = run_trial(Trial(task, method, 0, "check", "check"), splits, data.truth, None, store, without_sense)
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


def without_sense(asked: Questions) -> np.ndarray:
    """Log-odds by a question's hash, for methods that ask a language model: another letter is another answer."""
    return ids_of(question_table(asked.systems, asked.prompts)["id"]).view(np.uint8).reshape(-1, 16)[:, 0] / 32 - 4
