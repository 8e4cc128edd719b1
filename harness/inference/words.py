"""Splitting of a text into the tokens that the built-in encoders count: words, and all else that a reader sees."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain, groupby, pairwise

import regex

WORDS_VERSION = 2  # raised whenever a text gets other tokens, or a token another weight; part of results' keys

CAPITALISED, ALL_CAPITALS = " Aa", " AA"  # unlike any other token: with a space, which no word has
LIST_MARK = r"(?:[-*+•>#]+|\d+[.)])(?= )"  # as in "- item", "1. item", "# heading", "> quotation"
CHUNK = re.compile(rf"\n+ *(?:{LIST_MARK})?|  +|\S+")  # the start of a line, a gap, or what stands between spaces
MAX_CACHED_LENGTH, CACHED_CHUNKS = 24, 2**14  # characters, and chunks: up to 60 MB, if all are Chinese

# Scripts that are written without spaces between words
UNSPACED = "".join(
    rf"\p{{Script_Extensions={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
LETTER = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]]"  # or digit
WORD = rf"{LETTER}[{LETTER}\p{{M}}\u200C\u200D]*"  # with accents, and the joiners of Persian and Indic scripts
PIECE = regex.compile(
    rf"""(?V1x)
    (?P<word> {WORD} (?:['’]{WORD})? )  # with a contraction
    | (?P<unspaced> [[\p{{L}}\p{{N}}]&&[{UNSPACED}]] [[\p{{L}}\p{{N}}\p{{M}}]&&[{UNSPACED}\p{{M}}]]* )
    | (?P<marks> (?: (?![\p{{L}}\p{{N}}]) \X )+ )
    """
)
GRAPHEME = regex.compile(r"\X")  # what a reader takes for one character, such as an emoji with its modifiers
UNSEEN_CHARACTERS = regex.compile(  # leaves joiners, variants and tags, which change how their neighbours look
    r"(?V1)[[\p{Cc}\p{Default_Ignorable_Code_Point}]--[\u200C\u200D\p{Variation_Selector}\U000E0020-\U000E007F]]"
)


def visible_tokens(text: str) -> list[str]:
    """Return the tokens of a text. Texts that look different have different tokens, unless only their order differs.

    - Each word in lower case, with its contraction and accents; a number is a word. A word with capitals adds a token for
      its form: CAPITALISED, ALL_CAPITALS, or the word as written, such as "iPhone".
    - Each character and each two neighbours, in scripts without spaces between words (UNSPACED).
    - Each mark, that is, whatever is no letter, digit or space: punctuation, symbols, an emoji with its modifiers. Where
      several marks stand together, also each run of the same ("!!!", "**"), and each two neighbouring runs (":)", "?!").
    - Each line break, and several in a row ("\\n\\n"); a list mark at the start of a line ("\\n-", "\\n#", and "\\n1." for
      every number); and a gap of two or more spaces, such as an indent.

    The tokens do not tell the order of words, which of the words are capitalised, or one kind of space from another.
    (Pairs of words and words as capitalised lowered validation accuracy in the task `attributes`.) Spaces at the ends of
    lines change nothing, nor does Unicode's composed or decomposed form.
    """
    chunks = CHUNK.findall("\n" + as_displayed(text))
    tokens = [_cached_tokens(chunk) if len(chunk) <= MAX_CACHED_LENGTH else chunk_tokens(chunk) for chunk in chunks]
    return list(chain.from_iterable(tokens))[1:]  # without the line break put before the first line


def as_displayed(text: str) -> str:
    """Return the text in composed characters (NFC), with "\\n" between lines and without what a reader cannot see."""
    if text.isascii() and text.isprintable():
        return text.strip()
    lines = (UNSEEN_CHARACTERS.sub("", line) for line in text.replace("\t", "    ").splitlines())
    return "\n".join(re.sub(r"\s", " ", unicodedata.normalize("NFC", line)).rstrip() for line in lines).strip()


def chunk_tokens(chunk: str) -> list[str]:
    """Return the tokens of a chunk of text, see CHUNK."""
    if chunk[0] in "\n ":
        return line_start_tokens(chunk)
    return [token for piece in PIECE.finditer(chunk) for token in PIECE_TOKENS[piece.lastgroup](piece[0])]


_cached_tokens = lru_cache(CACHED_CHUNKS)(chunk_tokens)


def line_start_tokens(chunk: str) -> list[str]:
    """Return the tokens of line breaks, an indent and a list mark, or of a gap within a line."""
    rest = chunk.lstrip("\n")
    mark = rest.lstrip(" ")
    breaks, gap = chunk.removesuffix(rest), rest.removesuffix(mark)
    tokens = [*breaks, *(run for run in (breaks, gap) if len(run) > 1)]
    return [*tokens, "\n" + re.sub(r"\d+", "1", mark), *chunk_tokens(mark)] if mark else tokens


def word_tokens(word: str) -> list[str]:
    """Return the word in lower case, its curly apostrophe, and its form where the word has capitals."""
    lower = word.lower()
    tokens = [lower.replace("’", "'")] + ["’"] * word.count("’")
    if word == lower:
        return tokens
    return [*tokens, CAPITALISED if word == word.capitalize() else ALL_CAPITALS if word.isupper() else word]


def unspaced_tokens(run: str) -> list[str]:
    """Return each character, and each two neighbours."""
    characters = GRAPHEME.findall(run)
    return characters + [a + b for a, b in pairwise(characters)]


def mark_tokens(run: str) -> list[str]:
    """Return each mark, each run of the same mark, and each two neighbouring runs."""
    marks = GRAPHEME.findall(run)
    runs = ["".join(same) for _, same in groupby(marks)]
    return marks + [run for run in runs if run not in marks] + [a + b for a, b in pairwise(runs)]


PIECE_TOKENS = {"word": word_tokens, "unspaced": unspaced_tokens, "marks": mark_tokens}
