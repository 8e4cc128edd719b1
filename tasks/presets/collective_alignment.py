"""Collective alignment: over 1,000 people rank four answers, for themselves and for the world (OpenAI 2025)."""

from dataclasses import dataclass
from typing import Literal

from tasks.choices import Choices


@dataclass(frozen=True)
class CollectiveAlignment(Choices):
    """A judgement is one person's ranking, with ties, of four answers to a prompt, in one of two views.

    personal: what the person prefers; world: what the person thinks best for everybody. Columns were collected from code
    that reads the data set. No revision could be verified: give hub = "openai/collective-alignment-1@COMMIT", or a file.
    """

    paper = "OpenAI 2025, Collective alignment"
    licence = "see the data set's page"

    view: Literal["personal", "world"] = "personal"
    hub: str = "openai/collective-alignment-1"
    config: str = "comparisons"
    query: str = """
        WITH assessed AS (SELECT prompt.messages AS prompt, responses, UNNEST(metadata.assessments) AS a FROM data),
        ranked AS (SELECT prompt, responses, a.annotator_id, UNNEST(a.ranking_blocks.{view}) AS block FROM assessed)
        SELECT prompt, responses, annotator_id, block.ranking AS ranking FROM ranked WHERE block.ranking IS NOT NULL"""
    user: str = "annotator_id"
    responses: tuple[str, ...] = ("responses.messages",)
    ranking: str = "ranking"

    def sql(self) -> str:
        return self.query.format(view=self.view)
