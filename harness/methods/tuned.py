"""Any method at the setting that a search with a stated budget finds on validation users."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.fields import identity_fields, name_at_version
from harness.learning.search import Sampler, Search, searched_fields
from harness.method import Method, Run, State, TaskFacts, Users
from harness.registry import parse_setting


@lru_cache(100)  # a board asks for it a hundred times
def parse_method(text: str) -> Method:
    """Return the method of that name and fields."""
    return parse_setting("method", text)


def base_identity(text: str) -> dict[str, object]:
    """Return what determines a tuned method's results: the method, its fixed fields, and the space of the others."""
    base = parse_method(text)
    return {
        "method": name_at_version(base),
        "fields": identity_fields(base),
        "space": {name: repr(part) for name, part in searched_fields(base).items()},
    }


@dataclass(frozen=True)
class Tuned(Method):
    """A method of the project at its best setting on validation users; every method of a suite gets the same budget.

    `fit` searches among settings (harness/learning/search.py), fits the one with the lowest loss, and answers with it. It
    searches on the trial's own training and validation users, so no test user of that seed has a part in the choice,
    also where people are the same under all seeds. On Ray, Tune has tried the settings in parallel before the trial runs.
    """

    family = "search"
    searches = True

    # a name, or name?field=value&field=value: fields that are given are fixed, the others of its search space are searched
    method: str = field(default="spectral", metadata={"identity": base_identity})
    trials: int = 32  # settings that are tried, the method as it is among them
    seconds: float = 0.0  # of one core, after which no further settings are tried; 0 is no limit
    sampler: Sampler = "tpe"  # Optuna's tree-structured Parzen estimator; "random" draws all settings independently

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1 or self.seconds < 0:
            raise UserError("tuned: trials must be 1 or more, seconds 0 or more", "for example trials = 32")
        base = self.base
        if base.asks_model or base.trains_model or not base.search_space:
            raise UserError(
                f"tuned: {base.name} has nothing to search",
                "`manyminds list` shows the methods; name one with a search space",
            )

    @property
    def base(self) -> Method:
        """The method as it is, before the search."""
        return parse_method(self.method)

    @property
    def variant_of(self) -> Method:
        return self.base

    @property
    def estimated_seconds(self) -> float:
        return self.trials * self.base.estimated_seconds

    @property
    def elicitation(self) -> str:
        return self.base.elicitation

    @property
    def has_rewards(self) -> bool:
        return self.base.has_rewards

    def refuses(self, task: TaskFacts) -> str | None:
        return self.base.refuses(task)

    def open_search(self, run: Run) -> Search:
        return Search(self.base, self.trials, self.seconds, self.sampler, run)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        search = self.open_search(run)
        while settings := search.propose():
            search.tell([search.try_setting(setting, train, validation) for setting in settings])
        best = search.best
        run.chosen.update(
            setting=best.setting,
            tried=len(search.tried),
            failed=sum(tried.loss is None for tried in search.tried),
            seconds=sum(tried.seconds for tried in search.tried),
            losses=[tried.loss for tried in search.tried],
        )
        torch.manual_seed(run.seed)
        state = dataclasses.replace(self.base, **best.setting).fit(train, validation, run)
        return state | {"setting": torch.tensor(list(json.dumps(best.setting).encode()), dtype=torch.uint8)}

    def chosen(self, state: State) -> Method:
        """Return the method at the setting that `fit` chose."""
        return dataclasses.replace(self.base, **json.loads(bytes(state["setting"].tolist())))

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return self.chosen(state).adapt(state, context, run)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        return self.chosen(state).score(state, users, query)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        return self.chosen(state).reward(state, users, items, user, item)

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        return self.chosen(state).uncertainty(state, users, pool)
