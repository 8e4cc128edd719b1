"""Any preference data set of TRL, explicit or implicit prompts, texts or messages, with a column of user ids."""

from dataclasses import dataclass

from tasks.choices import Choices


@dataclass(frozen=True)
class Trl(Choices):
    """`choices` with TRL's own columns: chosen, rejected and, where it is explicit, prompt; and `user`.

    Checked against the formats that TRL documents, of version 1.16.
    """

    paper = "von Werra et al. 2020, TRL"
