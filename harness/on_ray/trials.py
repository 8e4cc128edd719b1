"""Trials on Ray: Tune schedules groups of trials, and a Train worker group runs each; results are in the store.

The workers of an ordinary group divide its trials among them. The workers of a *team* run every trial together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import UserError
from harness.machine import core_count
from harness.store.logs import current_run_name, log_to_store
from harness.store.provenance import code_state
from harness.store.store import Store

from harness.on_ray import session  # first: it sets variables that Ray reads while it is imported  # isort: skip

import ray
import ray.train
import ray.tune
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.progress_reporter import TrialProgressCallback

if TYPE_CHECKING:
    from harness.trials.trial import Trial

log = logging.getLogger(__name__)

# A group is restarted after this many worker deaths; one more is taken to mean that a trial kills its worker. In a team
# the deaths are counted for each trial.
MAX_FAILURES = 3
DIED_REASON = (
    "this trial was running when a worker died, perhaps out of memory; "
    f"after {MAX_FAILURES + 1} worker deaths a run does not try it again"
)
MIN_GROUP_SECONDS = 60.0  # of work on one core; a smaller group is not worth its start, which takes 6-30 s
POLL_SECONDS = 0.5  # between two searches of the store for trials that have ended
TEAM_TIMEOUT_SECONDS = 600  # for which a worker of a team waits for another, which may be saving a checkpoint
TRIAL_VARIABLES = (  # environment variables that workers get from the driver
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MANYMINDS_CHECKPOINT_SECONDS",
    "MANYMINDS_CODE",
    "MANYMINDS_CRASH",
    "MANYMINDS_DATA",
    "MANYMINDS_SHARD",
)


def run_trials_on_ray(
    trials: Sequence[Trial],
    store: Store,
    plugins: Sequence[str | Path] = (),
    workers: int | None = None,
    on_progress: Callable[[int], object] = lambda n: None,
    on_group: Callable[[list[Trial]], object] = lambda trials: None,
    per_method: bool | None = None,
    workers_per_policy: int = 1,
) -> None:
    """Finish the trials, whose tasks are prepared: afterwards each trial's result, or its failure, is in the store.

    workers: number of Ray Train workers, one core each; by default one per core of the machine or cluster.
    on_progress: called in this thread with the number of trials newly finished or failed.
    on_group: called in this thread with the trials of a group that has ended.
    per_method: one group per method instead of one for all; by default where there are several nodes.
    workers_per_policy: workers that train each language-model policy, on a GPU each if there are any, else a core each.

    Joins the cluster that RAY_ADDRESS names (`ray job submit` sets it); there the store must be a folder that all nodes
    share. Without RAY_ADDRESS, starts a local Ray and ends it. Raises the UserError of a worker, and a UserError where
    workers died too often.
    """
    log.info("%d trials on Ray", len(trials))
    for trial in trials:  # failures recorded from here on belong to this run
        store.forget_failure(trial.key)
    has_policies, here = any(t.method.trains_model for t in trials), core_count()
    if has_policies and "RAY_ADDRESS" not in os.environ:
        _check_enough_devices(workers_per_policy, here, local_gpu_count())
    cores = min(workers or here, len(trials))
    with session.ray_session(store, max(cores, workers_per_policy) if has_policies else cores) as ray_storage:
        groups = plan_groups(trials, store, workers, per_method, workers_per_policy)
        watch = _StoreWatcher(store, [group.trials for group in groups], on_progress, on_group)
        run = secrets.token_hex(8)
        errors = _schedule_groups(groups, _worker_settings(store, plugins, run, ray_storage), watch, ray_storage)
    for error in errors:
        log.error("a group of trials ended with %r", error)
        if mistake := session.user_error_within(error):
            raise mistake
    for trial in trials:
        if (begun := _start_marker(store, trial, run)).exists():
            begun.unlink(missing_ok=True)
            if trial.key in watch.pending:
                store.record_failure(trial.key, trial.identity, DIED_REASON, "", current_run_name())
    watch.look()
    if watch.pending:
        raise UserError(
            f"{len(watch.pending)} trials did not run: workers of their group died {MAX_FAILURES + 1} times",
            "if memory is short, try fewer --workers; run with --local to find the trial that kills its worker. "
            "Finished trials are kept",
        ) from next(iter(errors), None)


@dataclass(frozen=True)
class Group:
    """The trials of one Ray Train worker group."""

    trials: list[Trial]
    seconds: list[float]  # estimated, of each trial
    workers: int
    in_team: bool  # all workers run each trial together
    gpu: bool


def plan_groups(
    trials: Sequence[Trial], store: Store, workers: int | None, per_method: bool | None, workers_per_policy: int
) -> list[Group]:
    """Divide the trials into groups that fit the current Ray session. Raises UserError where a team does not fit."""
    from harness.trials.plan import estimate_seconds  # here, because it imports torch

    seconds = estimate_seconds(list(trials), store)
    nodes = sum(node["Alive"] for node in ray.nodes())
    cores, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    policy_trials = [t for t in trials if t.method.trains_model]
    if policy_trials:
        _check_enough_devices(workers_per_policy, cores, gpus)
    teams = (
        make_teams(policy_trials, seconds, workers_per_policy, workers or cores, gpus)
        if gpus or workers_per_policy > 1
        else []
    )
    # Without teams, trials that train a policy take one core each, as all others do.
    others = [t for t in trials if not (teams and t.method.trains_model)]
    workers = min(workers or max(1, cores), len(others))
    groups = make_groups(others, seconds, workers, nodes > 1 if per_method is None else per_method)
    sizes = allot_workers(groups, seconds, workers)
    return [
        *(Group(group, [seconds[t] for t in group], n, False, False) for group, n in zip(groups, sizes, strict=True)),
        *(Group(team, [seconds[t] for t in team], workers_per_policy, True, gpus > 0) for team in teams),
    ]


def _worker_settings(store: Store, plugins: Sequence[str | Path], run: str, ray_storage: str) -> dict[str, object]:
    """Return settings for all workers, as plain values that can be sent to them.

    ray_storage: the folder for the files of Tune and Train.
    """
    environment = {n: os.environ[n] for n in TRIAL_VARIABLES if n in os.environ}
    return {
        "store": str(store.root),
        "plugins": [str(p) for p in plugins],
        "environment": environment | {"MANYMINDS_CODE": code_state()},
        "run": run,
        "log": current_run_name(),
        "ray_storage": ray_storage,
    }


def _schedule_groups(
    groups: list[Group], common: dict[str, object], watch: _StoreWatcher, ray_storage: str
) -> Sequence[BaseException]:
    """Schedule the groups by Ray Tune; return the errors of groups that ended with one."""
    work = [
        common
        | {
            "trials": [_trial_as_dict(t) for t in group.trials],
            "seconds": group.seconds,
            "workers": group.workers,
            "in_team": group.in_team,
            "gpu": group.gpu,
        }
        for group in groups
    ]
    # Control processes stay on the head node and do little work, so they reserve no core.
    runnable = ray.tune.with_resources(
        ray.tune.with_parameters(_run_group, work=work), {"node:__internal_head__": 0.001}
    )
    ended = ray.tune.Tuner(
        runnable,
        param_space={"group": ray.tune.grid_search(list(range(len(groups))))},
        run_config=ray.tune.RunConfig(storage_path=ray_storage, verbose=0, callbacks=[watch]),
    ).fit()
    watch.look()
    return cast(Sequence[BaseException], ended.errors)


def make_groups(
    trials: Sequence[Trial], seconds: dict[Trial, float], workers: int, per_method: bool
) -> list[list[Trial]]:
    """Make one group of all trials, or one per method setting, with small groups merged.

    A group is large enough if its work is at least one worker's equal share of all work, and at least MIN_GROUP_SECONDS.
    """
    if not per_method or not trials:
        return [list(trials)] if trials else []
    by_method: dict[object, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    enough = max(MIN_GROUP_SECONDS, sum(seconds[t] for t in trials) / workers)
    groups: list[list[Trial]] = [[]]
    for group in sorted(by_method.values(), key=lambda g: sum(seconds[t] for t in g)):
        if sum(seconds[t] for t in groups[-1]) >= enough:
            groups.append([])
        groups[-1] += group
    if len(groups) > 1 and sum(seconds[t] for t in groups[-1]) < enough:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def make_teams(
    policy_trials: Sequence[Trial], seconds: dict[Trial, float], workers_per_policy: int, cores: int, gpus: int
) -> list[list[Trial]]:
    """Divide trials that train policies into groups, one for each team of `workers_per_policy` workers.

    There are as many teams as the GPUs allow, or the cores where there are no GPUs.
    """
    split = balanced_shares([seconds[t] for t in policy_trials], max(1, (gpus or cores) // workers_per_policy))
    return [[policy_trials[i] for i in some] for some in split if some]


def allot_workers(groups: list[list[Trial]], seconds: dict[Trial, float], workers: int) -> list[int]:
    """Return each group's number of workers, at least one: each next worker goes where work per worker is largest."""
    work = [sum(seconds[t] for t in group) for group in groups]
    given = [1] * len(groups)
    while sum(given) < workers:
        open_ = [i for i, group in enumerate(groups) if given[i] < len(group)]
        if not open_:
            break
        given[max(open_, key=lambda i: work[i] / given[i])] += 1
    return given


def balanced_shares(seconds: Sequence[float], workers: int) -> list[list[int]]:
    """Divide trials among workers: the longest first, each to the worker with the least work so far.

    The division is deterministic, so that all workers find the same one, also after a restart.
    """
    split: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for i in sorted(range(len(seconds)), key=lambda i: -seconds[i]):
        least = load.index(min(load))
        split[least].append(i)
        load[least] += seconds[i]
    return split


def _run_group(config: dict, work: list[dict]) -> None:
    """Run one group of trials in a Train worker group; this is the function that Tune calls."""
    group = work[config["group"]]
    backend, failures = None, MAX_FAILURES
    if group["in_team"]:
        from ray.train.torch import TorchConfig  # makes the trainer below a TorchTrainer

        backend = TorchConfig(timeout_s=TEAM_TIMEOUT_SECONDS, backend="nccl" if group["gpu"] else "gloo")
        failures = (MAX_FAILURES + 1) * len(group["trials"])  # `_turn_of_trial` limits the worker deaths at each trial
    DataParallelTrainer(
        _run_worker_share,
        train_loop_config=group,
        backend_config=backend,
        scaling_config=ray.train.ScalingConfig(
            num_workers=group["workers"],
            use_gpu=group["gpu"],
            resources_per_worker={"CPU": 0, "GPU": 1} if group["gpu"] else {"CPU": 1},  # cores are left to other trials
        ),
        run_config=ray.train.RunConfig(
            storage_path=group["ray_storage"],
            failure_config=ray.train.FailureConfig(max_failures=failures),
            callbacks=cast(Any, [_StopAtUserError()]),  # RunConfig's type hint omits UserCallback
        ),
    ).fit()


def _run_worker_share(group: dict) -> None:
    """Run this worker's trials one after another by `finish_trials`, as without Ray; Train calls this function.

    In a team every worker runs all trials, and the first worker decides which are left. Workers receive a plain
    description of each trial and make the trial from it, so that no class is pickled.
    """
    os.environ.update(group["environment"])
    if not group["gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from workers that asked for none
    store, context = Store(group["store"]), ray.train.get_context()
    name = f"{group['log']}.worker-{context.get_world_rank()}-{socket.gethostname()}-{os.getpid()}"
    with log_to_store(store, name) if group["log"] else contextlib.nullcontext():
        _run_share_in_turns(group, store, context)


def _run_share_in_turns(group: dict, store: Store, context: ray.train.TrainContext) -> None:
    """Run this worker's trials; those that were running when a worker died come last."""
    from harness import parallel, registry
    from harness.trials.finish import finish_trials

    registry.add_plugins(group["plugins"])
    mine = list(range(len(group["trials"])))
    if not group["in_team"]:
        mine = balanced_shares(group["seconds"], context.get_world_size())[context.get_world_rank()]
    trials = [_trial_from_dict(group["trials"][i]) for i in mine]
    turns = [parallel.first_workers_value(_turn_of_trial(store, trial, group)) for trial in trials]

    def begin(trial: Trial) -> None:
        if parallel.worker_rank() == 0:
            with _start_marker(store, trial, group["run"]).open("a") as starts:
                starts.write(".")

    for now in (FIRST, LAST):
        for trial, _ in finish_trials([t for t, turn in zip(trials, turns, strict=True) if turn == now], store, begin):
            if parallel.worker_rank() == 0:
                _start_marker(store, trial, group["run"]).unlink(missing_ok=True)  # swept as stale after a day


DONE, FIRST, LAST = range(3)


def _turn_of_trial(store: Store, trial: Trial, group: dict) -> int:
    """Return when the trial runs: DONE (finished or failed), FIRST or LAST.

    A trial that was running when a worker died comes last, so that it cannot keep others from running. In a team, where
    no other trial runs at the same time, the trial fails after more than MAX_FAILURES such deaths.
    """
    if store.read_manifest("trials", trial.key) or store.read_failure(trial.key):
        return DONE
    begun = _start_marker(store, trial, group["run"])
    starts = begun.stat().st_size if begun.exists() else 0
    if group["in_team"] and starts > MAX_FAILURES:
        store.record_failure(trial.key, trial.identity, DIED_REASON, "", current_run_name())
        return DONE
    return LAST if starts else FIRST


def _start_marker(store: Store, trial: Trial, run: str) -> Path:
    """Return the file that exists while the trial runs. A worker that dies leaves it behind.

    run: names this run, since several may use one store.
    """
    return store.scratch_folder / f"begun.{trial.key}.{run}"


def _trial_as_dict(trial: Trial) -> dict:
    from harness.trials.trial import field_values

    things = {
        kind: [thing.name, field_values(thing)] for kind, thing in (("task", trial.task), ("method", trial.method))
    }
    return things | {"seed": trial.seed, "data": trial.data, "task_key": trial.task_key}


def _trial_from_dict(spec: dict) -> Trial:
    from harness import registry
    from harness.trials.trial import Trial

    return Trial(
        registry.make_instance("task", *spec["task"]),
        registry.make_instance("method", *spec["method"]),
        spec["seed"],
        spec["data"],
        spec["task_key"],
    )


class _StopAtUserError(UserCallback):
    """A callback that ends a group at a UserError, which another try would raise again.

    After other errors, such as the death of a worker, Train starts the group again.
    """

    def after_exception(self, run_context, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error


def check_gpus(workers_per_policy: int, store: Store) -> None:
    """Raise UserError where the cluster that RAY_ADDRESS names, or this machine, has too few GPUs for a policy."""
    if "RAY_ADDRESS" in os.environ:
        with session.ray_session(store, 1):
            gpus = int(ray.cluster_resources().get("GPU", 0))
    else:
        gpus = local_gpu_count()
    if not gpus:
        raise UserError(
            "there is no GPU here", "leave out --require-gpu to train on cores, or set RAY_ADDRESS to a cluster"
        )
    _check_enough_devices(workers_per_policy, 0, gpus)


def local_gpu_count() -> int:
    """Return the number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def _check_enough_devices(workers_per_policy: int, cores: int, gpus: int) -> None:
    room, what = (gpus, "GPU") if gpus else (cores, "core")
    if workers_per_policy > room:
        there = f"{room} {what}" + ("s" if room > 1 else "")
        raise UserError(
            f"--workers-per-policy {workers_per_policy} asks for {workers_per_policy} {what}s, but there "
            f"{'is' if room == 1 else 'are'} only {there}",
            f"--workers-per-policy {room}",
        )


class _StoreWatcher(TrialProgressCallback):
    """A callback that counts finished trials in the store, called in Tune's loop about ten times a second.

    The class replaces Tune's own reporter, which prints.
    """

    def __init__(self, store: Store, groups: list[list[Trial]], on_progress: Callable, on_group: Callable) -> None:
        self.store, self.groups, self.on_progress, self.on_group = store, groups, on_progress, on_group
        self.pending = {trial.key for group in groups for trial in group}
        self.looked = time.monotonic()

    def look(self) -> None:
        """Report the trials that have ended since the last look."""
        done = {key for key in self.pending if self.store.has_ended(key)}
        self.pending -= done
        self.looked = time.monotonic()
        if done:
            self.on_progress(len(done))

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        pass

    def on_step_end(self, iteration, trials, **info) -> None:
        if time.monotonic() - self.looked > POLL_SECONDS:
            self.look()

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.look()
        self.on_group(self.groups[trial.config["group"]])

    on_trial_error = on_trial_complete

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks, but progress bars hold locks, which cannot be pickled
