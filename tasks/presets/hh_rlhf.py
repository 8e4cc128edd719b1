"""HH-RLHF: workers choose between two assistants' answers; nobody's id is known (Bai et al. 2022)."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class HhRlhf(Choices):
    """A negative control: rows are dealt to 100 people by turns, so that no person differs from another.

    A conversation up to the last answer is the prompt.
    """

    paper = "Bai et al. 2022, HH-RLHF"
    licence = "MIT"

    hub: str = "Anthropic/hh-rlhf@09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
    query: str = """
        SELECT 'dealt-' || CAST(place % 100 AS VARCHAR) AS user, chosen, rejected FROM
            (SELECT *, ROW_NUMBER() OVER (ORDER BY chosen) AS place FROM data) AS dealt"""
