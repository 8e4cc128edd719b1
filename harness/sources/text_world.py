"""The text simulator of `attributes`: prompts, responses with chosen traits, and seven trait scores of any text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

TRAITS = ("length", "formality", "humour", "elicitation", "politeness", "enthusiasm", "confidence")
# Number of a trait's phrases that a response is made to contain; -2 means two phrases of the negative side.
TRAIT_LEVELS = np.array([-2, -1, 0, 0, 1, 2])
TYPICAL_WORDS, WORDS_PER_LEVEL = 50, 12  # responses then have about 20 to 80 words, at most 100 with punctuation


def split_phrases(text: str) -> tuple[str, ...]:
    """Split a comma-separated list into phrases."""
    return tuple(phrase.strip() for phrase in text.split(","))


# trait -> phrases of its positive and of its negative side
LEXICON: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "formality": (
        split_phrases(
            "it is hereby noted, one ought to reflect, it is thus established, allow me to elaborate, "
            "it must be stated, such is the consensus, one shall proceed accordingly, it is henceforth advised, "
            "as aforementioned, one may consult scholars, in accordance with custom, hence it follows"
        ),
        split_phrases(
            "yeah, no biggie, kinda neat stuff, gonna be fine, hey buddy, ya know, gotta dig in, that's cool, yep, "
            "dunno dude, lemme explain, wanna try"
        ),
    ),
    "humour": (
        split_phrases(
            "haha, just kidding, that's a joke, cue the clown, my cat laughed, pun intended, lol, knock knock, "
            "tickle a penguin, my sock puppet agrees, mind the banana peel, insert a giggle"
        ),
        split_phrases(
            "this is serious, it is a grave matter, no jest here, treat it soberly, the stakes are heavy, "
            "it carries weight, lives depend on it, it is a solemn duty, take it in earnest, it is no game, "
            "heed the danger, consequences are severe"
        ),
    ),
    "elicitation": (
        split_phrases(
            "what do you think?, tell me more, how about you?, would you share yours?, which would you pick?, "
            "what brings you here?, let me know, do you agree?, what is your goal?, where are you stuck?, "
            "shall we explore together?, what matters to you?"
        ),
        split_phrases(
            "that is all, end of answer, nothing further, case closed, full stop, there is no more, that settles it, "
            "leave it there, discussion over, no follow up, enough said, we are done"
        ),
    ),
    "politeness": (
        split_phrases(
            "thank you, please, you are welcome, kindly bear with me, with respect, pardon me, my pleasure, "
            "excuse my haste, i appreciate your patience, it is an honour, at your service, i am grateful"
        ),
        split_phrases(
            "stop whining, what a dumb question, shut up, use your brain, don't waste my time, you fool, "
            "quit bugging me, get lost, ugh, how lazy, nobody cares, grow up"
        ),
    ),
    "enthusiasm": (
        split_phrases(
            "wow!, i love this!, so exciting!, amazing!, fantastic!, hooray!, this is awesome!, what a thrill!, yay!, "
            "i can't wait!, brilliant!, incredible!"
        ),
        split_phrases(
            "it is fairly plain, meh, so it goes, it is ordinary, nothing special, a modest affair, a quiet subject, "
            "fine i suppose, it is passable, rather dull, unremarkable, a mild topic"
        ),
    ),
    "confidence": (
        split_phrases(
            "i am certain, definitely, without a doubt, absolutely, this always works, i guarantee it, undoubtedly, "
            "trust my word, there is proof, it never fails, clearly so, i know this well"
        ),
        split_phrases(
            "maybe, i am not sure, perhaps, it might vary, possibly, i could be wrong, i guess, hard to say, "
            "it seems so, others may differ, i am only guessing, it is unclear"
        ),
    ),
}

TOPICS = split_phrases(
    "baking bread, learning chess, growing tomatoes, saving money, playing guitar, running faster, writing poems, "
    "drawing faces, keeping bees, brewing coffee, speaking Spanish, fixing bicycles, training dogs, taking photos, "
    "making cheese, climbing rocks, reading maps, sleeping better, cooking rice, sewing shirts, building shelves, "
    "painting walls, riding horses, sailing boats, watching birds, knitting scarves, planting trees, juggling balls, "
    "singing harmony, carving wood, folding paper, solving puzzles, planning trips, hosting dinners, teaching maths, "
    "mending clocks, catching fish, making soap, skating backwards, telling stories, choosing wine, swimming laps, "
    "cleaning windows, packing bags, giving speeches, studying history, collecting stamps, pruning roses, "
    "dancing tango, hiking mountains"
)

REQUESTS = split_phrases(
    "how do I start with *?, what should I know about *?, give me a tip on *, why do people enjoy *?, is * hard?, "
    "explain * to a child, what is the secret of *?, how long does * take?, help me with *, what goes wrong with *?, "
    "who should try *?, describe * briefly, what do I need for *?, how can I get better at *?, is * worth it?, "
    "compare * with other hobbies, when is the best time for *?, write a note about *, how much does * cost?, "
    "tell me about *, what makes * fun?, can I do * alone?, how do experts approach *?, plan a week of *, "
    "what are the basics of *?, which tools suit *?, how do I teach *?, list three facts on *, summarise *, "
    "what is the history of *?, how do I stay safe while *?, what comes after *?, convince me to try *, "
    "what is the first step in *?, how often should I practise *?, where can I learn *?, what is overrated about *?, "
    "review a book on *, how do I enjoy *?, make a plan for *, what surprises people about *?, should I give up *?, "
    "what advice fits *?, give an example of *"
)

PROMPTS: tuple[str, ...] = tuple((r[0].upper() + r[1:]).replace("*", topic) for topic in TOPICS for r in REQUESTS)

# Plain sentences add length and affect no other trait.
PLAIN_SUBJECTS = split_phrases("people, most beginners, many friends, some groups, few families")
PLAIN_VERBS = split_phrases("follow, learn, repeat, change, notice")
PLAIN_OBJECTS = split_phrases("the small steps, the usual order, a simple method, the main parts, a short list")
PLAIN_ENDINGS = split_phrases("in the morning, after some practice, over the weeks, at the start, to save effort")
WORDS_PER_PLAIN_SENTENCE = 8.2  # on average

# Of a side's 12 phrases in their order: the first is about five times as common as the last.
PHRASE_PROBABILITIES = 1 / np.arange(3, 15)


def write_response(prompt: str, seed: int) -> str:
    """Write a response to the prompt with random TRAIT_LEVELS; another seed gives another response.

    The response contains, in random order, an opening that names the prompt's topic, one sentence for each phrase that
    the levels ask for, and as many plain sentences as bring the length closest to the level of the trait `length`.
    """
    rng = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
    length, *levels = rng.choice(TRAIT_LEVELS, len(TRAITS))
    sentences = [
        phrase for trait, level in zip(LEXICON, levels, strict=True) for phrase in draw_phrases(rng, trait, level)
    ]
    opening = f"on {next(topic for topic in TOPICS if topic in prompt)}"
    missing = TYPICAL_WORDS + WORDS_PER_LEVEL * length - len(split_words(" ".join([opening, *sentences])))
    sentences += [plain_sentence(rng) for _ in range(max(0, round(missing / WORDS_PER_PLAIN_SENTENCE)))]
    rng.shuffle(sentences)
    return " ".join(s[0].upper() + s[1:] + ("" if s[-1] in "?!" else ".") for s in [opening, *sentences])


def draw_phrases(rng: np.random.Generator, trait: str, level: int) -> list[str]:
    """Draw |level| different phrases of the trait's positive or negative side."""
    side = LEXICON[trait][int(level < 0)]
    return [
        side[i] for i in rng.choice(12, abs(level), replace=False, p=PHRASE_PROBABILITIES / PHRASE_PROBABILITIES.sum())
    ]


def plain_sentence(rng: np.random.Generator) -> str:
    """Draw one of 625 plain sentences."""
    return " ".join(
        part[i]
        for part, i in zip(
            (PLAIN_SUBJECTS, PLAIN_VERBS, PLAIN_OBJECTS, PLAIN_ENDINGS), rng.integers(5, size=4), strict=True
        )
    )


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation; a contraction is one word."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def trait_scores(texts: Sequence[str]) -> np.ndarray:
    """Return float32[n, 7]: trait scores of any texts; over this simulator's responses each has mean 0 and sd about 1.

    Length is the number of words. Any other trait is the number of different phrases of its positive side in the text
    minus that of its negative side. Each phrase counts once, so repeating one changes no score.
    """
    found = np.empty((len(texts), len(TRAITS)), dtype=np.float32)
    for row, text in enumerate(texts):
        said = split_words(text)
        found[row, 0] = len(said) - TYPICAL_WORDS
        padded = f" {' '.join(said)} "
        found[row, 1:] = [sum(p in padded for p in up) - sum(p in padded for p in down) for up, down in PADDED_PHRASES]
    return found / TRAIT_SCALES


PADDED_PHRASES = [[[f" {' '.join(split_words(p))} " for p in side] for side in sides] for sides in LEXICON.values()]
TRAIT_SCALES = np.array([WORDS_PER_LEVEL, 1, 1, 1, 1, 1, 1], dtype=np.float32) * np.float32(TRAIT_LEVELS.std())
