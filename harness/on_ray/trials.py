"""Trials on Ray: Tune schedules groups of trials, and a Train worker group runs each; results are in the store.

The workers of an ordinary group divide its trials among them. The workers of a *team* run every trial together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import UserError, print_note
from harness.machine import core_count
from harness.on_ray.causes import cause_in_words
from harness.on_ray.marks import DEFAULT_TRIAL_MINUTES, GroupMarks
from harness.on_ray.plain import surroundings, trial_as_dict, trial_from_dict
from harness.on_ray.watch import RayLostError, StoreWatch, call_watched
from harness.store.logs import current_run_name, log_to_store
from harness.store.store import Store

from harness.on_ray import session  # first: it sets variables that Ray reads while it is imported  # isort: skip
from harness.on_ray.deaths import DeathCounter, GroupEndedError  # isort: skip
from harness.on_ray.searches import QuietReporter, Searches  # isort: skip

import ray
import ray.train
import ray.tune
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

if TYPE_CHECKING:
    from harness.trials.trial import Trial

log = logging.getLogger(__name__)

HEALTH_SECONDS = 600  # a worker that holds the interpreter's lock answers no health check until its trial's limit
MIN_GROUP_SECONDS = 60.0  # of work on one core; a smaller group is not worth its start, which takes 6-30 s
TEAM_TIMEOUT_SECONDS = 600  # for which a worker of a team waits for another, which may be saving a checkpoint


def run_trials_on_ray(
    trials: Sequence[Trial],
    store: Store,
    plugins: Sequence[str | Path] = (),
    workers: int | None = None,
    on_progress: Callable[[int], object] = lambda n: None,
    on_group: Callable[[list[Trial]], object] = lambda trials: None,
    per_method: bool | None = None,
    workers_per_policy: int = 1,
    trial_minutes: float = DEFAULT_TRIAL_MINUTES,
) -> None:
    """Finish the trials, whose tasks are prepared: afterwards each trial's result, or its failure, is in the store.

    workers: number of Ray Train workers, one core each; by default one per core of the machine or cluster.
    on_progress: called in this thread with the number of trials newly finished or failed.
    on_group: called in this thread with the trials of a group that has ended before others.
    per_method: one group per method instead of one for all; by default where there are several nodes.
    workers_per_policy: workers that train each language-model policy, on a GPU each if there are any, else a core each.
    trial_minutes: a trial that takes longer is ended, with its worker, and fails.

    Joins the cluster that RAY_ADDRESS names (`ray job submit` sets it); there the store must be a folder that all nodes
    share. Without RAY_ADDRESS, starts a local Ray and ends it. Raises the UserError of a worker, and a UserError that
    says why where trials did not run.
    """
    log.info("%d trials on Ray", len(trials))
    for trial in trials:  # failures recorded from here on belong to this run
        store.forget_failure(trial.key)
    has_policies, here = any(t.method.trains_model for t in trials), core_count()
    if has_policies and "RAY_ADDRESS" not in os.environ:
        _check_enough_devices(workers_per_policy, here, local_gpu_count())
    searching = [trial for trial in trials if trial.method.searches]
    cores = (
        workers or here if searching else min(workers or here, len(trials))
    )  # the settings of one trial fill all cores
    with (
        session.without_ray_reports(),
        session.ray_session(store, max(cores, workers_per_policy) if has_policies else cores) as ray_storage,
    ):
        if searching:
            print_note(f"Ray Tune searches the settings of {len(searching)} trials")
            searches = Searches(searching, store, workers, trial_minutes)
            call_watched(lambda: searches.run(surroundings(store, plugins), ray_storage), searches.look)
        groups = plan_groups(trials, store, workers, per_method, workers_per_policy)
        watch = StoreWatch(store, [group.trials for group in groups], on_progress, on_group)
        print_note(
            f"Ray runs: {len(trials)} trials on {sum(g.workers for g in groups)} workers in {len(groups)} group{'s' if len(groups) > 1 else ''}"
        )
        work = _work_of_groups(groups, store, plugins, trial_minutes, ray_storage)
        errors: Sequence[object]
        try:
            errors = call_watched(
                lambda: _schedule_groups(work, watch, ray_storage),
                watch.look,
                lambda nodes: _shortage([group for group in groups if watch.is_pending(group.trials)], nodes),
            )
        except RayLostError as lost:
            errors = [lost]
    for error in errors:
        log.error("a group of trials ended early: %s", error)
        mistake = session.user_error_within(error)
        if mistake and not isinstance(mistake, (GroupEndedError, RayLostError)):
            raise mistake
    if watch.pending and errors:
        raise _early_end(len(watch.pending), errors)


def _early_end(count: int, errors: Sequence[object]) -> UserError:
    """Return the error that says how many trials did not run, and why."""
    known = [session.user_error_within(error) for error in errors]
    why = dict.fromkeys(m.message if m else cause_in_words(e) for m, e in zip(known, errors, strict=True))
    hints = [m.hint for m in known if m] or ["repeat the command, which runs them; what is finished is kept"]
    return UserError(f"{count} trials did not run: {'; '.join(why)}", hints[0])


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


def _work_of_groups(
    groups: list[Group], store: Store, plugins: Sequence[str | Path], trial_minutes: float, ray_storage: str
) -> list[dict]:
    """Return what each group's processes have to know, as plain values that can be sent to them.

    ray_storage: the folder for the files of Tune and Train, and for marks.
    """
    return [
        surroundings(store, plugins)
        | {
            "log": current_run_name(),
            "ray_storage": ray_storage,
            "marks": f"{ray_storage}/marks/{number}",
            "trial_minutes": trial_minutes,
            "trials": [trial_as_dict(t) for t in group.trials],
            "seconds": group.seconds,
            "workers": group.workers,
            "in_team": group.in_team,
            "gpu": group.gpu,
        }
        for number, group in enumerate(groups)
    ]


def _schedule_groups(work: list[dict], watch: StoreWatch, ray_storage: str) -> Sequence[object]:
    """Schedule the groups by Ray Tune; return the errors, or their texts, of groups that ended with one."""
    # Control processes stay on the head node and do little work, so they reserve no core.
    runnable = ray.tune.with_resources(
        ray.tune.with_parameters(_run_group, work=work), {"node:__internal_head__": 0.001}
    )
    tuner = ray.tune.Tuner(
        runnable,
        param_space={"group": ray.tune.grid_search(list(range(len(work))))},
        run_config=ray.tune.RunConfig(storage_path=ray_storage, verbose=0, callbacks=[_GroupReporter(watch)]),
    )
    try:
        return cast(Sequence[object], tuner.fit().errors)
    except Exception as error:  # for example where Ray killed Tune's actor for a full memory, before it could say so
        log.exception("Ray Tune failed")
        return [error]


def _shortage(groups: list[Group], nodes: list[dict]) -> str:
    """Return what the nodes lack for any of the groups to run, or "" where one can."""
    lacking = ""
    for group in groups:
        kind, what = ("GPU", "GPUs") if group.gpu else ("CPU", "cores")
        there = sum(node["Resources"].get(kind, 0) for node in nodes)
        if group.workers <= there:
            return ""
        lacking = f"{group.workers} workers need {group.workers} {what}, and the cluster has {there:g}"
    return lacking


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
    group, backend = work[config["group"]], None
    # read by Train's controller, which takes a worker for dead after that time without an answer
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(60 * group["trial_minutes"] + HEALTH_SECONDS)
    if group["in_team"]:
        from ray.train.torch import TorchConfig  # makes the trainer below a TorchTrainer

        backend = TorchConfig(timeout_s=TEAM_TIMEOUT_SECONDS, backend="nccl" if group["gpu"] else "gloo")
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
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the callback ends the group
            callbacks=cast(Any, [DeathCounter(group)]),  # RunConfig's type hint omits UserCallback
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
    rank, marks = context.get_world_rank(), GroupMarks(group["marks"])
    mine = list(range(len(group["trials"])))
    if not group["in_team"]:
        mine = balanced_shares(group["seconds"], context.get_world_size())[rank]
    trials = [trial_from_dict(group["trials"][i]) for i in mine]
    turns = [parallel.first_workers_value(_turn_of_trial(store, trial, marks)) for trial in trials]

    def marked(trial: Trial) -> AbstractContextManager[None]:
        return marks.running(rank, trial.key, group["trial_minutes"])

    for now in (FIRST, LAST):
        for _ in finish_trials([t for t, turn in zip(trials, turns, strict=True) if turn == now], store, marked):
            pass


DONE, FIRST, LAST = range(3)


def _turn_of_trial(store: Store, trial: Trial, marks: GroupMarks) -> int:
    """Return when the trial runs: DONE (finished or failed), FIRST or LAST.

    A trial that was running when a worker died comes last, so that it cannot keep others from running.
    """
    if store.read_manifest("trials", trial.key) or store.read_failure(trial.key):
        return DONE
    return LAST if marks.deaths(trial.key) else FIRST


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


class _GroupReporter(QuietReporter):
    """A callback in Tune's thread that says which groups have ended."""

    def __init__(self, watch: StoreWatch) -> None:
        self.watch = watch

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.watch.ended.put((trial.config["group"], True))

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self.watch.ended.put((trial.config["group"], False))

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks, but queues hold locks, which cannot be pickled
