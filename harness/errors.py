"""An error a user can cause and mend: what is wrong, and what to type."""


class Mistake(Exception):
    """Shown as the message, a blank line and `hint:`, without a traceback; the command exits with 2."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"

    def __reduce__(self):
        return type(self), (self.message, self.hint)


class Missing(Mistake):
    """Data that is not at hand: what else was asked for can go on without it."""
