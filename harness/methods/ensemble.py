"""The weighted mean of several methods' log-odds, with weights chosen on validation users."""

from dataclasses import dataclass, field

import numpy as np
import safetensors.torch
import torch
from scipy.optimize import minimize

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.fields import identity_fields, name_at_version
from harness.learning.search import levels_of_shots
from harness.method import Method, Run, State, TaskFacts, Users
from harness.methods.tuned import parse_method
from harness.scores.metrics import fit_temperature_scale, mean_log_loss
from harness.store.store import identity_hash

# Weight of the pull towards equal weights against the mean loss of one person, so that it counts less the more people there
# are. Stated beforehand: on `snacks`, `attributes`, `raters` and `low_rank`, .1 and 10 are within .01 of it at any shots.
EQUAL_WEIGHTS_PULL = 1.0


def members_identity(members: tuple[str, ...]) -> list[dict[str, object]]:
    """Return what determines the results of each member."""
    return [{"method": name_at_version(m), "fields": identity_fields(m)} for m in map(parse_method, members)]


@dataclass(frozen=True)
class Ensemble(Method):
    """The sum of the members' log-odds, each times a weight that is 0 or more.

    The weights have the lowest log loss on validation users, at each scored number of shots for itself, with a pull
    towards the mean of all members' calibrated log-odds. Where a member's trial of the same data and seed is finished, its
    state is read from the store, if it was small enough to be kept there, and nothing is fitted again.
    """

    family = "ensemble"
    combines = True

    # names, or name?field=value&field=value
    members: tuple[str, ...] = field(
        default=("mixed_logit", "per_user", "pref", "rfm"), metadata={"identity": members_identity}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.members)) < 2 or len(set(self.members)) < len(self.members):
            raise UserError(
                "ensemble: members must be two or more different methods", 'members = ["mixed_logit", "rfm"]'
            )
        for member in self.methods:
            if member.asks_model or member.trains_model or member.privileged:
                raise UserError(
                    f"ensemble: {member.name} cannot be a member",
                    "name methods that learn from features, without the truth",
                )

    @property
    def methods(self) -> list[Method]:
        """The members."""
        return [parse_method(text) for text in self.members]

    @property
    def has_rewards(self) -> bool:
        return all(member.has_rewards for member in self.methods)

    def refuses(self, task: TaskFacts) -> str | None:
        reasons = ((member, member.refuses(task)) for member in self.methods)
        return next((f"its member {member.name} {reason}" for member, reason in reasons if reason), None)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        states = [stored_state(m, run) or m.fit(train, validation, run) for m in self.methods]
        state = {f"{i}/{name}": value for i, each in enumerate(states) for name, value in each.items()}
        levels = run.shots or levels_of_shots(validation)
        query, weights = validation.query, []
        for shots in levels:
            users = [
                m.adapt(s, validation.context.first(shots), run) for m, s in zip(self.methods, states, strict=True)
            ]
            Z = np.stack(
                [
                    m.score(s, u, query.without_labels()).detach().double().numpy()
                    for m, s, u in zip(self.methods, states, users, strict=True)
                ],
                1,
            )
            weights.append(fit_weights(Z, query.label.astype(np.float64), query.n_users))
        run.chosen.update(
            weights={
                str(n): dict(zip(self.members, w.tolist(), strict=True)) for n, w in zip(levels, weights, strict=True)
            }
        )
        return state | {
            "levels": torch.tensor(levels),
            "weights": torch.from_numpy(np.stack(weights)),
            "parts": torch.tensor([len(u) for u in users]),
        }

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Return each user's weights float64[n_users, members], and what the members return."""
        count = torch.from_numpy(np.diff(context.offsets))
        level = (torch.searchsorted(state["levels"], count, right=True) - 1).clamp(min=0)
        users: Users = (state["weights"][level],)
        for member, own in zip(self.methods, split_states(state), strict=True):
            users += member.adapt(own, context, run)
        return users

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        weights = users[0][torch.from_numpy(query.user).long()]
        parts = zip(self.methods, split_states(state), split_users(state, users), strict=True)
        return sum(
            (weights[:, i] * m.score(s, u, query).double() for i, (m, s, u) in enumerate(parts)), torch.zeros(())
        )

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        weights = users[0][torch.from_numpy(user).long()]
        parts = zip(self.methods, split_states(state), split_users(state, users), strict=True)
        found = (weights[:, i] * m.reward(s, u, items, user, item).double() for i, (m, s, u) in enumerate(parts))
        return sum(found, torch.zeros(()))


def stored_state(member: Method, run: Run) -> State | None:
    """Return what a member learned in its own finished trial of the same data and seed; None where there is none."""
    if run.store is None or not run.identity:
        return None
    own = {"method": name_at_version(member), "method_fields": identity_fields(member)}
    found = run.store.read_manifest("trials", identity_hash(dict(run.identity) | own))
    if found is None or "learned.safetensors" not in found["files"]:
        return None
    learned = safetensors.torch.load(run.store.read_verified(found, "learned.safetensors"))
    return {name.removeprefix("state/"): value for name, value in learned.items() if name.startswith("state/")} or None


def fit_weights(Z: np.ndarray, y: np.ndarray, n_users: int) -> np.ndarray:
    """Return float64[members], 0 or more: the weights of log-odds float64[n, members] with the lowest log loss.

    y: float64[n], labels of n_users people.
    """
    scale = np.array([fit_temperature_scale(z, y) for z in Z.T])
    calibrated, m = Z * scale, Z.shape[1]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = calibrated @ w
        p = 0.5 * (1 + np.tanh(z / 2))
        pull = EQUAL_WEIGHTS_PULL / n_users
        value = mean_log_loss(z, y) + pull * np.square(w - 1 / m).sum()
        return value, calibrated.T @ (p - y) / len(y) + 2 * pull * (w - 1 / m)

    return minimize(loss, np.full(m, 1 / m), jac=True, bounds=[(0, None)] * m, method="L-BFGS-B").x * scale


def split_states(state: State) -> list[State]:
    """Return the members' states."""
    return [
        {name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{i}/")}
        for i in range(len(state["parts"]))
    ]


def split_users(state: State, users: Users) -> list[Users]:
    """Return what each member's `adapt` returned."""
    ends = 1 + torch.cumsum(state["parts"], 0)
    return [users[int(end - n) : int(end)] for end, n in zip(ends, state["parts"], strict=True)]
