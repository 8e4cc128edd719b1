"""PersonalLLM: ten reward models score eight answers to each prompt, and each takes the place of a person (Zollo et al. 2024)."""

from dataclasses import dataclass

from tasks.choices import Choices

REWARD_MODELS = (
    "gemma_2b",
    "gemma_7b",
    "mistral_raft",
    "mistral_ray",
    "mistral_weqweasdas",
    "llama3_sfairx",
    "oasst_deberta_v3",
    "beaver_7b",
    "oasst_pythia_7b",
    "oasst_pythia_1b",
)
SCORED = " UNION ALL ".join(
    f"SELECT '{model}' AS user, prompt, "
    + ", ".join([*(f"response_{i}" for i in range(1, 9)), *(f"response_{i}_{model} AS score_{i}" for i in range(1, 9))])
    + " FROM data"
    for model in REWARD_MODELS
)


@dataclass(frozen=True)
class PersonalLLM(Choices):
    """The ten reward models are the people: the paper's own people are random weightings of them.

    A judgement is one model's scores of the eight answers to a prompt. Columns were collected from code that reads the
    data set. No revision could be verified: give hub = "namkoong-lab/PersonalLLM@COMMIT", or a local file. Ten people are
    two to be asked under each seed: intervals are wide.
    """

    family = "written by models"
    paper = "Zollo et al. 2024, PersonalLLM"
    licence = "see the data set's page"

    hub: str = "namkoong-lab/PersonalLLM"
    query: str = SCORED
    responses: tuple[str, ...] = tuple(f"response_{i}" for i in range(1, 9))
    ratings: tuple[str, ...] = tuple(f"score_{i}" for i in range(1, 9))
