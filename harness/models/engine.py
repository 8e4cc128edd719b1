"""Selection of the engine that runs a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import UserError
from harness.models.base import Engine
from harness.models.names import EngineName
from harness.models.on_transformers import Transformers
from harness.models.on_vllm import VLLM
from harness.models.tokens import check_architecture


def open_engine(
    engine: EngineName,
    folder: Path,
    use: Literal["sample", "answer", "embed", "classify"],
    *,
    dtype: str = "float32",
    max_length: int | None = None,
    tensor_parallel: int = 1,
    layers: tuple[int, int] | None = None,
) -> Engine:
    """Load the model in a folder for one use, on the GPU where there is one.

    dtype: that of weights and arithmetic: float32, bfloat16 or float16. max_length: lowers the context length.
    tensor_parallel: number of GPUs that share the model, with vLLM only. layers: vectors are means of the model's states
    after layers `layers[0]` to `layers[1]`, counted from 1, with transformers only; None for its output. Raises
    UnavailableError where vLLM is not installed.
    """
    check_architecture(folder, use, engine)
    if engine == "vllm":
        return VLLM(folder, use, dtype, max_length, tensor_parallel)
    if tensor_parallel != 1:
        raise UserError(
            f"transformers runs on one GPU, not on {tensor_parallel}", "use the engine vllm, or one GPU for each model"
        )
    return Transformers(folder, use, dtype, max_length, layers)
