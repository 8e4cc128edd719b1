"""Chatbot Arena: voters choose between two models' conversations; who votes often is a person (Chiang et al. 2024)."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class Arena(Choices):
    """Votes of the 100,000 that name their voter; what both conversations share is the prompt, and ties are dropped.

    Columns were collected from code that reads the data set, the voters' one from its page.
    """

    paper = "Chiang et al. 2024, Chatbot Arena"
    licence = "see the data set's page"

    hub: str = "lmarena-ai/arena-human-preference-100k@72e85b3ddc9c81bf7b659d6b03d4126dfd8fb34a"
    query: str = """
        SELECT judge_hash AS user,
            CASE WHEN winner = 'model_b' THEN conversation_b ELSE conversation_a END AS chosen,
            CASE WHEN winner = 'model_b' THEN conversation_a ELSE conversation_b END AS rejected,
            CASE WHEN winner LIKE 'tie%' THEN 0.5 WHEN winner IN ('model_a', 'model_b') THEN 1.0 END AS label
        FROM data"""
