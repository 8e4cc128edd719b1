"""The contract of a task: checks of its data and splits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness import registry
from harness.check.findings import (
    Measured,
    NamedCheck,
    describe_missing_docstring,
    describe_unchecked_field,
    describe_unequal_runs,
    joined_or_none,
    problem_raised,
)
from harness.data import Pairs, PreferenceDataset, Splits, arrays_digest, named_arrays, split_arrays
from harness.fields import field_values
from harness.method import Run
from harness.sameness import same_reading
from harness.scores.metrics import label_of_preferred
from harness.scores.stats import resembles_coin_flips
from harness.store.store import Store
from harness.task import Task, build_task
from harness.trials.prepare import (
    MAX_EQUAL_OPTIONS,
    MAX_FORM_ACCURACY,
    check_enough_context,
    check_one_table_of_items,
    equal_options_share,
    prepared_features,
)
from harness.trials.trial import identity_hash, task_identity

MIN_SHINGLE_OVERLAP = 0.9  # Jaccard; ten words of which one differs by a letter share about .85
MAX_NEAR_DUPLICATES = 0.05  # share of queries
MAX_COMPARED_USERS = 100  # test users whose pairs are compared; more add nothing to a share
MAX_SPREAD_RATIO = 1000  # of columns in one unit; with more, a few columns decide every distance


def task_checks(task: Task, store: Store | None = None) -> Iterator[NamedCheck]:
    """Yield (rule, check) for each rule of a task; a check returns the problem or None.

    Run each check before taking the next one: a task that cannot be built has no further checks.
    """
    built: list[BuiltTask] = []

    def builds() -> str | None:
        data = build_task(task, 0, store)
        splits = task.split(data, 0)
        if not isinstance(data, PreferenceDataset) or not isinstance(splits, Splits):
            return "build must return a PreferenceDataset, and split Splits"
        built.append(BuiltTask(task, store, data, splits))
        return None

    yield "the file begins with a docstring of one line", lambda: describe_missing_docstring(task)
    yield "fields can be hashed into a key", lambda: identity_hash(task_identity(task, 0)) and None
    yield "fields reject values of a wrong type", lambda: describe_unchecked_field(task)
    yield "build and split work", builds
    if built:
        yield from built[0].checks()


@dataclass(frozen=True, eq=False)
class BuiltTask:
    """A task with its data and splits for seed 0."""

    task: Task
    store: Store | None
    data: PreferenceDataset
    splits: Splits

    @property
    def ids(self) -> list[str]:
        """Ids of all people of the data."""
        return self.data.users["id"].to_pylist()

    def checks(self) -> list[NamedCheck]:
        """Return all rules of a built task with their checks."""
        return [
            ("the same seed builds the same data", self.builds_same_data),
            ("another process builds and splits the same data", self.builds_same_data_elsewhere),
            ("the same seed splits the same way", self.splits_same_way),
            ("another seed gives another split", self.splits_by_seed),
            ("the panels validation, seen and test exist", self.has_needed_panels),
            ("all parts of the split number the same items", self.has_one_table_of_items),
            ("no split leaks", self.has_no_leak),
            ("no query nearly repeats a pair that its user was shown", self.has_no_near_duplicates),
            ("validation and test people are different", self.has_separate_people),
            ("every user has enough context pairs and a query", self.has_enough_pairs),
            ("features are finite numbers", self.has_finite_features),
            ("columns in one unit differ less than a thousandfold in spread", self.has_comparable_columns),
            ("features tell the two options of a pair apart", self.tells_options_apart),
            ("labels are in [0, 1]", self.has_valid_labels),
            ("the form of responses does not tell which wins", self.hides_answers_from_form),
            ("left and right carry no information", self.has_uninformative_sides),
            ("item numbers carry no information", self.has_uninformative_numbers),
        ]

    def builds_same_data(self) -> str | None:
        """Return a problem where building again with the same seed gives other data."""
        again = build_task(self.task, 0, self.store)
        return describe_unequal_runs(arrays_digest(named_arrays(again)), arrays_digest(named_arrays(self.data)))

    def builds_same_data_elsewhere(self) -> str | None:
        """Return a problem where a new process, in which sets of texts have another order, builds or splits otherwise.

        Only plug-ins are built again: it takes some seconds.
        """
        file = registry.PLUGINS.get(self.task.name)
        if file is None:
            return None
        asked = [
            str(file),
            self.task.name,
            json.dumps(field_values(self.task)),
            str(self.store.root) if self.store else "",
        ]
        ended = subprocess.run(
            [sys.executable, "-c", BUILD_ELSEWHERE, *asked],
            env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            return f"in a process of its own it fails: {ended.stderr.strip().splitlines()[-1]}"
        here = _built_digest(self.data, self.splits)
        return None if ended.stdout.split()[-1] == here else "it differs: sort sets, and read no clock or process id"

    def splits_same_way(self) -> str | None:
        """Return a problem where splitting again with the same seed gives other splits."""
        again = self.task.split(self.data, 0)
        return describe_unequal_runs(arrays_digest(split_arrays(again)), arrays_digest(split_arrays(self.splits)))

    def splits_by_seed(self) -> str | None:
        """Return a problem where seeds 0 and 1 give the same split."""
        other = self.task.split(build_task(self.task, 1, self.store), 1)
        changed = arrays_digest(split_arrays(self.splits)) != arrays_digest(split_arrays(other))
        return None if changed else "seeds 0 and 1 give the same split"

    def has_needed_panels(self) -> str | None:
        """Return the names of missing panels, or None."""
        return joined_or_none({"validation", "seen", "test"} - set(self.splits.panels))

    def has_one_table_of_items(self) -> str | None:
        """Return a problem where a panel has items of its own."""
        return problem_raised(lambda: check_one_table_of_items(self.task, self.data, self.splits))

    def has_no_leak(self) -> str | None:
        """Return the leak of a split, or None."""
        return problem_raised(lambda: self.splits.check_for_leaks(self.ids))

    def has_no_near_duplicates(self) -> str | None:
        """Return a problem where many test queries nearly repeat a pair of the same user's context.

        Two pairs nearly repeat each other if their prompts, and both texts of one, in either order, share MIN_SHINGLE_OVERLAP of the shingles
        (runs of four characters) with those of the other. Names, dates or typing errors may be all that differs.
        """
        if "test" not in self.splits.panels or self.data.pairs.items.text is None:
            return None
        context, query = self.splits.panels["test"].context, self.splits.panels["test"].query
        share = near_duplicate_share(context, query)
        said = f"{share:.1%} of the queries, those of {min(query.n_users, MAX_COMPARED_USERS)} people"
        if share <= MAX_NEAR_DUPLICATES:
            return Measured(said)
        return f"{said}: a method that remembers texts would know the answer; keep such pairs on one side of the split"

    def has_separate_people(self) -> str | None:
        """Return the people who are in both validation and test, or None."""
        users = {name: set(panel.query.people.tolist()) for name, panel in self.splits.panels.items()}
        return joined_or_none(users.get("validation", set()) & users.get("test", set()))

    def has_enough_pairs(self) -> str | None:
        """Return a problem where a user has too few context pairs or no query."""
        return problem_raised(lambda: check_enough_context(self.task, self.splits, self.ids))

    @property
    def query_pairs(self) -> Pairs:
        """The test panel's queries, or the training pairs where there is no test panel."""
        return self.splits.panels["test"].query if "test" in self.splits.panels else self.splits.train

    def has_finite_features(self) -> str | None:
        """Return a problem where features are not numbers, not finite, or too large beside all others."""
        items = self.query_pairs.items
        if items.features is None:
            return None if items.text is not None else "items have neither features nor text"
        if items.features.dtype.kind not in "iuf" or not np.isfinite(items.features).all():
            return f"features are {items.features.dtype}, or not all finite"
        return problem_raised(lambda: prepared_features(self.data, self.splits))

    def has_comparable_columns(self) -> str | None:
        """Return a problem where columns that are declared to share a unit have very different spreads."""
        items = self.data.pairs.items
        if items.features is None or not items.columns_share_unit:
            return None
        spread = items.features.std(axis=0)
        spread = spread[spread > 0]
        if not len(spread) or spread.max() <= MAX_SPREAD_RATIO * np.median(spread):
            return None
        return (
            f"the spread of one column is {spread.max() / np.median(spread):.3g} times the median of all: "
            "leave out columns_share_unit=True, or scale the columns"
        )

    def tells_options_apart(self) -> str | None:
        """Return a problem where too many pairs have two options with equal features."""
        share = equal_options_share(self.query_pairs, prepared_features(self.data, self.splits))
        if share <= MAX_EQUAL_OPTIONS:
            return Measured(f"equal in {share:.1%} of the test panel's pairs")
        return (
            f"the two options have equal features in {share:.1%} of the test panel's pairs: the features, or the encoder, "
            "drop what people decide by, and no method can learn it"
        )

    def hides_answers_from_form(self) -> str | None:
        """Return a problem where brackets, quotes, line breaks, length and other form predict the test queries.

        The method `surface` is fitted and asked as in a trial, without ties.
        """
        panels = self.splits.panels
        if self.data.pairs.items.text is None or not {"validation", "test"} <= set(panels):
            return None
        method, run = registry.make_instance("method", "surface", {}), Run(0)
        state = method.fit(self.splits.train, panels["validation"], run)
        query = panels["test"].query
        query = query.take(query.label != 0.5)
        z = method.score(state, method.adapt(state, panels["test"].context, run), query.without_labels()).numpy()
        share = float(label_of_preferred(z, query.label).mean()) if len(query) else 0.5
        said = f"form alone predicts {share:.1%} of {len(query)} test queries"
        if self.task.form_matters or share <= MAX_FORM_ACCURACY:
            return Measured(said)
        return (
            f"{said}: chosen and rejected responses may be stored in different ways; store them alike, or set "
            "form_matters if people judge form"
        )

    def has_valid_labels(self) -> str | None:
        """Return a problem where a label is outside [0, 1]."""
        label = self.query_pairs.label
        return None if ((label >= 0) & (label <= 1)).all() else "a label is outside [0, 1]"

    def has_uninformative_sides(self) -> str | None:
        """Return a problem where left wins too often or too rarely."""
        label = self.data.pairs.label
        return (
            None
            if resembles_coin_flips(label.mean(), len(label))
            else f"left wins {label.mean():.3f} of {len(label)} pairs"
        )

    def has_uninformative_numbers(self) -> str | None:
        """Return a problem where the item with the lower number wins too often or too rarely."""
        left, right = self.data.pairs.left, self.data.pairs.right
        times = np.bincount(np.r_[left, right], minlength=len(self.data.pairs.items))
        # Only pairs whose items are in no other pair: an item that wins many pairs would count as many coin flips.
        once = (times[left] == 1) & (times[right] == 1)
        label = np.where(left < right, self.data.pairs.label, 1 - self.data.pairs.label)[once]
        if not once.any() or resembles_coin_flips(label.mean(), len(label)):
            return None
        return f"the item of lower number wins {label.mean():.3f} of {once.sum()} pairs"


BUILD_ELSEWHERE = """
import json, sys
from harness import registry
from harness.check.tasks import built_digest
from harness.store.store import Store
file, name, fields, store = sys.argv[1:]
registry.add_plugins([file])
task = registry.make_instance("task", name, json.loads(fields))
print(built_digest(task, Store(store) if store else None))
"""


def built_digest(task: Task, store: Store | None) -> str:
    """Return a digest of what the task builds and splits for seed 0."""
    data = build_task(task, 0, store)
    return _built_digest(data, task.split(data, 0))


def _built_digest(data: PreferenceDataset, splits: Splits) -> str:
    return arrays_digest(split_arrays(splits) | named_arrays(data))


def near_duplicate_share(context: Pairs, query: Pairs) -> float:
    """Return the share of queries that nearly repeat a context pair of the same user, over MAX_COMPARED_USERS users."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer="char", ngram_range=(4, 4), binary=True, norm=None, alternate_sign=False)
    parts = []
    for name in ("prompt", "response"):
        texts = [same_reading(text) for text in query.items.known_text[name].to_pylist()]
        shingles = vectorizer.transform(f" {text} " for text in texts)  # a short text has a shingle, too
        parts.append((shingles, np.asarray(shingles.sum(axis=1)).ravel()))

    def overlap(asked: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Return float[asked, shown]: the smaller overlap of two items' prompts and of their responses."""
        found = np.ones((len(asked), len(shown)))
        for shingles, sizes in parts:
            both = (shingles[asked] @ shingles[shown].T).toarray()
            every = sizes[asked][:, None] + sizes[shown][None] - both
            found = np.minimum(found, np.divide(both, every, out=np.ones_like(both), where=every > 0))
        return found

    repeated, n_queries = 0, 0
    for user in range(min(query.n_users, MAX_COMPARED_USERS)):
        shown, asked = context.of([user]), query.of([user])
        if len(shown) and len(asked):
            same = np.minimum(overlap(asked.left, shown.left), overlap(asked.right, shown.right))
            swapped = np.minimum(overlap(asked.left, shown.right), overlap(asked.right, shown.left))
            repeated += int((np.maximum(same, swapped).max(axis=1) >= MIN_SHINGLE_OVERLAP).sum())
        n_queries += len(asked)
    return repeated / max(1, n_queries)
