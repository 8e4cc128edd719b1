"""A common interface to the language-model engines `transformers` and `vllm`.

An engine returns samples, log-odds of two answers, and vectors of texts. Prompts are given as tokens, so that
tokenisation can happen in another process. This module does not depend on Ray.
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

# Most tokens in a batch, counting padding and tokens still to be generated. The key-value cache of a 7B model with
# grouped-query attention takes 2 GB for them.
MAX_BATCH_TOKENS = 16_384


# A text's vector: that of its last or first token, or the mean over tokens; or the outputs of a reward model's heads.
Pooling = Literal["last", "mean", "cls", "heads"]
TokenIds = Sequence[int] | np.ndarray  # int32[tokens] of one text


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote.

    mean_logprob: the mean log-probability of a token at temperature 1; the end token counts too.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    n_tokens: int
    mean_logprob: float


class Engine(ABC):
    """A loaded language model. Prompts and texts are lists of token ids, at most `context_length` long."""

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
        """Draw n samples of each prompt, which end after at most `max_tokens` or where the context is full.

        A prompt's seed determines its samples. Seeds of different prompts must lie far apart (hash them), since vLLM
        draws sample k from seed + k. The other prompts of a batch change no random draw. They can change a probability
        by a rounding error, which rarely changes a text. Raises ValueError where a prompt leaves no room for a token.
        """

    @abstractmethod
    def answer(self, prompts: Sequence[TokenIds], words: tuple[str, str]) -> np.ndarray:
        """Return float64[n]: log-odds that the next token begins the first word rather than the second.

        Only the first token of a word counts. Raises UserError where both words begin with the same token.
        """

    @abstractmethod
    def log_likelihood(
        self, beginnings: Sequence[TokenIds], rest: Sequence[TokenIds], scored: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Return float64[n]: the summed log-probability of the last scored[i] tokens of rest[i] after beginnings[i].

        Rows with the same beginning that follow one another share one reading of it. A beginning has a token or more.
        """

    @abstractmethod
    def embed(self, texts: Sequence[TokenIds], pooling: Pooling = "last") -> np.ndarray:
        """Return float32[n, d]: the state of the last or the first token (cls), or its mean over tokens; not normalised.

        heads: the outputs of a sequence-classification model, float32[n, heads], by an engine opened for `classify`.
        """

    def check_prompt_lengths(self, prompts: Sequence[TokenIds], room: int) -> None:
        """Raise ValueError for an empty prompt, or one that leaves fewer than `room` tokens of the context."""
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.context_length - room:
                raise ValueError(f"prompt {row} has {len(prompt)} tokens; the context has {self.context_length}")


def check_samples_can_differ(n: int, temperature: float) -> None:
    """Raise UserError where several samples are drawn at temperature 0."""
    if n > 1 and temperature == 0:
        raise UserError(f"at temperature 0 all {n} samples of a prompt are equal", "set temperature above 0, or n to 1")


def make_sample(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: bool, logprob: float) -> Sample:
    """Make a Sample from its tokens, the end token included if `stop`, and their summed log-probability."""
    text = str(tokenizer.decode(tokens[:-1] if stop else tokens, skip_special_tokens=True))
    return Sample(text, "stop" if stop else "length", len(tokens), logprob / len(tokens))
