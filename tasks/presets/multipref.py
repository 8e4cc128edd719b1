"""MultiPref: workers compare two models' answers, four workers for each pair, with times (Miranda et al. 2024)."""

from dataclasses import dataclass

from tasks.choices import Choices

ANNOTATIONS = ("normal_worker_annotations", "expert_worker_annotations")
JUDGED = " UNION ALL ".join(
    f"SELECT text, completion_a, completion_b, UNNEST({column}) AS w FROM data" for column in ANNOTATIONS
)


@dataclass(frozen=True)
class MultiPref(Choices):
    """A judgement is a worker's overall preference; those who call it clear or slight count alike, and ties are dropped.

    Columns were collected from code that reads the data set. No revision could be verified: give
    hub = "allenai/multipref@COMMIT", or a local file.
    """

    paper = "Miranda et al. 2024, MultiPref"
    licence = "ODC-BY-1.0"

    hub: str = "allenai/multipref"
    query: str = f"""
        WITH judged AS ({JUDGED})
        SELECT w.evaluator AS user, text AS prompt, completion_a, completion_b, w.time_spent AS seconds,
            CASE WHEN w.overall_pref LIKE 'A-is-%' THEN 'a' WHEN w.overall_pref LIKE 'B-is-%' THEN 'b'
                WHEN w.overall_pref = 'Tie' THEN 'tie' END AS winner
        FROM judged"""
    responses: tuple[str, ...] = ("completion_a", "completion_b")
    winner: str = "winner"
