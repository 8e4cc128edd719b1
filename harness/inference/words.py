"""Splitting of a text into the tokens that the built-in encoders count: words, and all else that a reader sees."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain, groupby, pairwise

import regex

WORDS_VERSION = 2  # raised whenever a text gets other tokens, or a token another weight; part of results' keys

CAPITALISED, ALL_CAPITALS = " Aa", " AA"  # with a space, which no word has
LIST_MARK = r"(?:[-*+•>#]+|\d+[.)])(?= )"  # - item, 1. item, # heading, > quotation
CHUNK = re.compile(rf"\n+ *(?:{LIST_MARK})?|  +|\S+")  # the start of a line, a gap, or what stands between spaces
MAX_CACHED_LENGTH, CACHED_CHUNKS = 24, 2**15  # characters, and chunks: some 50 MB at most

# Characters of scripts that are written without spaces between words, and of all others; digits are letters here
UNSPACED = "".join(rf"\p{{Script_Extensions={script}}}" for script in ("Han", "Hiragana", "Katakana"))
UNSPACED += "".join(rf"\p{{Script_Extensions={script}}}" for script in ("Thai", "Lao", "Khmer", "Myanmar"))
LETTER = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]]"
WORD = rf"{LETTER}[{LETTER}\p{{M}}\u200C\u200D]*"  # with combining marks and the joiners of Persian and Indic scripts
PIECE = regex.compile(
    rf"""(?V1x)
    (?P<word> {WORD} (?:['’]{WORD})? )  # with a contraction
    | (?P<unspaced> [[\p{{L}}\p{{N}}]&&[{UNSPACED}]] [[\p{{L}}\p{{N}}\p{{M}}]&&[{UNSPACED}\p{{M}}]]* )
    | (?P<marks> (?: (?![\p{{L}}\p{{N}}]) \X )+ )
    """
)
GRAPHEME = regex.compile(r"\X")  # what a reader takes for one character: an emoji with its modifiers, a letter with accents
INVISIBLE = regex.compile(  # but joiners, variants and tags, which change how their neighbours look
    r"(?V1)[[\p{Cc}\p{Default_Ignorable_Code_Point}]--[\u200C\u200D\p{Variation_Selector}\U000E0020-\U000E007F]]"
)


def visible_tokens(text: str) -> list[str]:
    """Return the tokens of a text: texts that look different have different tokens, unless only their order differs.

    - A word is a token in lower case, with its contraction and combining marks; a number is a word. A word with a capital
      letter has a second token: CAPITALISED, ALL_CAPITALS or, as in "iPhone", the word as written.
    - Scripts without spaces between words (UNSPACED): each character, and each two neighbours.
    - Each mark that is no letter, digit or space: punctuation, symbols, an emoji with its modifiers. Of marks without a
      space between them also each run of the same ("!!!", "**") and each two neighbouring runs (":)", "?!").
    - Each line break, a run of several ("\\n\\n"), a list mark at the start of a line ("\\n-", "\\n#", "\\n1." for every
      number), and a gap of two or more spaces, such as an indent.

    Not seen: the order of tokens, which capitalised word it is of several, the kind of space, spaces at the end of lines,
    and the difference of Unicode's composed and decomposed forms. A bag of tokens has no order; pairs of words would
    have a little, but did not raise accuracies (see CHANGELOG.md).
    """
    chunks = CHUNK.findall("\n" + as_displayed(text))
    read = chunk_tokens.__wrapped__
    of = [chunk_tokens(chunk) if len(chunk) <= MAX_CACHED_LENGTH else read(chunk) for chunk in chunks]
    return list(chain.from_iterable(of))[1:]  # without the line break that was put before the first line


def as_displayed(text: str) -> str:
    """Return the text without what a reader cannot see, in composed characters (NFC), with "\\n" between lines."""
    if text.isascii() and text.isprintable():
        return text.strip()
    lines = unicodedata.normalize("NFC", text).replace("\t", "    ").splitlines()
    return "\n".join(re.sub(r"\s", " ", INVISIBLE.sub("", line)).rstrip() for line in lines).strip()


@lru_cache(CACHED_CHUNKS)
def chunk_tokens(chunk: str) -> tuple[str, ...]:
    """Return the tokens of a chunk of text (see CHUNK)."""
    if chunk[0] in "\n ":
        return line_start_tokens(chunk)
    tokens: list[str] = []
    for piece in PIECE.finditer(chunk):
        tokens += PIECE_TOKENS[piece.lastgroup](piece[0])
    return tuple(tokens)


def line_start_tokens(chunk: str) -> tuple[str, ...]:
    """Return the tokens of line breaks, an indent and a list mark, or of a gap within a line."""
    breaks, gap, mark = re.fullmatch(r"(\n*)( *)(.*)", chunk).groups()
    tokens = [*breaks, *(run for run in (breaks, gap) if len(run) > 1)]
    if mark:
        tokens += ["\n" + re.sub(r"\d+", "1", mark), *chunk_tokens(mark)]
    return tuple(tokens)


def word_tokens(word: str) -> list[str]:
    """Return a word in lower case, and its form where it is another."""
    lower = word.lower()
    tokens = [lower.replace("’", "'")] + ["’"] * ("’" in word)
    if word != lower:
        tokens.append(CAPITALISED if word == word.capitalize() else ALL_CAPITALS if word.isupper() else word)
    return tokens


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
