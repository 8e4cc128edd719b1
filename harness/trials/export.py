"""Language models that trials trained: kept with their settings, loaded again bit for bit, written for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors

from harness import registry
from harness.errors import UserError
from harness.fields import names_by_recorded_name
from harness.method import Method, Run, State
from harness.store.store import Store
from harness.trials.trial import Trial, identity_fields, name_at_version


def export_metadata(trial: Trial) -> dict[str, str]:
    """What a file of tensors says of the method that learned them: one entry, since several have no order."""
    told = {"method": name_at_version(trial.method), "fields": identity_fields(trial.method)}
    return {"trained": json.dumps(told, sort_keys=True)}


def load_trained_method(store: Store, manifest: dict) -> tuple[Method, State] | None:
    """The method of a finished trial that trained a language model, and what it learned, bit for bit; else None."""
    if "learned.safetensors" not in manifest["files"]:
        return None
    with safetensors.safe_open(store.verified_path(manifest, "learned.safetensors"), "pt") as file:
        if not file.metadata():
            return None
        told = json.loads(file.metadata()["trained"])
        state = {k.removeprefix("state/"): file.get_tensor(k) for k in list(file.keys()) if k.startswith("state/")}
    there = manifest["facts"]["model"]  # where it lay, for what it was
    name = told["method"].partition("@")[0]
    names = names_by_recorded_name(registry.load_class("method", name))
    fields = {names.get(field, field): value for field, value in told["fields"].items()}
    method = registry.make_instance("method", name, fields | {"model": there})
    if (found := identity_fields(method)["model"]) != told["fields"]["model"]:
        raise UserError(
            f"the model {there} is another than the one this trial began with: {found} for {told['fields']['model']}",
            "bring back the one it was; what was learned fits no other",
        )
    return method, state


def has_model_to_export(manifest: dict) -> bool:
    """Whether `save_trained_model` would find something to write."""
    name = manifest["identity"]["method"].partition("@")[0]
    known = name in registry.list_names("method")  # a plug-in that is not named now is not
    return "learned.safetensors" in manifest["files"] and known and registry.load_class("method", name).exports


def save_trained_model(store: Store, manifest: dict, folder: Path) -> str:
    """Writes the language model that a trial trained into a new folder, and returns how to use it.

    Raises UserError where it trained none, and where there is something in the folder.
    """
    found = load_trained_method(store, manifest) if "files" in manifest else None
    if found is None:
        raise UserError(
            f"the trial {manifest['key']} has no language model to save", "trials of policies, such as dpo, have"
        )
    method, state = found
    if not method.exports:
        raise UserError(
            f"{method.name} has no model of its own to write", "it steers the one it is given, as it writes"
        )
    try:
        (folder := folder.absolute()).mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty", "name a new folder: nothing is overwritten")
        with method.open_predictor(state, Run(0, store=store)) as policy:
            return policy.export(state, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})", "name a folder you may write") from error
