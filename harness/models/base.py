"""One face for language-model engines, `transformers` and `vllm`: samples, log-odds of two answers, vectors of texts.

Prompts come in as tokens, so that tokenisation can happen elsewhere. Nothing here knows of Ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BATCH_TOKENS = (
    16_384  # of a batch, padding and what is to come included: a 7B model's cache of them is 2 GB (grouped heads)
)


TokenIds = Sequence[int] | np.ndarray  # int32[tokens] of one text


@dataclass(frozen=True)
class Sample:
    """What a model wrote. `mean_logprob`: per token, of the untempered model; the token that ends it counts too."""

    text: str
    finish_reason: Literal["stop", "length"]
    n_tokens: int
    mean_logprob: float


class Engine(ABC):
    """A language model at work. Prompts and texts are lists of token ids, at most `context_length` long."""

    context_length: int  # tokens of a prompt and its answer together

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[TokenIds],
        seeds: Sequence[int],
        n: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 512,
    ) -> list[list[Sample]]:
        """n samples of each prompt, which end at the latest after `max_tokens` or where the context is full.

        A prompt's samples follow from its seed: seeds of different prompts must lie far apart (hash them), for vLLM
        draws sample k from seed + k. What else is in the batch changes no draw; it can change a probability by a
        rounding error, and so, rarely, a text. ValueError where a prompt leaves no room.
        """

    @abstractmethod
    def answer(self, prompts: Sequence[TokenIds], words: tuple[str, str]) -> np.ndarray:
        """float64[n]: log-odds of the first word against the second as what comes next.

        Of a word that is several tokens the first counts. UserError where both words begin with the same one.
        """

    @abstractmethod
    def embed(self, texts: Sequence[TokenIds], pooling: Literal["last", "mean"] = "last") -> np.ndarray:
        """float32[n, d]: the last layer's vector of the last token, or the mean over all tokens; not normalised."""

    def check_prompt_lengths(self, prompts: Sequence[TokenIds], room: int) -> None:
        """ValueError for an empty prompt, or one that leaves less than `room` tokens of the context."""
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.context_length - room:
                raise ValueError(f"prompt {row} has {len(prompt)} tokens; the context has {self.context_length}")


def check_samples_can_differ(n: int, temperature: float) -> None:
    if n > 1 and temperature == 0:
        raise UserError(f"at temperature 0 all {n} samples of a prompt are equal", "set temperature above 0, or n to 1")


def make_sample(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: bool, logprob: float) -> Sample:
    text = str(tokenizer.decode(tokens[:-1] if stop else tokens, skip_special_tokens=True))
    return Sample(text, "stop" if stop else "length", len(tokens), logprob / len(tokens))
