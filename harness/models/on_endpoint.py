"""Language models behind an OpenAI-compatible server: `openai:MODEL?base_url=...`; the only module that talks to one."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from harness.errors import UnavailableError, UserError
from harness.models.names import LanguageModel

KEY_VARIABLE = "OPENAI_API_KEY"  # sent as a bearer token where it is set; read from the environment alone
PUBLIC_URL = "https://api.openai.com/v1"
ENDPOINT_DEFAULTS = {  # options of every model behind a server
    "base_url": PUBLIC_URL,
    "parallel": 8,  # requests at the same time
    "requests_per_minute": 0,  # at most; 0: as many as the server takes
    "max_requests": 20_000,  # more are refused before the first one is sent
    "timeout": 120,  # seconds until a request counts as lost
}
# Options that determine how a model is asked, and not what it says
HOW_ASKED = ("parallel", "requests_per_minute", "max_requests", "timeout")
MAX_SENDS = 6  # of one request: with waits of 1, 2, 4, 8 and 16 s a busy server has half a minute
FIRST_WAIT = 1.0  # seconds after the first failure; doubled each time, or as long as the server says
MAX_WAIT = 120.0
TOP_LOGPROBS = 20  # tokens whose probabilities a server returns, the most that OpenAI's own does
NO_SUCH_ACCESS = (401, 403, 404)  # every other request would fail in the same way
ASK_AGAIN = (408, 409, 425, 429)

T = TypeVar("T")


class RefusedError(Exception):
    """The server refuses one request; others may be fine."""


class Endpoint:
    """A model behind a server, asked by several threads at once, with waits where the server is busy.

    served: counts of what the server says it is, as "MODEL FINGERPRINT".
    """

    def __init__(self, model: LanguageModel) -> None:
        self.name = model.model
        self.options: dict[str, Any] = dict(model.options)
        self.url = check_base_url(self.options["base_url"])
        self.served: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self._lock, self._next = threading.Lock(), 0.0

    def check(self) -> None:
        """Raise UnavailableError where no server answers, or the public one is named and there is no key."""
        import requests

        if self.url == PUBLIC_URL and not os.environ.get(KEY_VARIABLE):
            raise UnavailableError(
                f"{self.url} needs a key", f"export {KEY_VARIABLE}=..., or name a server by base_url="
            )
        try:
            requests.get(f"{self.url}/models", headers=self._headers(), timeout=10)
        except requests.RequestException as error:
            raise UnavailableError(
                f"no server answers at {self.url} ({type(error).__name__})", "start it, or correct base_url"
            ) from error

    def ask_all(self, ask: Callable[[T], Any], rows: Sequence[T]) -> list[Any]:
        """Return ask(row) for every row, in order; a RefusedError takes the place of an answer."""

        def answer_or_refusal(row: T) -> Any:
            try:
                return ask(row)
            except RefusedError as error:
                return error

        with ThreadPoolExecutor(max(1, int(self.options["parallel"]))) as pool:
            try:
                return list(pool.map(answer_or_refusal, rows))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def chat(self, system: str | None, prompt: str, **body: object) -> list[dict]:
        """Return the choices of a chat completion.

        Raises RefusedError where the server refuses this prompt, UserError where it would refuse all, and
        UnavailableError where it stays busy or silent.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        return self._choices("chat/completions", {"messages": messages} | body)

    def complete(self, prompt: str, **body: object) -> dict:
        """Return the choice of a plain completion; errors as in `chat`."""
        return self._choices("completions", {"prompt": prompt} | body)[0]

    def _choices(self, path: str, body: dict[str, Any]) -> list[dict]:
        """Send a request; note what was read and written, and what the server says it is."""
        said = self._send(path, {"model": self.name} | body)
        with self._lock:
            self.served[f"{said.get('model', self.name)} {said.get('system_fingerprint') or ''}".strip()] += 1
            for kind in ("prompt_tokens", "completion_tokens"):
                self.tokens[kind] += int((said.get("usage") or {}).get(kind) or 0)
        return said["choices"]

    def take_facts(self) -> dict[str, int]:
        """Return counts for the facts of a block, and reset them: tokens, and what the server says it is."""
        with self._lock:
            found = dict(self.tokens) | {f"served by {name}": count for name, count in self.served.items()}
            self.tokens, self.served = Counter(), Counter()
        return found

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(KEY_VARIABLE)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered. Errors as in `chat`."""
        import requests

        wait, problem = FIRST_WAIT, ""
        for sent in range(MAX_SENDS):
            if sent:
                time.sleep(min(wait, MAX_WAIT))
                wait *= 2
            self._wait_for_turn()
            try:
                got = requests.post(
                    f"{self.url}/{path}", json=body, headers=self._headers(), timeout=float(self.options["timeout"])
                )
            except requests.RequestException as error:
                problem = f"{type(error).__name__} after {self.options['timeout']} s at most"
                continue
            if got.status_code in NO_SUCH_ACCESS:
                raise UserError(
                    f"{self.url} refuses the model {self.name}: {got.status_code} {message_of_body(got.text)}",
                    f"check the model's name, base_url and {KEY_VARIABLE}",
                )
            if got.status_code in ASK_AGAIN or got.status_code >= 500:
                problem = f"{got.status_code} {message_of_body(got.text)}"
                said = got.headers.get("Retry-After", "")
                wait = max(wait, float(said)) if said.replace(".", "", 1).isdigit() else wait
                continue
            if got.status_code >= 400:
                raise RefusedError(f"the server refuses it: {got.status_code} {message_of_body(got.text)}")
            try:
                found = json.loads(got.text)
            except ValueError:
                problem = "an answer that is not JSON"
                continue
            if isinstance(found, dict) and isinstance(found.get("choices"), list) and found["choices"]:
                return found
            problem = "an answer without choices"
        raise UnavailableError(
            f"the server at {self.url} gave no answer in {MAX_SENDS} tries: {problem}",
            "run the same command later: what is answered is kept; or set requests_per_minute or parallel lower",
        )

    def _wait_for_turn(self) -> None:
        """Wait until the next request may be sent."""
        rate = float(self.options["requests_per_minute"])
        if rate > 0:
            with self._lock:
                now = time.monotonic()
                turn = max(self._next, now)
                self._next = turn + 60 / rate
            time.sleep(turn - now)


def check_base_url(url: str) -> str:
    """Return a server's address without a slash at its end. Raises UserError for one that is none, or holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"base_url = {url!r} is not the address of a server", "base_url=http://localhost:8000/v1")
    if "@" in parts.netloc:
        raise UserError("base_url holds a user or password, which would be stored", f"set {KEY_VARIABLE} instead")
    return url.rstrip("/")


def message_of_body(text: str) -> str:
    """Return what an error's body says, in at most 200 characters."""
    try:
        said = json.loads(text)
        error = said.get("error", said) if isinstance(said, dict) else said
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    return " ".join(text.split())[:200]


def log_odds_of_choice(choice: dict, words: tuple[str, str]) -> float | None:
    """Return the log-odds of the first word against the second from the first token's probabilities; None without them.

    Tokens count for a word that they are, or begin, apart from case and spaces. A word that is not among the most probable
    tokens gets the probability of the last of these, which is more than it has.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    if not content or not content[0].get("top_logprobs"):
        return None
    top = [(str(t["token"]).strip().lower(), float(t["logprob"])) for t in content[0]["top_logprobs"]]
    least = min(logprob for _, logprob in top)
    found = []
    for word in words:
        mine = [logprob for token, logprob in top if token and word.lower().startswith(token)]
        found.append(np.logaddexp.reduce(mine) if mine else least)
    return float(found[0] - found[1])


def log_likelihood_of_end(choice: dict, characters: int) -> float:
    """Return the summed log-probability of the tokens that hold the last characters of a prompt.

    choice: of a completion that repeats its prompt and goes on for one token. A token that begins before these characters
    counts too. The first token of all has no probability, and counts 0: where nothing
    stands before the text, a server gives less than the model's files do, which begin with a token of their own. Raises UserError where there are no probabilities.
    """
    told = choice.get("logprobs") or {}
    start, each = told.get("text_offset") or [], told.get("token_logprobs") or []
    if len(start) < 2 or len(start) != len(each):
        raise UserError(
            "the server returns no log-probabilities of a prompt's own tokens",
            "use vLLM's server, or the model's files: transformers:MODEL or vllm:MODEL",
        )
    # places are counted from the end, because some servers count a token that begins every text
    first = start[-1] - characters
    return float(sum(logp or 0.0 for logp, after in zip(each[:-1], start[1:], strict=True) if after > first))


def log_odds_of_votes(texts: Sequence[str], words: tuple[str, str]) -> float:
    """Return the log-odds of votes, each an answer that begins with a word; half a vote is added to each side."""
    starts = [text.strip().lower().lstrip("\"'*( ") for text in texts]
    first, second = (sum(start.startswith(word.lower()) for start in starts) for word in words)
    return float(np.log((first + 0.5) / (second + 0.5)))
