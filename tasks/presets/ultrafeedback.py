"""UltraFeedback: GPT-4 rates four answers on four aspects, and each simulated person follows one aspect (Cui et al. 2024)."""

from dataclasses import dataclass
from typing import Literal

from tasks.rated_aspects import RatedAspects


@dataclass(frozen=True)
class UltraFeedback(RatedAspects):
    """`rated_aspects` of UltraFeedback, with all four aspects; its columns and revision were verified."""

    paper = "Cui et al. 2024, UltraFeedback"
    licence = "MIT"

    source: Literal["hfgs", "squality", "ultrafeedback"] = "ultrafeedback"
    aspects: tuple[str, ...] = ("helpfulness", "honesty", "instruction_following", "truthfulness")
