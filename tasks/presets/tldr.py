"""TL;DR: about 80 workers choose between two summaries of a post (Stiennon et al. 2020)."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class Tldr(Choices):
    """Posts of Reddit; comparisons of news articles are left out.

    Columns were collected from code that reads the data set. The data set on the hub is a script, which is not run: take
    the table `comparisons/train` of its conversion to parquet as a local file, or name that conversion's commit:
    hub = "openai/summarize_from_feedback@COMMIT".
    """

    paper = "Stiennon et al. 2020, Learning to summarize from human feedback"
    licence = "see the data set's page"

    hub: str = "openai/summarize_from_feedback"
    config: str = "comparisons"
    query: str = """
        SELECT worker, info.post AS prompt, summaries, choice FROM data WHERE info.post IS NOT NULL"""
    user: str = "worker"
    responses: tuple[str, ...] = ("summaries.text",)
    winner: str = "choice"
