"""Models behind an OpenAI-compatible server, tried on one that misbehaves in every way, and never asked twice."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from harness.errors import UnavailableError, UserError
from harness.inference.answer import answer_job, parse_judge, question_table, stored_log_odds
from harness.inference.encode import parse_encoder
from harness.inference.generate import generate_job, generator_inputs, stored_candidates
from harness.inference.jobs import NotCachedError, make_in_process
from harness.inference.likelihood import asked_likelihoods, canonical_reader
from harness.methods.likelihood import Likelihood
from harness.models import on_endpoint
from harness.models.on_endpoint import KEY_VARIABLE, log_odds_of_choice, log_odds_of_votes
from harness.store.store import Store

KEY = "sk-very-secret"
AB = ("A", "B")


class Server:
    """A small server on loopback whose answers come from `reply(request, number of the request)`."""

    def __init__(self, reply):
        self.reply, self.requests, self.keys, self.lock = reply, [], [], threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._write(200, "{}")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                status, text, *headers = server.reply(body, number)
                self._write(status, text, dict(headers))

            def _write(self, status, text, headers=None):
                data = text.encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.name = f"openai:judge-1?base_url=http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(on_endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    made = []

    def start(reply):
        made.append(Server(reply))
        return made[-1]

    yield start
    for server in made:
        server.http.shutdown()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


def completion(*texts, top=None, **more):
    """Return the body of a chat completion."""
    logprobs = {"content": [{"top_logprobs": top}]} if top else None
    choices = [{"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs} for text in texts]
    return json.dumps({"model": "judge-1-0613", "system_fingerprint": "fp_7", "choices": choices} | more)


def told(**p):
    return [{"token": token, "logprob": float(np.log(value))} for token, value in p.items()]


def run(job, store):
    return make_in_process(job.cached_rows(store), job.recipe, job.batches())


def ask(server, store, prompts, systems=None):
    systems = systems or [None] * len(prompts)
    return run(answer_job(server.name, AB, lambda: [question_table(systems, prompts)], store), store)


def test_probabilities_become_log_odds_and_a_second_run_asks_nothing(serve, store):
    server = serve(lambda body, n: (200, completion("A", top=told(A=0.6, B=0.3, C=0.1))))
    ask(server, store, ["one", "two"], ["Be fair.", None])
    assert [m["role"] for m in server.requests[0]["messages"]] in (["system", "user"], ["user"])
    assert all(body["logprobs"] and body["max_tokens"] == 1 and body["model"] == "judge-1" for body in server.requests)
    found = stored_log_odds(server.name, ["Be fair.", None], ["one", "two"], AB, store)
    np.testing.assert_allclose(found, np.log(2), atol=1e-6)
    assert ask(server, store, ["one", "two"], ["Be fair.", None])["rows"] == 0 and len(server.requests) == 2
    slower = server.name + "&parallel=1&timeout=9&requests_per_minute=600&max_requests=5"  # how, and not what
    np.testing.assert_allclose(stored_log_odds(slower, [None], ["two"], AB, store), np.log(2), atol=1e-6)
    with pytest.raises(NotCachedError):
        stored_log_odds(server.name.replace("judge-1", "judge-2"), [None], ["two"], AB, store)


def test_votes_count_where_no_probabilities_are_told(serve, store):
    def reply(body, n):
        return (200, completion("A")) if body.get("logprobs") else (200, completion(*["A.", "b", '"A"', "A", "Hm"]))

    server = serve(reply)
    ask(server, store, ["one"])
    assert server.requests[1]["n"] == 8 and server.requests[1]["temperature"] == 1
    found = stored_log_odds(server.name, [None], ["one"], AB, store)
    np.testing.assert_allclose(found, np.log(3.5 / 1.5), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "tries"),
    [
        ((429, '{"error": {"message": "slow down"}}', ("Retry-After", "0.02")), 3),
        ((500, "Internal error"), 3),
        ((200, completion("A", top=told(A=0.9, B=0.1))[:-30]), 3),  # cut off
        ((200, '{"choices": []}'), 3),
        ((200, "[]"), 3),
    ],
)
def test_a_busy_or_broken_server_is_asked_again(bad, tries, serve, store):
    good = (200, completion("A", top=told(A=0.9, B=0.1)))
    server = serve(lambda body, n: bad if n < tries - 1 else good)
    ask(server, store, ["one"])
    assert len(server.requests) == tries
    assert stored_log_odds(server.name, [None], ["one"], AB, store)[0] == pytest.approx(np.log(9), abs=1e-5)


def test_a_server_that_stays_busy_ends_the_run_and_keeps_what_was_answered(serve, store, monkeypatch):
    monkeypatch.setattr("harness.inference.endpoint.ROWS_PER_REQUEST_BLOCK", 2)
    good = completion("A", top=told(A=0.9, B=0.1))
    server = serve(lambda body, n: (200, good) if n < 40 else (429, "slow down"))
    prompts = [f"question {i}" for i in range(64)]
    with pytest.raises(UnavailableError, match="gave no answer in 6 tries: 429 slow down") as error:
        ask(server, store, prompts)
    assert KEY not in str(error.value)
    server.reply = lambda body, n: (200, good)
    before = len(server.requests)
    ask(server, store, prompts)
    assert len(server.requests) - before == 32  # the first block of 32 was kept


def test_one_refused_prompt_is_an_error_of_its_own(serve, store):
    def reply(body, n):
        if "bomb" in body["messages"][-1]["content"]:
            return 400, '{"error": {"message": "content policy"}}'
        return 200, completion("A", top=told(A=0.5, B=0.5))

    server = serve(reply)
    found = ask(server, store, [f"question {i}" for i in range(30)] + ["bomb"])
    assert (found["rows"], found["errors"]) == (31, 1)
    answers = stored_log_odds(server.name, [None] * 31, [f"question {i}" for i in range(30)] + ["bomb"], AB, store)
    assert np.isnan(answers[-1]) and (answers[:-1] == 0).all()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_model_or_key_ends_the_run_at_once(status, serve, store):
    server = serve(lambda body, n: (status, '{"error": {"message": "The model does not exist"}}'))
    with pytest.raises(UserError, match=f"refuses the model judge-1: {status} The model does not exist") as error:
        ask(server, store, ["one"])
    assert KEY_VARIABLE in error.value.hint and len(server.requests) == 1


def test_silence_ends_after_the_timeout(serve, store):
    def reply(body, n):
        time.sleep(2)
        return 200, "{}"

    server = serve(reply)
    server.name += "&timeout=1&parallel=2"
    on_endpoint_sends = on_endpoint.MAX_SENDS
    try:
        on_endpoint.MAX_SENDS = 2
        with pytest.raises(UnavailableError, match=r"gave no answer in 2 tries: ReadTimeout"):
            ask(server, store, ["one"])
    finally:
        on_endpoint.MAX_SENDS = on_endpoint_sends


def test_no_server_and_no_key_are_said_before_the_first_request(serve, store, monkeypatch):
    with pytest.raises(UnavailableError, match="no server answers at http://127.0.0.1:9/v1"):
        answer_job("openai:m?base_url=http://127.0.0.1:9/v1", AB, list, store).recipe.check()
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(UnavailableError, match="needs a key"):
        answer_job("openai:gpt-x", AB, list, store).recipe.check()


def test_more_requests_than_allowed_are_refused_before_the_first(serve, store, capsys):
    server = serve(lambda body, n: (200, completion("A", top=told(A=0.5, B=0.5))))
    server.name += "&max_requests=5"
    with pytest.raises(UserError, match=r"6 requests to .* are more than max_requests=5"):
        ask(server, store, ["one", "two", "three"])
    assert not server.requests
    ask(server, store, ["one", "two"])
    assert "4 requests" in capsys.readouterr().err


def test_requests_keep_the_rate(serve, store):
    server = serve(lambda body, n: (200, completion("A", top=told(A=0.5, B=0.5))))
    server.name += "&requests_per_minute=600"
    began = time.monotonic()
    ask(server, store, [f"question {i}" for i in range(6)])
    assert time.monotonic() - began >= 0.5  # six requests, a tenth of a second apart


def test_samples_are_asked_for_until_there_are_enough(serve, store):
    """Also of a server that gives one at a time, with another seed each time."""
    server = serve(lambda body, n: (200, completion(f"text {body['seed']}")))
    table = generator_inputs(question_table(["Be brief.", None], ["one", "two"]).select(["system", "prompt"]))
    run(generate_job(server.name + "&temperature=0.7&max_tokens=9", 3, lambda: [table], store), store)
    assert len({body["seed"] for body in server.requests}) == len(server.requests) == 6
    assert {body["max_tokens"] for body in server.requests} == {9}
    found = stored_candidates(
        ["Be brief.", None], ["one", "two"], server.name + "&temperature=0.7&max_tokens=9", 3, store
    )
    assert [len(set(row)) for row in found] == [3, 3]


def test_the_key_is_sent_but_never_kept(serve, store, tmp_path, caplog):
    server = serve(lambda body, n: (200, completion("A", top=told(A=0.5, B=0.5), usage={"prompt_tokens": 7})))
    ask(server, store, ["one"])
    assert server.keys == [f"Bearer {KEY}"]
    kept = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert kept and not any(KEY.encode() in file.read_bytes() for file in kept) and KEY not in caplog.text
    kind = answer_job(server.name, AB, list, store).cached_rows(store).store_kind
    (facts,) = [store.read_manifest(kind, key)["facts"] for key in store.committed_keys(kind)]
    assert facts["served by judge-1-0613 fp_7"] == 1 and facts["prompt_tokens"] == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:m?base_url=localhost", "is not the address of a server"),
        ("openai:m?base_url=http://me:pw@host/v1", "holds a user or password"),
        ("openai:m?parallel=0", "parallel is below 1"),
        ("openai:m?dtype=bfloat16", "unknown option 'dtype'"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(UserError, match=message):
        parse_judge(name)


def test_a_server_neither_encodes_nor_trains():
    with pytest.raises(UserError, match="can write and judge, and nothing else"):
        parse_encoder("openai:m")


def test_log_odds_of_tokens_and_votes():
    top = [
        {"token": " A", "logprob": np.log(0.2)},
        {"token": "a", "logprob": np.log(0.1)},
        {"token": "Yes", "logprob": -3},
    ]
    found = log_odds_of_choice({"logprobs": {"content": [{"top_logprobs": top}]}}, AB)
    assert found == pytest.approx(np.log(0.3) + 3)  # B is not told: it has less than the least
    assert log_odds_of_choice({"logprobs": None}, AB) is None
    assert log_odds_of_votes(["A", "A", "B", "neither"], AB) == pytest.approx(np.log(2.5 / 1.5))


def echoed(prompt, bos=False):
    """Return a completion that repeats its prompt: a token a word, whose probability is by its letters."""
    tokens = (["<s>"] if bos else []) + re.findall(r"\s*\S+", prompt) + [" next"]
    start = np.cumsum([0, *map(len, tokens)])[:-1].tolist()
    logp = [None] + [-float(len(token.strip())) for token in tokens[1:]]
    return {"logprobs": {"tokens": tokens, "text_offset": start, "token_logprobs": logp}, "text": ""}


@pytest.mark.parametrize("bos", [False, True])
def test_log_likelihoods_of_a_server_are_those_of_a_prompt_s_last_tokens(bos, serve, store):
    """The text alone counts, not what stands before it; a second run asks nothing."""

    def reply(body, n):
        assert body["echo"] and body["max_tokens"] == 1 and body["temperature"] == 0
        return 200, json.dumps({"model": "m", "choices": [echoed(body["prompt"], bos)]})

    server = serve(reply)
    texts = [" one three", " two", " one three"]
    asked = asked_likelihoods(server.name, ["Before it. ", "x", ""], ["Q: why?\nA:", "", "A:"], texts, store)
    job = asked.make_job(lambda: [asked.missing()])
    assert run(job, store)["errors"] == 0 and len(server.requests) == 3
    np.testing.assert_allclose(asked.stored(), [-8, -3, -8])
    assert len(asked.missing()) == 0
    method = Likelihood(model=server.name)
    assert method.model == server.name and "parallel" not in canonical_reader(server.name)


def test_a_server_without_probabilities_of_a_prompt_is_no_reader(serve, store):
    server = serve(lambda body, n: (200, completion("A")))
    asked = asked_likelihoods(server.name, ["a"], [""], [" b"], store)
    with pytest.raises(UserError, match="no log-probabilities of a prompt's own tokens"):
        run(asked.make_job(lambda: [asked.missing()]), store)
