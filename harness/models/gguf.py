"""Models in GGUF files, the format of llama.cpp: dequantised once into a folder that every engine can load."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UnavailableError
from harness.models.loading import loading_errors_as_user_errors, new_model_folder

GGUF_VERSION = 1  # raised whenever the same file would become another folder; part of the model's identity


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` in float32, completely or not at all; 15 s for 135 million weights.

    Raises UnavailableError without the package `gguf`, UserError where transformers cannot read the file's architecture.
    """
    import importlib.util

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("the package gguf, which reads GGUF files, is not installed", "pip install gguf")
    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with loading_errors_as_user_errors(file), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        config = AutoConfig.from_pretrained(**where)
        # a model that knows of its quantisation refuses to be saved, so that its weights go into one that does not
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        with new_model_folder(folder) as part:
            plain.save_pretrained(part)
            tokenizer.save_pretrained(part)
