"""Public scorers of texts, which disagree as people do: each gives a number to a response, and none knows a person."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence

import numpy as np

from harness.errors import UnavailableError, UserError, did_you_mean

WORD_OF_TEXT = re.compile(r"[\w'’]+")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
CASUAL = frozenset(
    [
        "ain't",
        "awesome",
        "btw",
        "bucks",
        "cool",
        "dude",
        "gonna",
        "gotta",
        "guys",
        "hey",
        "hi",
        "kinda",
        "kid",
        "kids",
        "lol",
        "nah",
        "nope",
        "ok",
        "okay",
        "omg",
        "oh",
        "pretty",
        "stuff",
        "sure",
        "thanks",
        "totally",
        "wanna",
        "whatever",
        "wow",
        "yeah",
        "yep",
        "yup",
    ]
)
SECOND_PERSON = frozenset(["you", "your", "yours", "yourself", "yourselves", "you're", "you'll", "you've", "you'd"])
MTLD_RATIO = 0.72  # of distinct words at which a stretch of text ends (McCarthy and Jarvis 2010)
LIX_LETTERS = 6  # a longer word counts as long (Björnsson 1968)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.replace("’", "'").lower() for word in WORD_OF_TEXT.findall(text)]


def sentence_count(text: str) -> int:
    """Return the number of sentences, at least 1."""
    return max(1, len(SENTENCE_END.findall(text)))


def share_of_words(words: Sequence[str], known: frozenset[str]) -> float:
    """Return the share of words that are among the known ones."""
    return sum(word in known for word in words) / max(1, len(words))


def flesch() -> Callable[[str], float]:
    """Return Flesch's reading ease (1948): higher is easier. Syllables are the parts into which hyphens may divide a word."""
    import pyphen

    hyphens = pyphen.Pyphen(lang="en_US")

    def ease(text: str) -> float:
        words = words_of(text)
        syllables = sum(len(hyphens.positions(word)) + 1 for word in words)
        return 206.835 - 1.015 * len(words) / sentence_count(text) - 84.6 * syllables / max(1, len(words))

    return ease


def lix(text: str) -> float:
    """Return Björnsson's readability index LIX: words a sentence, plus the percentage of long words."""
    words = words_of(text)
    long = sum(len(word) > LIX_LETTERS for word in words)
    return len(words) / sentence_count(text) + 100 * long / max(1, len(words))


def mtld(text: str) -> float:
    """Return the measure of textual lexical diversity (McCarthy and Jarvis 2010), the mean of both directions.

    It is the mean number of words until the share of distinct ones has fallen to MTLD_RATIO.
    """

    def stretches(words: Sequence[str]) -> float:
        seen: set[str] = set()
        count, n, ratio = 0.0, 0, 1.0
        for word in words:
            n += 1
            seen.add(word)
            ratio = len(seen) / n
            if ratio <= MTLD_RATIO:
                seen, n, count, ratio = set(), 0, count + 1, 1.0
        return count + (1 - ratio) / (1 - MTLD_RATIO)

    words = words_of(text)
    found = [stretches(order) for order in (words, words[::-1])]
    return float(np.mean([len(words) / count if count else len(words) for count in found])) if words else 0.0


def vader() -> Callable[[str], float]:
    """Return VADER's compound sentiment (Hutto and Gilbert 2014)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def afinn() -> Callable[[str], float]:
    """Return the mean AFINN valence of a word (Nielsen 2011)."""
    from afinn import Afinn

    lexicon = Afinn()
    return lambda text: float(lexicon.score(text)) / max(1, len(words_of(text)))


# name -> what it measures, the packages that it needs, and a function that makes the scorer
TEXT_SCORERS: dict[str, tuple[str, str, Callable[[], Callable[[str], float]]]] = {
    "words": ("number of words", "", lambda: lambda text: float(len(words_of(text)))),
    "sentence_words": ("words a sentence", "", lambda: lambda text: len(words_of(text)) / sentence_count(text)),
    "word_letters": (
        "letters a word",
        "",
        lambda: lambda text: float(np.mean([len(w) for w in words_of(text)] or [0])),
    ),
    "second_person": ("share of you and your", "", lambda: lambda t: share_of_words(words_of(t), SECOND_PERSON)),
    "casual": ("share of casual words", "", lambda: lambda text: share_of_words(words_of(text), CASUAL)),
    "lix": ("readability LIX, higher is harder", "", lambda: lix),
    "mtld": ("lexical diversity MTLD", "", lambda: mtld),
    "flesch": ("Flesch's reading ease, higher is easier", "pyphen", flesch),
    "vader": ("sentiment by VADER", "vaderSentiment", vader),
    "afinn": ("sentiment by AFINN, a word", "afinn", afinn),
}


INSTALL_SCORERS = "pip install '.[scorers]'"


def has_package(name: str) -> bool:
    """Return whether the package that a text scorer needs, if any, is installed."""
    package = TEXT_SCORERS[name][1]
    return not package or importlib.util.find_spec(package) is not None


def check_scorer(name: str) -> None:
    """Raise UserError for an unknown name."""
    if name not in TEXT_SCORERS:
        known = ", ".join(TEXT_SCORERS)
        raise UserError(
            f"there is no text scorer {name!r}",
            did_you_mean(
                name,
                TEXT_SCORERS,
                f"{known}; a reward model, transformers:org/name@REVISION; or personas, likelihood:transformers:smollm",
            ),
        )


def open_scorer(name: str) -> Callable[[str], float]:
    """Return the scorer of that name. Raises UserError for an unknown name, UnavailableError for a missing package."""
    check_scorer(name)
    _, package, make = TEXT_SCORERS[name]
    if not has_package(name):
        raise UnavailableError(f"the scorer {name} needs the package {package}", INSTALL_SCORERS)
    return make()


def disagreements(scores: np.ndarray, prompt: np.ndarray) -> tuple[float, np.ndarray]:
    """Return how often two scorers order two responses to a prompt differently, and each scorer's share of ties.

    scores: float64[n, scorers].  prompt: int64[n].  Each response is compared with the next one of its prompt. Ties of
    either scorer are left out of the first number, which is NaN where there are no two responses to a prompt.
    """
    order = np.argsort(prompt, kind="stable")
    same = prompt[order][1:] == prompt[order][:-1]
    gap = np.sign(np.diff(scores[order], axis=0))[same]
    if not len(gap):
        return float("nan"), np.zeros(scores.shape[1])
    first, second = np.triu_indices(scores.shape[1], 1)
    product = gap[:, first] * gap[:, second]
    decided = product != 0
    return float((product < 0).sum() / decided.sum()) if decided.any() else float("nan"), (gap == 0).mean(axis=0)
