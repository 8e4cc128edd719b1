"""The likelihood contrast: a bag of words gives its closed form, a person's taste is read, and nothing is asked twice."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harness import registry
from harness.api import run_suite
from harness.data import PreferenceDataset
from harness.inference.jobs import make_in_process
from harness.inference.likelihood import asked_likelihoods
from harness.method import Run
from harness.methods.likelihood import Likelihood
from harness.models.small import build_small_model
from harness.store.store import Store
from harness.trials.choose import candidate_counts, choose_candidates
from harness.trials.outputs import score_queries
from tests.tasks.test_choices import table

WORDS = ["red", "green", "blue", "sea", "sky", "hill"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    build_small_model(folder, steps=0)
    return f"transformers:{folder}"


def people(n=4, each=9, prompts=1, seed=0):
    """Data of people who choose texts of random words."""
    rng = np.random.default_rng(seed)
    rows = {"user": [], "prompt": [], "chosen": [], "rejected": []}
    for user in range(n):
        for k in range(each):
            texts = [" ".join(rng.choice(WORDS, 3)) + f" {user}.{k}.{side}" for side in "ab"]
            for name, value in zip(rows, (user, f"Prompt {k % prompts}", *texts), strict=True):
                rows[name].append(value)
    return PreferenceDataset.from_choices(rows)


def bag_of_words(asked):
    """Return log p(text | beginning) of a unigram model with one count added to each of 1,000 words."""
    found = []
    for beginning, text in zip(asked.beginnings, asked.texts, strict=True):
        seen = Counter(beginning.split())
        found.append(sum(np.log((seen[word] + 1) / (seen.total() + 1000)) for word in text.split()))
    return np.array(found)


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_bag_of_words_gives_its_closed_form(model, prompts):
    """Log p(x | chosen) - log p(x | rejected) is the sum over words of log (n_chosen + 1) / (n_rejected + 1)."""
    data, method = people(prompts=prompts), Likelihood(model=model)
    pairs = data.pairs
    context, query = pairs.first(6), pairs.take(pairs.rank >= 6)
    users = method.adapt({}, context, Run(0))
    found = score_queries(method, method, {}, users, query.without_labels(), bag_of_words)
    text = pairs.items.known_text.to_pylist()
    for row in range(len(query)):
        mine = context.of([int(query.user[row])])
        liked, disliked = Counter(), Counter()
        for a, b, label in zip(mine.left, mine.right, mine.label, strict=True):
            for counts, item in ((liked, a if label else b), (disliked, b if label else a)):
                counts.update(text[item]["response"].split())

        def contrast(item, liked=liked, disliked=disliked):
            return sum(np.log((liked[w] + 1) / (disliked[w] + 1)) for w in text[item]["response"].split())

        wanted = contrast(query.left[row]) - contrast(query.right[row])
        assert found[row] == pytest.approx(wanted, abs=1e-5)
    assert np.abs(found).max() > 0.5


def test_the_candidate_with_the_largest_contrast_is_chosen(model):
    """Among the first 1, 2, 4 and 5 candidates of each prompt; each candidate is asked about once a person and list."""
    data, method = people(n=3, each=20), Likelihood(model=model)
    pairs, calls = data.pairs, []
    context, query = pairs.first(6), pairs.take(pairs.rank >= 6)
    users = method.adapt({}, context, Run(0))
    choices = np.random.default_rng(0).permutation(len(pairs.items))[:20].reshape(4, 5).astype(np.int32)

    def answer(asked):
        calls.append(len(asked.texts))
        return bag_of_words(asked)

    found = choose_candidates(method, method, {}, users, query.without_labels(), choices, answer)
    assert calls == [3 * 20 * 2]
    user, item = np.divmod(np.arange(60), 20)
    item = choices.ravel()[item]
    versus = choices[0, 0]  # a common rival for all: the contrast minus a constant of the person
    label = np.full(60, np.nan, dtype=np.float32)
    all_pairs = replace(query, user=user.astype(np.int32), left=item, right=np.full(60, versus), label=label)
    worth = score_queries(method, method, {}, users, all_pairs, bag_of_words).reshape(3, 4, 5)
    for place, n in enumerate(candidate_counts(5)):
        chosen = np.take_along_axis(worth, found[..., place, None].astype(int), axis=2)[..., 0]
        np.testing.assert_allclose(chosen, worth[..., :n].max(2), atol=1e-5)
    assert len(np.unique(found[..., -1])) > 2


def test_what_a_person_is_shown_matters_but_neither_its_order_nor_its_sides_do(model):
    data, method = people(), Likelihood(model=model, max_examples=4)
    pairs = data.pairs
    context, query = pairs.first(6), pairs.take(pairs.rank >= 6)
    asked = method.questions({}, method.adapt({}, context, Run(0)), query)
    order = np.lexsort((-context.rank, context.user))
    again = method.questions({}, method.adapt({}, context.take(order).swapped(), Run(0)), query.swapped())
    assert (list(asked.beginnings), list(asked.texts)) == (list(again.beginnings), list(again.texts))
    nothing = method.questions({}, method.adapt({}, context.first(0), Run(0)), query)
    assert set(nothing.beginnings) == {""}
    assert max(beginning.count("\n") for beginning in asked.beginnings) == 4
    zero = score_queries(method, method, {}, method.adapt({}, context.first(0), Run(0)), query, bag_of_words)
    assert (zero == 0).all()


def test_prompts_stand_before_responses_where_they_differ(model):
    data, method = people(prompts=3), Likelihood(model=model)
    pairs = data.pairs
    asked = method.questions({}, method.adapt({}, pairs.first(5), Run(0)), pairs.take(pairs.rank >= 5))
    assert asked.leads[0].startswith("Question: Prompt ") and asked.leads[0].endswith("\nAnswer:")
    assert asked.beginnings[0].startswith("Question: Prompt ") and asked.texts[0].startswith(" ")
    assert not any(text.strip() in asked.beginnings[0] for text in asked.texts[:1])


def make(rows, store):
    job = rows.make_job(lambda: [rows.missing()])
    make_in_process(job.cached_rows(store), job.recipe, job.batches())


def test_likelihoods_are_made_once_and_errors_are_kept(model, tmp_path):
    store = Store(tmp_path / "store").open()
    parts = ["a b\n", "a b\n", ""], ["", "", "Q:"], ["one", "two", " three"]
    rows = asked_likelihoods(model, *parts, store)
    assert len(rows.missing()) == 3
    make(rows, store)
    found = rows.stored()
    assert np.isfinite(found).all() and (found < 0).all()
    again = asked_likelihoods(model, *(part[::-1] for part in parts), store)
    np.testing.assert_array_equal(again.stored(), found[::-1])
    empty = asked_likelihoods(model, ["a"], [""], [""], store)
    make(empty, store)
    assert np.isnan(empty.known()).all() and len(empty.missing()) == 0


def test_a_suite_with_the_method_runs_twice_and_asks_once(model, tmp_path, monkeypatch):
    table(10).write_csv(tmp_path / "choices.csv")
    (tmp_path / "s.toml").write_text(
        f'seeds = 3\n[[tasks]]\nname = "choices"\nfile = "{tmp_path}/choices.csv"\nshots = [0, 3]\nencoder = "hashing-16"\n'
        f'[[methods]]\nname = "likelihood"\nmodel = "{model}"\n'
    )
    run = run_suite(tmp_path / "s.toml", tmp_path / "store")
    row = next(row for row in run.board.tasks[0].rows if row.method.name == "likelihood")
    assert row.curves["accuracy"][0].value == 0.5  # nothing shown, nothing read
    assert registry.load_class("method", "likelihood") is Likelihood
