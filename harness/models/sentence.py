"""How a folder of sentence-transformers makes a vector of a text: its pooling, normalisation, length and prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import UserError

POOLINGS = {  # what a Pooling module may say, in either of its two forms -> the name used here
    **{"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"},
    **{"mean": "mean", "cls": "cls", "lasttoken": "last"},
}
OTHER_POOLING = 'name one yourself: pooling=mean, pooling=last or pooling=cls, without "authors"'


class SentenceVectors(NamedTuple):
    """What the authors of a sentence-transformers model do with its texts and its last layer."""

    pooling: str
    normalize: bool
    max_length: int | None
    prompt: str  # put before every text
    lower_case: bool


def read_sentence_vectors(folder: Path) -> SentenceVectors:
    """Read modules.json and what it names. Raises UserError for a module or a pooling that is not known here."""
    modules = _read_json(folder / "modules.json")
    kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise UserError(f"{folder} has a module {sorted(unknown)[0]} after its last layer", OTHER_POOLING)
    said = _read_json(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {"pooling_mode": "mean"}
    chosen = [said["pooling_mode"]] if "pooling_mode" in said else [n for n, on in said.items() if on is True]
    chosen = [name for name in chosen if name != "include_prompt"]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(f"{folder} pools by {' and '.join(map(str, chosen)) or 'nothing'}", OTHER_POOLING)
    transformer = _read_json(folder / kinds.get("Transformer", "") / "sentence_bert_config.json", {})
    if "message" in transformer.get("modality_config", {}) and (folder / "chat_template.jinja").is_file():
        raise UserError(f"the authors' configuration in {folder} puts texts into its chat template", OTHER_POOLING)
    more = _read_json(folder / "config_sentence_transformers.json", {})
    prompt = (more.get("prompts") or {}).get(more.get("default_prompt_name"), "")
    return SentenceVectors(
        POOLINGS[chosen[0]],
        "Normalize" in kinds,
        transformer.get("max_seq_length"),
        prompt,
        bool(transformer.get("do_lower_case")),
    )


def _read_json(file: Path, otherwise: Any = None) -> Any:
    """Read a JSON file. Raises UserError where it cannot be read and nothing stands in for it."""
    if otherwise is not None and not file.is_file():
        return otherwise
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "copy or download the model's folder again") from error
