"""Community Alignment: over 3,000 people choose among four answers, up to four turns (Zhang et al. 2025)."""

from dataclasses import dataclass

from tasks.choices import Choices

TURNS = ("first", "second", "third", "fourth")
LETTERS = "abcd"


def turn_query(turn: int) -> str:
    """Return SQL for the judgements of one turn, whose prompt holds the turns before it with the preferred answers."""
    parts = []
    for earlier in TURNS[:turn]:
        said = " ".join(
            f"WHEN '{which}' THEN {earlier}_turn_{which}" for which in (f"response_{letter}" for letter in LETTERS)
        )
        parts += [
            f"'User: ' || {earlier}_turn_prompt",
            f"'Assistant: ' || CASE {earlier}_turn_preferred_response {said} END",
        ]
    now = f"{TURNS[turn]}_turn"
    parts.append(f"'User: ' || {now}_prompt" if turn else f"{now}_prompt")
    answers = ", ".join(f"{now}_response_{letter} AS response_{letter}" for letter in LETTERS)
    prompt = " || '\n\n' || ".join(parts)
    return (
        f"SELECT annotator_id, annotator_country, {prompt} AS prompt, {answers}, {now}_preferred_response AS preferred "
        f"FROM data WHERE assigned_lang = 'en' AND {now}_preferred_response IS NOT NULL AND {now}_prompt IS NOT NULL"
    )


@dataclass(frozen=True)
class CommunityAlignment(Choices):
    """English conversations; every turn's preferred answer beats the three others, and a turn's pairs stay together.

    Columns were collected from code that reads the data set at this revision. Its makers ask for possible personal
    information to be handled with care, and publish requests for removal.
    """

    paper = "Zhang et al. 2025, Community Alignment"
    licence = "CC-BY-4.0"

    hub: str = "facebook/community-alignment-dataset@97343c7f6399fcbea430ed0f37c1768281a78d56"
    query: str = " UNION ALL ".join(turn_query(turn) for turn in range(len(TURNS)))
    user: str = "annotator_id"
    group: str = "annotator_country"
    responses: tuple[str, ...] = tuple(f"response_{letter}" for letter in LETTERS)
    winner: str = "preferred"
