"""Texts packed into one sequence: what several share is read once, each text sees only its own, and nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.models.base import TokenIds

LONG_BEGINNING = 0.25  # of a pack's tokens; a longer one is read by itself, and its keys and values are kept
SEEN_LAYERS = {"full_attention"}  # layers of other kinds read a sequence in its order, or forget its beginning


class Pack(NamedTuple):
    """Several texts as one sequence of t tokens, to be read after a beginning of b tokens that all of them share.

    before: int64[b], a long beginning, of which keys and values are kept while its texts are read; b is 0 where the
    sequence holds the beginnings of its texts itself.
    ids, position: int64[t].  tree, text: int64[t], which beginning a token follows, and which text it is of, -1 for a
    beginning's own tokens.  rows: the texts' numbers.  kept: int64[k], the places whose next token is asked for, text after
    text.
    """

    before: np.ndarray
    ids: np.ndarray
    position: np.ndarray
    tree: np.ndarray
    text: np.ndarray
    rows: list[int]
    kept: np.ndarray

    def mask(self, device: torch.device) -> torch.Tensor:
        """Return bool[1, 1, t, b + t]: a token sees what stands before it in its beginning and in its text."""
        tree, text = (torch.from_numpy(part).to(device) for part in (self.tree, self.text))
        own = (text == -1) | (text == text[:, None])
        inside = ((tree == tree[:, None]) & own).tril()
        return torch.nn.functional.pad(inside, (len(self.before), 0), value=True)[None, None]


def pack_texts(
    beginnings: Sequence[TokenIds], texts: Sequence[TokenIds], kept: Sequence[slice], max_tokens: int
) -> Iterator[Pack]:
    """Yield packs of texts in their order, each text after its beginning; equal beginnings in succession are read once.

    kept[i]: the places of texts[i] whose next token is asked for.  max_tokens: of a pack with more than one text.
    """
    made = _PackMaker()
    for row, (beginning, text) in enumerate(zip(beginnings, texts, strict=True)):
        again = row > 0 and np.array_equal(beginning, beginnings[row - 1])
        long = len(beginning) > max_tokens * LONG_BEGINNING
        begun = np.asarray(beginning, dtype=np.int64)
        room = made.used + len(text) + (0 if again or long else len(begun)) <= max_tokens
        if made.rows and not (room and (again or not (long or len(made.before)))):
            yield made.pack()
            made, again = _PackMaker(), False
        if long:
            made.before = begun
        elif not again:
            made.add_beginning(begun)
        made.add_text(row, np.asarray(text, dtype=np.int64), len(begun), kept[row])
    if made.rows:
        yield made.pack()


class _PackMaker:
    """A pack that grows."""

    def __init__(self) -> None:
        self.before = np.empty(0, dtype=np.int64)
        self.parts: list[tuple[np.ndarray, int, int, int]] = []  # tokens, first position, tree, text
        self.rows: list[int] = []
        self.places: list[np.ndarray] = []
        self.used = self.tree = 0

    def add_beginning(self, tokens: np.ndarray) -> None:
        self.tree += 1
        self.parts.append((tokens, 0, self.tree, -1))
        self.used += len(tokens)

    def add_text(self, row: int, tokens: np.ndarray, first: int, kept: slice) -> None:
        self.rows.append(row)
        self.places.append(self.used + np.arange(len(tokens))[kept])
        self.parts.append((tokens, first, self.tree, row))
        self.used += len(tokens)

    def pack(self) -> Pack:
        length = [len(part[0]) for part in self.parts]
        tree, text = (np.repeat([part[k] for part in self.parts], length) for k in (2, 3))
        position = np.concatenate([first + np.arange(len(tokens)) for tokens, first, _, _ in self.parts])
        ids = np.concatenate([part[0] for part in self.parts])
        return Pack(self.before, ids, position, tree, text, self.rows, np.concatenate(self.places))


def split_shared(prompts: Sequence[TokenIds]) -> list[int]:
    """Return how many first tokens each prompt is to share with its neighbours; at least one token is its own.

    Prompts in succession are a group where they have half of their tokens in common with the prompt before.
    """
    found, group = [0] * len(prompts), [0]

    def close() -> None:
        shared = min((len(prompts[row]) - 1 for row in group), default=0)
        for row in group[1:]:
            shared = min(shared, common_tokens(prompts[group[0]], prompts[row]))
        for row in group if len(group) > 1 else []:
            found[row] = shared

    for row in range(1, len(prompts)):
        if 2 * common_tokens(prompts[row - 1], prompts[row]) < len(prompts[row]):
            close()
            group = []
        group.append(row)
    if prompts:
        close()
    return found


def common_tokens(one: TokenIds, other: TokenIds) -> int:
    """Return the number of first tokens in which two prompts agree."""
    n = min(len(one), len(other))
    differ = np.asarray(one[:n]) != np.asarray(other[:n])
    return int(differ.argmax()) if differ.any() else n


def may_pack(config: Any) -> bool:
    """Return whether a model's layers all see whole sequences, as far as its configuration tells."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or SEEN_LAYERS)
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return layers <= SEEN_LAYERS and (not any(windows) or getattr(text, "use_sliding_window", True) is False)
