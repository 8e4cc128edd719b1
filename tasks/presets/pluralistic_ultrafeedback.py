"""Pluralistic UltraFeedback: a model's judgements by one of several attributes (Poddar et al. 2024; Dong et al. 2024)."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class PluralisticUltraFeedback(Choices):
    """The data set knows attributes, not people: its rows are dealt to 25 people for each attribute, who judge by it alone.

    Columns were collected from code that reads the data set. No revision could be verified: give
    hub = "RiverDong/ultrafeedback-personalized@COMMIT", or a local file.
    """

    family = "written by models"
    paper = "Poddar et al. 2024, VPL"
    licence = "see the data set's page"

    hub: str = "RiverDong/ultrafeedback-personalized"
    config: str = "conversational"
    query: str = """
        SELECT attributes || '-' || CAST(place % 25 AS VARCHAR) AS user, prompt, chosen, rejected FROM
            (SELECT *, ROW_NUMBER() OVER (PARTITION BY attributes ORDER BY prompt) AS place FROM data) AS dealt"""
