"""Errors of model files: what a library raises for damaged ones, as a UserError that names their folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError


@contextlib.contextmanager
def loading_errors_as_user_errors(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for damaged or unusual files of a model into a UserError that names the folder.

    A lack of memory is not turned.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        said = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise UserError(
            f"the model in {folder} cannot be loaded: {type(error).__name__}: {said}",
            "copy or download its files again: they may be incomplete; or name another model",
        ) from error
