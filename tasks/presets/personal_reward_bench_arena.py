"""PersonalRewardBench, Chatbot Arena's part: 131 people's choices between two answers, with its own split (Ryan et al. 2025)."""

from dataclasses import dataclass

from tasks.presets.personal_reward_bench import PersonalRewardBench as PrismPart


@dataclass(frozen=True)
class PersonalRewardBenchArena(PrismPart):
    """As `personal_reward_bench`. Give hub = "MichaelR207/chatbot_arena_personalized_0125@COMMIT", or a local file."""

    licence = "not stated; see the data set's page"

    hub: str = "MichaelR207/chatbot_arena_personalized_0125"
