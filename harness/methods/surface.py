"""Control that sees only the form of responses: length, marks, layout and traces of storage, but no word."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.data import Items, Pairs, Panel
from harness.learning.form import FORM_NAMES, form_features
from harness.learning.linear import fit_map_weights
from harness.learning.priors import PRIOR_SCALES, best_prior_on_validation
from harness.method import Method, Run, State, TaskFacts, Users


@dataclass(frozen=True)
class Surface(Method):
    """One Bradley-Terry reward for all users, linear in the form of the responses (`learning.form`).

    Form is what a data set's makers can leak: where the preferred responses were stored as text and the others as lists,
    brackets and quotes tell them apart, and every method that reads text looks good. The control's accuracy is what
    needs no understanding. On human choices the form tells something
    too: the longer text wins .685 of `arguments`.
    """

    family = "control"
    version = 2

    def refuses(self, task: TaskFacts) -> str | None:
        return super().refuses(task) if task.has_text else "needs items with text"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        form = with_form(train)
        spread = form.gap.std(axis=0)
        scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
        form = with_scale(form, scale)
        context, query = (with_scale(with_form(part), scale) for part in (validation.context, validation.query))
        zero, nothing = torch.zeros(len(scale), dtype=torch.float64), torch.zeros(len(scale), 0, dtype=torch.float64)
        fits = [
            fit_map_weights(form.pooled(), zero, torch.tensor(prior, dtype=torch.float64))[0] for prior in PRIOR_SCALES
        ]
        best = best_prior_on_validation([{"mean": weights, "root": nothing} for weights in fits], Panel(context, query))
        return {"weights": best["mean"] * torch.from_numpy(scale)}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        shown, row = np.unique(item, return_inverse=True)
        form = torch.from_numpy(form_features(items.known_text["response"].take(shown))).double()
        return (form @ state["weights"])[torch.from_numpy(row)]


def with_form(pairs: Pairs) -> Pairs:
    """Return the pairs with items that are their form alone; items that no pair has are zero."""
    used = np.unique(np.concatenate([pairs.left, pairs.right]))
    form = np.zeros((len(pairs.items), len(FORM_NAMES)), dtype=np.float32)
    form[used] = form_features(pairs.items.known_text["response"].take(used))
    return replace(pairs, items=Items(form))


def with_scale(pairs: Pairs, scale: np.ndarray) -> Pairs:
    """Return the pairs with every feature multiplied by its entry of `scale`."""
    return replace(pairs, items=Items(pairs.items.known_features * scale))
