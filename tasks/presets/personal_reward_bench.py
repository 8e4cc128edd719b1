"""PersonalRewardBench, PRISM's part: 723 people's choices between two answers, with its own split (Ryan et al. 2025)."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class PersonalRewardBench(Choices):
    """Each person's pairs are split by the data set's makers: what is shown is their train part, what is asked their test.

    Whole people are held out beside, so that methods meet people whom they were not trained on. Columns were collected
    from code that reads the data set. No revision could be verified: give hub = "MichaelR207/prism_personalized_0125@COMMIT",
    or a local file. The part of Chatbot Arena is the preset `personal_reward_bench_arena`.
    """

    paper = "Ryan et al. 2025, SynthesizeMe"
    licence = "not stated; PRISM's human texts are CC-BY-4.0, its model responses CC-BY-NC-4.0"

    hub: str = "MichaelR207/prism_personalized_0125"
    user: str = "user_id"
    prompt: str = "context"
    own_split: str = "split"
