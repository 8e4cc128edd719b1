"""Preparation of tasks: nothing stale, nothing that leaks, and what cannot be judged is refused or counted."""

import re
import warnings
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from harness import registry
from harness.board.make import make_board
from harness.data import Items, Panel, PreferenceDataset, SplitLeakError, Splits
from harness.errors import UserError
from harness.store.prepared import person_numbers
from harness.store.store import Store
from harness.task import Task
from harness.trials.code_used import code_digest, is_unchanged, used_files
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.prepare import MAX_EQUAL_OPTIONS, prepare_task
from harness.trials.suite import Suite
from tests.check.test_contract import broken


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


READS = '''"""A task that reads a file, and does not say so."""
from dataclasses import dataclass
import numpy as np
from harness.data import Items, PreferenceDataset
from harness.task import Task
from helper import doubled

@dataclass(frozen=True)
class Reads(Task):
    shots: tuple[int, ...] = (0, 5)
    queries: int = 5

    def build(self, seed):
        label = doubled(np.loadtxt("labels.txt")) / 2
        rows = np.arange(len(label))
        features = np.random.default_rng(0).normal(size=(2 * len(label), 2))
        return PreferenceDataset.from_pairs(rows // 20, 2 * rows, 2 * rows + 1, label, Items(features))
'''


def test_a_changed_file_is_another_task(store, tmp_path, monkeypatch):
    """A task that names no files is built again: what it reads, or a module beside it, may have changed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("def doubled(x):\n    return 2 * x\n")
    (tmp_path / "reads.py").write_text(READS)
    registry.add_plugins([tmp_path / "reads.py"])
    task, rng = registry.make_instance("task", "reads", {}), np.random.default_rng(0)
    np.savetxt("labels.txt", rng.integers(2, size=200))
    first = prepare_task(store, task, 0)
    assert prepare_task(store, task, 0)["key"] == first["key"] and len(store.committed_keys("tasks")) == 1
    np.savetxt("labels.txt", rng.integers(2, size=200))
    second = prepare_task(store, task, 0)
    assert second["key"] != first["key"] and second["facts"]["data"] != first["facts"]["data"]


def test_code_counts_with_what_it_imports_and_without_comments(tmp_path):
    """A change in a module beside a plug-in, or in the project's shared code, is one; comments and blank lines are none."""
    (tmp_path / "helper.py").write_text('"""Doubles."""\n\n\ndef doubled(x):\n    return 2 * x\n')
    (tmp_path / "reads.py").write_text(READS)
    registry.add_plugins([tmp_path / "reads.py"])
    cls = registry.load_class("task", "reads")
    before = code_digest(cls)
    assert is_unchanged(before, cls)
    (tmp_path / "helper.py").write_text(
        '"""Doubles every number."""\ndef doubled(x):  # not three times\n    return (2 * x)\n'
    )
    (tmp_path / "reads.py").write_text(
        READS.replace("        rows =", "        # one row for each label\n        rows =")
    )
    assert is_unchanged(before, cls)
    (tmp_path / "helper.py").write_text("def doubled(x):\n    return 3 * x\n")
    assert not is_unchanged(before, cls)
    names = {file.name for file in used_files(registry.load_class("method", "mixed_logit"))}
    assert {"mixed_logit.py", "linear.py", "priors.py"} <= names and "store.py" not in names


@dataclass(frozen=True)
class People(Task):
    """A task of fixed people; each seed draws other pairs of them."""

    shots: tuple[int, ...] = (0, 3)
    queries: int = 5
    equal: float = 0.0  # share of pairs whose options have equal features
    redrawn: bool = False  # whether every seed draws its pairs anew
    pairs: int = 12

    def build(self, seed):
        rng = np.random.default_rng(seed if self.redrawn else 0)
        user = np.repeat([f"p{i}" for i in range(20)], self.pairs)
        x = rng.normal(size=(2 * len(user), 2))
        twins = rng.random(len(user)) < self.equal
        x[1::2][twins] = x[::2][twins]
        rows = np.arange(len(user))
        return PreferenceDataset.from_pairs(user, 2 * rows, 2 * rows + 1, rng.integers(2, size=len(user)), Items(x))


def test_people_of_whom_a_seed_draws_other_pairs_are_the_same_people(store):
    """Under ten seeds, 20 people are 20 people, though every seed has its own data."""
    for task, people in (
        (People(redrawn=True), 20),
        (registry.make_instance("task", "low_rank", {"n_users": 20, "new_users": 10}), 100),
    ):
        suite = Suite("s", "s", tuple(range(10)), (task,), (registry.make_instance("method", "chance", {}),))
        assert make_plan(suite, store).people[task] == people
    manifests = [prepare_task(store, People(redrawn=True), seed) for seed in range(3)]
    assert len({manifest["facts"]["population"] for manifest in manifests}) == 3
    numbers = person_numbers(store, manifests)
    assert all(np.array_equal(one, np.arange(20)) for one in numbers)


def verdict(task, store, names=("shared", "per_user")):
    methods = tuple(registry.make_instance("method", name, {}) for name in names)
    plan = make_plan(Suite("s", "s", (0, 1, 2, 3, 4), (task,), methods), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    (found,) = make_board(plan, store).tasks
    return found


@pytest.mark.parametrize("equal", [1.0, 0.5, MAX_EQUAL_OPTIONS + 0.1])
def test_pairs_that_no_method_can_decide_are_no_evidence_about_people(store, equal):
    board = verdict(People(equal=equal), store)
    assert board.verdict.startswith("no verdict: both options have equal features in ")
    assert any("equal features" in flag for flag in board.flags)
    assert "features tell the two options of a pair apart" in broken_rules(People(equal=equal))


def test_few_equal_options_are_counted(store):
    board = verdict(People(equal=0.1, pairs=40), store)
    assert not board.verdict.startswith("no verdict") and any("equal features" in flag for flag in board.flags)
    assert not any("equal features" in flag for flag in verdict(People(), store).flags)


def broken_rules(task):
    from harness.check.tasks import task_checks

    return broken(task_checks(task))


@dataclass(frozen=True)
class OwnItems(People):
    """A task whose test panel numbers items of its own."""

    def split(self, data, seed):
        splits = super().split(data, seed)
        test = splits.panels["test"]
        items = Items(np.full_like(data.pairs.items.features, 999.9))
        moved = Panel(replace(test.context, items=items), replace(test.query, items=items))
        return Splits(splits.train, dict(splits.panels) | {"test": moved})


def test_a_panel_with_items_of_its_own_is_refused(store):
    with pytest.raises(UserError, match="items of their own"):
        prepare_task(store, OwnItems(), 0)
    assert "all parts of the split number the same items" in broken_rules(OwnItems())


WRITINGS = {
    "case": str.upper,
    "spaces": lambda text: f" {text.replace(' ', '  ')}\n",
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "Unicode form": lambda text: text.replace("é", "e\u0301"),
    "invisible": lambda text: text.replace("t", "t\u200b"),
    "full width": lambda text: text.replace("1", "\uff11"),
}


@dataclass(frozen=True)
class WrittenTwice(Task):
    """A task in which everybody's every choice stands twice, the second time written in another way."""

    shots: tuple[int, ...] = (0, 3)
    queries: int = 5
    writing: str = "case"
    blind: bool = False  # whether the split knows rows alone

    def build(self, seed):
        rng, rows = np.random.default_rng(0), []
        for user in range(20):
            for k in range(10):
                chosen, rejected = (f"caf\u00e9 tea {user} {k} {n} 1" for n in rng.permutation(2))
                other = WRITINGS[self.writing]
                rows += [(f"p{user}", "q", chosen, rejected), (f"p{user}", "q", other(chosen), other(rejected))]
        frame = pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected"], orient="row")
        return PreferenceDataset.from_choices(frame, lambda items: rng.normal(size=(len(items), 2)))

    def split(self, data, seed):
        splits = super().split(data, seed)
        if not self.blind:
            return splits
        test = splits.panels["test"].query.people
        pairs = data.pairs.of(test)
        return Splits(
            splits.train,
            dict(splits.panels) | {"test": Panel(pairs.take(pairs.rank % 2 == 0), pairs.take(pairs.rank % 2 == 1))},
        )


@pytest.mark.parametrize("writing", WRITINGS)
def test_the_same_choice_written_in_another_way_is_the_same(store, writing):
    """The harness's own split keeps both together; a split that parts them is a leak."""
    prepare_task(store, WrittenTwice(writing=writing), 0)
    with pytest.raises(SplitLeakError, match=r"query pairs are in their own user's context, for example person 'p\d+'"):
        prepare_task(store, WrittenTwice(writing=writing, blind=True), 0)


@dataclass(frozen=True)
class NearlyTwice(WrittenTwice):
    """A task in which every choice stands twice, the second time with another number in a long text."""

    def build(self, seed):
        rng, rows = np.random.default_rng(0), []
        words = np.array(
            [
                "sure",
                "here",
                "is",
                "the",
                "plan",
                "for",
                "your",
                "trip",
                "we",
                "start",
                "early",
                "and",
                "walk",
                "to",
                "the",
                "lake",
            ]
        )
        for user in range(20):
            for k in range(20):
                a, b = (" ".join(rng.choice(words, 30)) for _ in range(2))
                rows += [(f"p{user}", "q", f"{a} {k}", f"{b} {k}"), (f"p{user}", "q", f"{a} {k + 50}", f"{b} {k + 50}")]
        frame = pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected"], orient="row")
        return PreferenceDataset.from_choices(frame, lambda items: rng.normal(size=(len(items), 2)))


def test_near_duplicates_are_measured(store):
    """check says which share of queries nearly repeats what their user was shown; other texts are no repeats."""
    rule = "no query nearly repeats a pair that its user was shown"
    assert rule in broken_rules(NearlyTwice(blind=True)) and rule not in broken_rules(WrittenTwice())


def test_options_that_differ_in_case_alone_are_a_choice(store):
    rows = [(f"p{u}", f"q{k}", "yes", "YES") for u in range(20) for k in range(9)]
    frame = pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected"], orient="row")
    assert len(PreferenceDataset.from_choices(frame).pairs) == 180
    for other in ("yes\nplease", "yes please"), ("x\u00b2", "x2"):  # a line break and a raised figure can be seen
        options = frame.with_columns(chosen=pl.lit(other[0]), rejected=pl.lit(other[1]))
        assert len(PreferenceDataset.from_choices(options).pairs) == 180
    with pytest.raises(UserError, match=r"row 0 \(counting from 0\) has the same text in chosen and rejected"):
        PreferenceDataset.from_choices(frame.with_columns(rejected=pl.lit("yes ")))


@pytest.mark.parametrize(("pairs", "shots"), [(2, (0,)), (3, (0, 1)), (4, (0, 1, 2)), (5, (0, 4))])
def test_people_with_few_pairs_are_enough(store, pairs, shots):
    """A training person needs two pairs, a test person one more than the largest number of shots."""
    facts = prepare_task(store, People(pairs=pairs, shots=shots), 0)["facts"]
    assert facts["pairs"]["seen/query"] == facts["users"]["seen/context"]


def test_too_few_pairs_of_everybody_are_said(store):
    with pytest.raises(
        UserError, match="of 20 people, the others have too few different pairs for 3 to be shown and 1 to be asked"
    ) as caught:
        prepare_task(store, People(pairs=3, shots=(0, 3)), 0)
    assert "set shots to at most 2" in caught.value.hint
    prepare_task(store, People(pairs=3, shots=(0, 2)), 0)  # what the hint says works


def test_an_error_names_the_task_and_its_own_line(store, tmp_path):
    text = READS.replace("from helper import doubled\n", "").replace(
        'doubled(np.loadtxt("labels.txt")) / 2', 'np.loadtxt("gone.txt")'
    )
    (tmp_path / "reads.py").write_text(text)
    registry.add_plugins([tmp_path / "reads.py"])
    task, line = (
        registry.make_instance("task", "reads", {}),
        text.splitlines().index('        label = np.loadtxt("gone.txt")') + 1,
    )
    with pytest.raises(UserError, match=rf"task reads: build raised FileNotFoundError: .*\(reads.py:{line}\)"):
        prepare_task(store, task, 0)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_with_brackets_is_that_file(tmp_path, suffix):
    """A browser names the second download `choices[1].csv`; as a pattern that would be `choices1.csv`."""
    frame = pl.DataFrame(
        [(f"p{i // 2}", "q", f"a{i}", f"b{i}") for i in range(4)],
        ["user", "prompt", "chosen", "rejected"],
        orient="row",
    )
    writers = {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}
    writers[suffix](tmp_path / f"choices[1]{suffix}")
    (tmp_path / f"choices1{suffix}").write_text("another file")
    assert len(PreferenceDataset.from_choices(tmp_path / f"choices[1]{suffix}").pairs) == 4


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("user,prompt,chosen,rejected,chosen\na,q,x,y,z\na,q,u,v,w\n")
    with pytest.raises(UserError, match=r"twice.csv: two columns are named chosen"):
        PreferenceDataset.from_choices(tmp_path / "twice.csv")


ODD = '''"""A method that does something odd."""
from dataclasses import dataclass
import sys
import warnings
import numpy as np
import torch
from harness.methods.per_user import PerUser

@dataclass(frozen=True)
class Odd(PerUser):
    def fit(self, train, validation, run):
        state = super().fit(train, validation, run)
        {}
        return state

    def score(self, state, users, query):
        z = super().score(state, users, query)
        return torch.stack([z, -z], 1)[:, 0]
'''


def odd_plan(tmp_path, store, line, others=("lore", "shared")):
    (tmp_path / "odd.py").write_text(ODD.format(line))
    registry.add_plugins([tmp_path / "odd.py"])
    methods = tuple(registry.make_instance("method", name, {}) for name in ("odd", *others))
    return make_plan(Suite("s", "s", (0,), (People(pairs=20),), methods), store)


def test_stored_predictions_are_the_values_and_not_the_memory(store, tmp_path):
    """One column of two is a view; what is stored of it scores as the board says."""
    from harness.scores.metrics import score_table
    from harness.store.prepared import open_prepared_task

    (trial,) = odd_plan(tmp_path, store, "", others=()).trials
    assert all(good for _, good in finish_trials([trial], store))
    manifest = store.read_manifest("trials", trial.key)
    predictions = safetensors.numpy.load(store.read_verified(manifest, "predictions.safetensors"))
    again = score_table(predictions, open_prepared_task(store, trial.task_key).splits, None)
    assert pl.DataFrame(again).equals(pl.read_ipc(store.read_verified(manifest, "scores.arrow")))


@pytest.mark.parametrize(
    "line",
    [
        "torch.set_default_dtype(torch.float64)",
        "torch.set_grad_enabled(False)",
        "torch.use_deterministic_algorithms(True)",
        "np.seterr(all='raise')",
        "warnings.simplefilter('error')",
    ],
)
def test_a_method_that_changes_settings_for_all_changes_no_other(store, tmp_path, line):
    plan, alone = odd_plan(tmp_path, store, line), Store(tmp_path / "alone").open()
    before = np.geterr(), list(warnings.filters)
    list(finish_trials(plan.trials, store))
    assert (np.geterr(), list(warnings.filters)) == before
    clean = odd_plan(tmp_path, alone, "")
    list(finish_trials(clean.trials, alone))
    for trial in plan.trials:
        if trial.method.name != "odd":
            assert (
                store.read_manifest("trials", trial.key)["files"] == alone.read_manifest("trials", trial.key)["files"]
            )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sys.exit()", "SystemExit"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()", "its message cannot be shown"),
        ("state['spectrum'] = torch.zeros(2, dtype=torch.complex128)", "complex"),
    ],
)
def test_a_method_that_ends_the_process_or_cannot_be_stored_fails_alone(store, tmp_path, line, said):
    plan = odd_plan(tmp_path, store, line)
    assert [good for _, good in finish_trials(plan.trials, store)].count(False) == 1
    (failed,) = [t for t in plan.trials if store.read_failure(t.key)]
    assert failed.method.name == "odd" and said in store.read_failure(failed.key)["reason"]


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("def fit(self, *_): return None", "odd.fit returned NoneType, not a dict of tensors"),
        (
            "def fit(self, *_): return {'w': np.ones(3)}",
            r"odd.fit returned dict of ndarray\[3\], not a dict of tensors",
        ),
        (
            "def adapt(self, state, context, run): return torch.zeros(context.n_users, 2)",
            r"odd.adapt returned Tensor\[\d+, 2\], not a tuple of tensors with \d+ rows",
        ),
        ("def adapt(self, *_): return (torch.zeros(3),)", r"odd.adapt returned tuple of Tensor\[3\]"),
        ("def adapt(self, *_): return None", "odd.adapt returned NoneType"),
        ("def score(self, state, users, query): return np.zeros(len(query))", r"odd.score returned ndarray\[\d+\]"),
        ("def score(self, state, users, query): return None", "odd.score returned NoneType"),
    ],
)
def test_what_a_method_returns_of_a_wrong_type_is_named_with_its_hook(store, tmp_path, hook, said):
    text = ODD[: ODD.index("    def fit")] + f"    {hook}\n"
    (tmp_path / "odd.py").write_text(text)
    registry.add_plugins([tmp_path / "odd.py"])
    plan = make_plan(Suite("s", "s", (0,), (People(pairs=20),), (registry.make_instance("method", "odd", {}),)), store)
    assert not any(good for _, good in finish_trials(plan.trials, store))
    assert re.match(f"TypeError: {said}", store.read_failure(plan.trials[0].key)["reason"])


@pytest.mark.parametrize(("left", "flagged"), [(1.0, True), (0.7, True), (0.5, False)])
def test_a_task_whose_left_option_wins_is_flagged_on_its_board(store, tmp_path, left, flagged):
    """The sides of a fair task are turned, so that left wins so often."""
    (tmp_path / "sided.py").write_text(
        '''"""A task whose left option wins too often."""
from dataclasses import dataclass, replace
import numpy as np
from tasks.low_rank import LowRank

@dataclass(frozen=True)
class Sided(LowRank):
    left: float = 1.0

    def build(self, seed):
        data = super().build(seed)
        pairs, draw = data.pairs, np.random.default_rng(seed).random(len(data.pairs))
        wins = (draw < self.left) == (pairs.label > 0.5)
        turned = pairs.swapped()
        both = {name: np.where(wins, getattr(pairs, name), getattr(turned, name)) for name in ("left", "right", "label")}
        return replace(data, pairs=replace(pairs, **both))
'''
    )
    registry.add_plugins([tmp_path / "sided.py"])
    task = registry.make_instance(
        "task", "sided", {"left": left, "n_users": 30, "new_users": 20, "pairs_per_user": 40, "shots": [0, 5]}
    )
    shared = registry.make_instance("method", "shared", {})
    plan = make_plan(Suite("s", "s", (0, 1), (task,), (shared,)), store)
    list(finish_trials(plan.trials, store))
    flags = " ".join(make_board(plan, store).tasks[0].flags)
    assert ("the left option wins in" in flags) == flagged


@pytest.mark.parametrize("line", ["users and query.user.fill(0)", "query.left.sort()"])
def test_a_method_that_writes_into_its_questions_fails_by_name(store, tmp_path, line):
    """Otherwise its answers, and then the board, would be about other questions."""
    text = ODD[: ODD.index("    def fit")] + f"    def score(self, state, users, query):\n        {line}\n"
    (tmp_path / "odd.py").write_text(text + "        return super().score(state, users, query)\n")
    registry.add_plugins([tmp_path / "odd.py"])
    methods = tuple(registry.make_instance("method", name, {}) for name in ("odd", "shared"))
    plan = make_plan(Suite("s", "s", (0,), (People(pairs=20),), methods), store)
    assert [good for _, good in finish_trials(plan.trials, store)].count(False) == 1
    assert "odd wrote into the pairs" in store.read_failure(plan.trials[0].key)["reason"]
    make_board(plan, store)


@dataclass(frozen=True)
class Odds(Task):
    """People whose data are odd in the way that `how` says."""

    shots: tuple[int, ...] = (0, 5)
    queries: int = 5
    how: str = ""

    def build(self, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(40, 2)) * (1e-42 if self.how == "tiny" else 1)
        x = np.ones_like(x) if self.how == "equal" else x
        left = rng.integers(40, size=600)
        right = (left + rng.integers(1, 40, 600)) % 40
        label = np.full(600, 0.5) if self.how == "ties" else (rng.random(600) < 0.5).astype(float)
        items = Items(x, columns_share_unit=True)
        return PreferenceDataset.from_pairs(np.repeat(np.arange(20), 30), left, right, label, items)

    def split(self, data, seed):
        splits = super().split(data, seed)
        if self.how == "no test":
            return Splits(splits.train, {n: p for n, p in splits.panels.items() if n != "test"})
        if self.how == "no training":
            return Splits(splits.train.take(np.zeros(len(splits.train), bool)), splits.panels)
        return splits


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("equal", "all items have the same features"),
        ("tiny", "the square of that is 0 in single precision"),
        ("no test", "the split has no queries in a panel 'test'"),
        ("no training", "the split has no training pairs"),
    ],
)
def test_data_that_no_method_can_use_are_refused(store, how, says):
    with pytest.raises(UserError, match=says):
        prepare_task(store, Odds(how=how), 0)


def test_ties_alone_give_no_verdict(store):
    methods = tuple(registry.make_instance("method", name, {}) for name in ("shared", "per_user"))
    plan = make_plan(Suite("s", "s", (0, 1, 2), (Odds(how="ties"),), methods), store)
    list(finish_trials(plan.trials, store))
    (task,) = make_board(plan, store).tasks
    assert task.verdict.startswith("no verdict: 100% of the test labels are ties")
    assert any("of the test labels are ties" in flag for flag in task.flags)


def test_a_task_that_builds_other_data_each_time_is_flagged(store, monkeypatch):
    """As a split by the order of a set of texts, which differs between processes."""
    methods = (registry.make_instance("method", "shared", {}),)
    build = Odds.build
    for time, flagged in ((0, False), (1, True)):
        monkeypatch.setattr(Odds, "build", lambda self, seed, time=time: build(self, seed + time))
        plan = make_plan(Suite("s", "s", (0,), (Odds(),), methods), store)
        (task,) = make_board(plan, store).tasks
        assert any("has built other data before (1 time)" in flag for flag in task.flags) == flagged


@pytest.mark.parametrize(
    ("refuses", "says"),
    [
        (lambda self, task: True, "odd.refuses returned True"),
        (lambda self, task: 1 / 0, "odd.refuses raised ZeroDivisionError"),
    ],
)
def test_a_method_that_cannot_say_why_it_refuses_is_named(store, tmp_path, refuses, says):
    (tmp_path / "odd.py").write_text(ODD.format(""))
    registry.add_plugins([tmp_path / "odd.py"])
    odd = registry.make_instance("method", "odd", {})
    type(odd).refuses = refuses
    with pytest.raises(UserError, match=says):
        make_plan(Suite("s", "s", (0,), (People(pairs=20),), (odd,)), store)
