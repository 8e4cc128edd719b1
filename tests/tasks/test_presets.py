"""Every preset reads a small file of its real schema, without a network, and its judgements are the file's."""

import json
import zlib

import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.api import run_suite
from harness.check.contract import check_tasks_of_suite
from harness.errors import UserError
from harness.store.store import Store
from harness.trials.prepare import prepare_task
from tests.test_documents import call

WORDS = ["sure", "maybe", "certainly", "hm", "absolutely", "well", "of", "course", "no", "idea", "rain", "sun", "wind"]


def judgements(people=10, each=12, seed=0):
    """Yield (person, prompt, better, worse): half of the people like long answers, the others short ones."""
    rng = np.random.default_rng(seed)
    for person in range(people):
        for number in range(each):
            sizes = sorted(rng.choice(range(2, 15), 2, replace=False))
            short, long = (" ".join(rng.choice(WORDS, n)) for n in sizes)
            better, worse = (long, short) if person % 2 else (short, long)
            yield f"w{person:02d}", f"Will it rain on day {number} of person {person}?", better, worse


def message(role, content):
    return {"role": role, "content": content}


def flip(place):
    """Return whether the better answer comes first: sides alternate."""
    return place % 2 == 0


def trl(rows):
    return [{"user": u, "prompt": p, "chosen": a, "rejected": b} for u, p, a, b in rows]


def multipref(rows):
    found = []
    for i, (u, p, a, b) in enumerate(rows):
        judged = {
            "evaluator": u,
            "overall_pref": ("A" if flip(i) else "B") + ("-is-clearly-better" if i % 3 else "-is-slightly-better"),
            "time_spent": 10 + i % 7,
        }
        sides = {"completion_a": a if flip(i) else b, "completion_b": b if flip(i) else a}
        tied = judged | {"overall_pref": "Tie"}
        found.append(
            {"comparison_id": i, "text": p, "normal_worker_annotations": [judged], "expert_worker_annotations": [tied]}
            | sides
        )
    return found


def community_alignment(rows):
    rows, found = list(rows), []
    for i in range(0, len(rows), 2):
        (u, p, a, b), (_, p2, a2, b2) = rows[i : i + 2]
        row = {"conversation_id": i, "annotator_id": u, "assigned_lang": "en", "annotator_country": "in"}
        for turn, prompt, best, other in (("first", p, a, b), ("second", p2, a2, b2)):
            answers = [best, other, other + " and", other + " or"]
            row |= {f"{turn}_turn_prompt": prompt, f"{turn}_turn_preferred_response": "response_c"}
            row |= {f"{turn}_turn_response_{c}": answers[(j + 2) % 4] for j, c in enumerate("abcd")}
        for turn in ("third", "fourth"):
            row |= {f"{turn}_turn_prompt": None, f"{turn}_turn_preferred_response": None}
            row |= {f"{turn}_turn_response_{c}": None for c in "abcd"}
        found.append(row)
    return [*found, found[0] | {"assigned_lang": "fr", "annotator_id": "other"}]


def personal_reward_bench(rows):
    return [
        {
            "user_id": u,
            "split": ("train", "train", "val", "test")[i % 4],
            "context": [message("system", "Be kind."), message("user", p)],
            "chosen": message("assistant", a),
            "rejected": message("assistant", b),
        }
        for i, (u, p, a, b) in enumerate(rows)
    ]


def collective_alignment(rows):
    found = []
    for i, (u, p, a, b) in enumerate(rows):
        answers = [a, b, b + " and", a + " too"]
        judged = {
            "annotator_id": u,
            "ranking_blocks": {
                "personal": [{"ranking": "A>B=C", "rationale": "so"}],
                "world": [{"ranking": "B>A", "rationale": "so"}],
            },
        }
        found.append(
            {
                "prompt_id": i,
                "prompt": {"messages": [message("user", p)]},
                "responses": [
                    {"response_index": x, "messages": [message("assistant", t)]}
                    for x, t in zip("ABCD", answers, strict=True)
                ],
                "metadata": {"assessments": [judged]},
            }
        )
    return found


def tldr(rows):
    return [
        {
            "info": {"post": p if i else None, "id": str(i)},
            "summaries": [{"text": t, "policy": "x"} for t in ((a, b) if flip(i) else (b, a))],
            "choice": 0 if flip(i) else 1,
            "worker": u,
        }
        for i, (u, p, a, b) in enumerate(rows)
    ]


def arena(rows):
    found = []
    for i, (u, p, a, b) in enumerate(rows):
        sides = (a, b) if flip(i) else (b, a)
        told = [[message("user", p), message("assistant", t)] for t in sides]
        winner = "tie (bothbad)" if i == 0 else "model_a" if flip(i) else "model_b"
        found.append({"judge_hash": u, "winner": winner, "conversation_a": told[0], "conversation_b": told[1]})
    return found


def pluralistic_ultrafeedback(rows):
    return [
        {"attributes": "helpfulness" if int(u[1:]) % 2 else "honesty", "prompt": p, "chosen": a, "rejected": b}
        for u, p, a, b in rows
    ]


def hh_rlhf(rows):
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: {}\n\nAssistant: {}"
    return [{"chosen": start.format(p, a), "rejected": start.format(p, b)} for _, p, a, b in rows]


def personal_llm(rows):
    """Every model scores every prompt's eight answers in an arbitrary way of its own."""
    from tasks.presets.personal_llm import REWARD_MODELS

    found = []
    for _, p, a, b in rows:
        answers = [f"{b} {word}" for word in WORDS[:6]] + [b, a]
        row = {"prompt": p} | {f"response_{j + 1}": text for j, text in enumerate(answers)}
        for model in REWARD_MODELS:
            row |= {
                f"response_{j + 1}_{model}": zlib.crc32(f"{model}{text}".encode()) / 1e9
                for j, text in enumerate(answers)
            }
        found.append(row)
    return found


FILES = {
    "trl": trl,
    "multipref": multipref,
    "community_alignment": community_alignment,
    "personal_reward_bench": personal_reward_bench,
    "personal_reward_bench_arena": personal_reward_bench,
    "collective_alignment": collective_alignment,
    "tldr": tldr,
    "arena": arena,
    "pluralistic_ultrafeedback": pluralistic_ultrafeedback,
    "hh_rlhf": hh_rlhf,
    "personal_llm": personal_llm,
}
PEOPLE = {"pluralistic_ultrafeedback": 60, "hh_rlhf": 40}  # who are dealt rows need many of them


def small_file(name, folder, suffix="jsonl"):
    rows = FILES[name](judgements(PEOPLE.get(name, 10)))
    path = folder / f"{name}.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FILES)
def test_a_preset_reads_its_real_schema(name, suffix, tmp_path):
    task = registry.make_instance("task", name, {"file": str(small_file(name, tmp_path, suffix)), "shots": [0, 3]})
    table, _ = task.judgements(task.read())
    wanted = {(p, a, b) for _, p, a, b in judgements(PEOPLE.get(name, 10))}
    found = {
        (next(x for x in prompt.split("\n\n")[::-1] if "rain" in x).split(": ")[-1], a, b)
        for prompt, a, b in table.select("prompt", "chosen", "rejected").iter_rows()
    }
    assert found & wanted and len(found & wanted) >= len(wanted) - 1
    facts = prepare_task(Store(tmp_path / "store").open(), task, 0)["facts"]
    assert facts["users"]["test/context"] >= 2 and facts["has_text"]


def test_a_column_that_a_preset_expects_and_the_file_lacks_is_named(tmp_path):
    """Also where `choices` would go on without it: an unknown prompt is not an empty one."""
    file = tmp_path / "other.jsonl"
    rows = personal_reward_bench(judgements())
    file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "context"}) for row in rows))
    task = registry.make_instance("task", "personal_reward_bench", {"file": str(file)})
    with pytest.raises(UserError, match="there is no column context"):
        task.build(0)


@pytest.mark.parametrize("name", FILES)
def test_a_preset_goes_the_whole_way(name, tmp_path, monkeypatch, capsys):
    """Describe, check, run and board, without a network: form is one row of the board."""
    file = small_file(name, tmp_path)
    told = json.loads(call(f"manyminds describe {file} --task {name} --json", monkeypatch, capsys))
    assert told[0]["problem"] is None and told[0]["numbers"]["people"] >= 9
    suite = tmp_path / "preset.toml"
    suite.write_text(
        f'seeds = 3\n[[tasks]]\nname = "{name}"\nfile = "{file}"\nshots = [0, 3]\nencoder = "hashing-16"\n'
        '[[methods]]\nname = "lore"\n'
    )
    found = {check.what.partition(": ")[2]: check for check in check_tasks_of_suite(suite, Store(tmp_path / "none"))}
    problems = {what for what, check in found.items() if check.problem}
    # the toy texts of one person share most words, and the people of this file judge length, which is form
    assert problems <= {"no query nearly repeats a pair that its user was shown"}
    assert found["the form of responses does not tell which wins"].detail.startswith("form alone predicts")
    (task,) = run_suite(suite, tmp_path / "store").board.tasks
    rows = {row.method.name: row for row in task.rows}
    assert {"surface", "shared", "per_user", "lore"} <= set(rows) and all(row.curves for row in rows.values())
    licence = registry.load_class("task", name).licence
    assert any(licence in flag for flag in task.flags) if licence else True
    assert registry.licence_of(name) == licence
