"""The contract of a method: checks on a small simulated task."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from harness import registry
from harness.check.findings import (
    NamedCheck,
    describe_difference,
    describe_missing_docstring,
    describe_not_finite,
    describe_unchecked_field,
    joined_or_none,
)
from harness.data import TEXT_SCHEMA, Pairs, PreferenceDataset, Splits, arrays_digest, named_arrays, split_arrays
from harness.fields import field_values
from harness.inference.answer import question_table
from harness.inference.cache import id_array
from harness.inference.likelihood import continuation_table
from harness.method import Asked, Continuations, ItemRewards, Method, Predictor, Run, State, TaskFacts
from harness.models import small
from harness.store.store import Store
from harness.task import Task
from harness.trials.outputs import checked_per_pair, checked_state, checked_users, score_queries
from harness.trials.run import run_trial
from harness.trials.trial import Trial, identity_hash


@contextlib.contextmanager
def with_small_model(method: Method) -> Iterator[tuple[Method, Store]]:
    """Provide the method and a temporary store.

    A method that generates gets an untrained small model as its `model`, and two training steps as its `steps`.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder).open()
        if method.generates:
            small.build_small_model(Path(folder, "model"), steps=0)
            less = {"model": f"transformers:{folder}/model", "steps": 2}
            method = replace(method, **{name: value for name, value in less.items() if name in field_values(method)})
        yield method, store


def method_checks(method: Method, store: Store | None = None) -> Iterator[NamedCheck]:
    """Yield (rule, check) for each rule of a method, on a small simulated task.

    store: the store for a method that uses a language model, such as a policy.
    """
    settings = {"n_users": 30, "new_users": 12, "pairs_per_user": 24, "feature_dim": 6, "rank": 2, "shots": [0, 3, 8]}
    task = registry.make_instance("task", "low_rank", settings)
    assert isinstance(task, Task)
    data = with_readable_items(task.build(0))
    with contextlib.ExitStack() as stack:  # frees the method's resources, such as a language model
        yield from MethodOnTask(method, task, data, task.split(data, 0), store, stack).checks()


@dataclass(frozen=True, eq=False)
class MethodOnTask:
    """A method on a small simulated task, fitted when a check first needs the result."""

    method: Method
    task: Task
    data: PreferenceDataset
    splits: Splits
    store: Store | None
    stack: contextlib.ExitStack  # keeps the fitted method's resources open

    def checks(self) -> list[NamedCheck]:
        """Return all rules with their checks."""
        untouched = self.inputs_digest()  # before anything is fitted
        every: list[NamedCheck] = [
            ("the file begins with a docstring of one line", lambda: describe_missing_docstring(self.method)),
            ("fields can be hashed into a key", lambda: identity_hash({"fields": field_values(self.method)}) and None),
            ("the class is a frozen dataclass", self.is_frozen),
            ("fields reject values of a wrong type", lambda: describe_unchecked_field(self.method)),
            ("refuses returns a reason or None", self.gives_refusal_reason),
            ("capabilities are declared", self.declares_capabilities),
            ("state and users are tensors", self.returns_tensors),
            ("the method object keeps nothing learned", self.keeps_no_state),
            ("the same seed gives the same predictions", self.repeats_with_same_seed),
            (
                "predictions with context are finite",
                lambda: describe_not_finite(self.answers(self.context, self.query)),
            ),
            ("predictions without context are finite", self.answers_without_context),
            ("swapping the sides of a query flips the sign", self.ignores_query_sides),
            ("swapping the sides of the context changes nothing", self.ignores_context_sides),
            ("the order of the context changes nothing", self.ignores_context_order),
            ("the order of users changes nothing", self.ignores_user_order),
            ("a user alone and among others with longer contexts gets the same predictions", self.answers_users_alone),
            ("soft labels are allowed", self.allows_soft_labels),
            ("inputs are not modified", lambda: self.leaves_inputs_unchanged(untouched)),
        ]
        if "elicitation" in field_values(self.method):
            every.append(("elicitation depends on the user and the pair alone", self.elicits_independently))
        return [*every, ("run_trial scores every number of shots", self.scores_every_shots)]

    @cached_property
    def context(self) -> Pairs:
        """The test panel's context."""
        return self.splits.panels["test"].context

    @cached_property
    def query(self) -> Pairs:
        """The test panel's queries, without labels."""
        return self.splits.panels["test"].query.without_labels()

    @property
    def ragged_context(self) -> Pairs:
        """The context with 0 to 8 pairs per user."""
        return self.context.take(self.context.rank < self.context.user % 9)

    def new_run(self) -> Run:
        """Return a Run with seed 0; privileged methods get the ground truth."""
        return Run(0, truth=self.data.truth if self.method.privileged else None, store=self.store)

    @cached_property
    def run(self) -> Run:
        """The Run of the fitted method."""
        return self.new_run()

    @cached_property
    def fitted_method(self) -> tuple[State, Predictor]:
        """The state of the method fitted to the splits, and its open predictor."""
        state = self.method.fit(self.splits.train, self.splits.panels["validation"], self.run)
        return state, self.stack.enter_context(self.method.open_predictor(state, self.run))

    def answers(self, shown: Pairs, asked: Pairs) -> np.ndarray:
        """Return the log-odds float[n] of the pairs `asked` for users adapted to the pairs `shown`."""
        state, predictor = self.fitted_method
        users = predictor.adapt(state, shown, self.run)
        return score_queries(self.method, predictor, state, users, asked, hashed_answers)

    def inputs_digest(self) -> str:
        """Return the digest of all data given to the method."""
        gaps = {"train.gap": self.splits.train.gap, "context.gap": self.context.gap, "query.gap": self.query.gap}
        return arrays_digest(split_arrays(self.splits) | named_arrays(self.data) | gaps)

    def is_frozen(self) -> str | None:
        """Return a problem unless the class is a frozen dataclass."""
        frozen = dataclasses.is_dataclass(self.method) and cast(Any, self.method).__dataclass_params__.frozen
        return None if frozen else "write @dataclass(frozen=True)"

    def gives_refusal_reason(self) -> str | None:
        """Return a problem unless `refuses` returns a string or None."""
        tasks = [TaskFacts(d, has_text=True, has_seconds=False, has_truth=False) for d in (None, 6)]
        said = [self.method.refuses(facts) for facts in tasks]
        return None if all(s is None or isinstance(s, str) for s in said) else "refuses must return a reason or None"

    def declares_capabilities(self) -> str | None:
        """Return which of the flags generates, exports and asks_model contradict the functions that the class defines."""
        own, found = type(self.method), []
        for flag, function in (("generates", "generate"), ("exports", "export"), ("asks_model", "questions")):
            has = (
                getattr(own, function) is not getattr(Method, function)
                or own.open_predictor is not Method.open_predictor
            )
            if getattr(own, flag) and not has:
                found.append(f"{flag} = True is declared, but there is no `{function}`")
            if not getattr(own, flag) and getattr(own, function) is not getattr(Method, function):
                found.append(f"there is a `{function}`: declare {flag} = True")
        return "; ".join(found) or None

    def returns_tensors(self) -> str | None:
        """Return a problem unless `fit` returns a dict of tensors and `adapt` a tuple of tensors."""
        state, predictor = self.fitted_method
        try:
            checked_state(state, self.method.name)
            checked_users(predictor.adapt(state, self.context, self.run), self.context.n_users, self.method.name)
        except TypeError as error:
            return str(error)
        return None

    def keeps_no_state(self) -> str | None:
        """Return a problem where `fit` or `adapt` added attributes to the method."""
        self.answers(self.context, self.query)
        kept = set(vars(self.method)) == set(field_values(self.method))
        return None if kept else "fit or adapt changed the method's attributes"

    def repeats_with_same_seed(self) -> str | None:
        """Return a problem where fitting again with the same seed changes predictions."""
        run = self.new_run()
        state = self.method.fit(self.splits.train, self.splits.panels["validation"], run)
        with self.method.open_predictor(state, run) as predictor:
            users = predictor.adapt(state, self.context, self.run)
            other = score_queries(self.method, predictor, state, users, self.query, hashed_answers)
        same = np.array_equal(other, self.answers(self.context, self.query), equal_nan=True)
        return None if same else "two runs with the same seed differ"

    def answers_without_context(self) -> str | None:
        """Return a problem where predictions for users without context are not finite."""
        zero = self.answers(self.context.first(0), self.query)
        return None if np.isfinite(zero).all() else "without context some log-odds are not finite"

    def ignores_query_sides(self) -> str | None:
        """Return a problem unless swapping left and right of a query flips the sign of its log-odds."""
        return describe_difference(
            self.answers(self.context, self.query.swapped()), -self.answers(self.context, self.query)
        )

    def ignores_context_sides(self) -> str | None:
        """Return a problem where swapping left and right of the context changes predictions."""
        return describe_difference(
            self.answers(self.context.swapped(), self.query), self.answers(self.context, self.query)
        )

    def ignores_context_order(self) -> str | None:
        """Return a problem where reversing each user's context changes predictions."""
        order = np.lexsort((-self.context.rank, self.context.user))
        return describe_difference(
            self.answers(self.context.take(order), self.query), self.answers(self.context, self.query)
        )

    def ignores_user_order(self) -> str | None:
        """Return a problem where reversing the order of users changes predictions."""
        order = np.arange(self.context.n_users)[::-1]
        found = self.answers(self.context.of(order), self.query.of(order))
        flat, starts = self.answers(self.context, self.query), self.query.offsets
        return describe_difference(found, np.concatenate([flat[starts[u] : starts[u + 1]] for u in order]))

    def answers_users_alone(self) -> str | None:
        """Return a problem where a user alone gets other predictions than among users with longer contexts."""
        together = self.answers(self.ragged_context, self.query)
        users = np.arange(self.context.n_users)[:, None]
        return describe_difference(
            np.concatenate([self.answers(self.ragged_context.of(u), self.query.of(u)) for u in users]), together
        )

    def allows_soft_labels(self) -> str | None:
        """Return a problem where soft labels in the context give log-odds that are not finite."""
        softened = replace(self.context, label=np.float32(0.2) + np.float32(0.6) * self.context.label)
        finite = np.isfinite(self.answers(softened, self.query)).all()
        return None if finite else "soft labels give log-odds that are not finite"

    def leaves_inputs_unchanged(self, untouched: str) -> str | None:
        """Return a problem where the inputs' digest differs from `untouched`, the digest before fitting."""
        self.answers(self.context, self.query)
        return None if self.inputs_digest() == untouched else "fit, adapt or score wrote into its input"

    def elicits_independently(self) -> str | None:
        """Return a problem where `uncertainty` depends on other users or on the sides of a pair."""
        asking, pool = replace(cast(Any, self.method), elicitation="uncertainty"), self.context.without_labels()
        state = asking.fit(self.splits.train, self.splits.panels["validation"], self.new_run())

        def worth(shown: Pairs, asked: Pairs) -> np.ndarray:
            found = asking.uncertainty(state, asking.adapt(state, shown, self.run), asked)
            return checked_per_pair(found, len(asked), "uncertainty")

        shown, users = self.ragged_context, np.arange(pool.n_users)[:, None]
        together = worth(shown, pool)
        if problem := describe_difference(np.concatenate([worth(shown.of(u), pool.of(u)) for u in users]), together):
            return f"uncertainty of a user alone and among others: {problem}"
        problem = describe_difference(worth(shown, pool.swapped()), together)
        return problem and f"uncertainty with sides swapped: {problem}"

    def scores_every_shots(self) -> str | None:
        """Return the numbers of shots for which `run_trial` has no predictions, or None."""
        trial = Trial(self.task, self.method, 0, "check", "check")
        result = run_trial(trial, self.splits, self.data.truth, None, self.store, hashed_answers)
        return joined_or_none({f"test/{k}" for k in self.task.shots} - set(result.predictions))


def with_readable_items(data: PreferenceDataset) -> PreferenceDataset:
    """Return the data with item texts of many lengths, profiles of people, and ratings of both sides."""
    items, people = data.pairs.items, range(data.pairs.n_users)
    rows = range(len(items))
    text = pa.table([[f"Prompt {i // 2}" for i in rows], ["!" * (i % 7) + f" {i}" for i in rows]], schema=TEXT_SCHEMA)
    profiles = pa.array([f"I am {i}" for i in people], pa.large_string())
    ratings = np.column_stack([data.pairs.left % 5, data.pairs.right % 5]).astype(np.float32)
    pairs = replace(data.pairs, items=replace(items, text=text), profiles=profiles, ratings=ratings)
    return replace(data, pairs=pairs)


def hashed_answers(asked: Asked) -> np.ndarray:
    """Return numbers from each question's hash, in place of a language model's: any change of text changes them."""
    if isinstance(asked, Continuations):
        table = continuation_table(asked.beginnings, asked.leads, asked.texts)
    elif isinstance(asked, ItemRewards):
        table = question_table(asked.prompts, asked.responses)
    else:
        table = question_table(asked.systems, asked.prompts)
    return id_array(table["id"]).view(np.uint8).reshape(-1, 16)[:, 0] / 32 - 4
