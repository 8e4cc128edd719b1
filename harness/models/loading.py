"""Files of models: folders that are written whole or not at all, and errors of libraries that name the folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError


@contextlib.contextmanager
def new_model_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write a model's files into; it becomes `folder` at the end, unless another process was first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)  # mkdtemp denies access to other users, and safetensors to its files
        for file in part.iterdir():
            file.chmod(0o644)
        part.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process built the same model first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
