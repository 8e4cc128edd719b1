"""Language models trained by trials: stored with their settings, loaded bit for bit, exported to other programs."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors

from harness import registry
from harness.errors import UserError
from harness.fields import identity_fields, name_at_version, names_by_recorded_name
from harness.method import Method, Run, State
from harness.store.store import Store
from harness.trials.trial import Trial


def export_metadata(trial: Trial) -> dict[str, str]:
    """Return the metadata of a trial's tensor file: its method's name, version and fields.

    The metadata is one JSON entry, because safetensors does not keep several entries in order.
    """
    told = {"method": name_at_version(trial.method), "fields": identity_fields(trial.method)}
    return {"trained": json.dumps(told, sort_keys=True)}


def load_trained_method(store: Store, manifest: dict) -> tuple[Method, State] | None:
    """Return the method and the learned state, bit for bit, of a finished trial; None if it trained no language model.

    Raises UserError where the trial's base model has changed since.
    """
    if "learned.safetensors" not in manifest["files"]:
        return None
    with safetensors.safe_open(store.verified_path(manifest, "learned.safetensors"), "pt") as file:
        if not file.metadata():
            return None
        told = json.loads(file.metadata()["trained"])
        state = {k.removeprefix("state/"): file.get_tensor(k) for k in list(file.keys()) if k.startswith("state/")}
    there = manifest["facts"]["model"]  # the model as the trial named it; the identity names its content
    name = told["method"].partition("@")[0]
    names = names_by_recorded_name(registry.load_class("method", name))
    fields = {names.get(field, field): value for field, value in told["fields"].items()}
    method = registry.make_instance("method", name, fields | {"model": there})
    if (found := identity_fields(method)["model"]) != told["fields"]["model"]:
        raise UserError(
            f"the model {there} has changed since this trial: it is {found} and was {told['fields']['model']}",
            "restore the original model: the trained weights work with no other model",
        )
    return method, state


def has_model_to_export(manifest: dict) -> bool:
    """Return whether `save_trained_model` can export a model from this trial."""
    name = manifest["identity"]["method"].partition("@")[0]
    known = name in registry.list_names("method")  # false for the method of a plug-in that is not loaded now
    return "learned.safetensors" in manifest["files"] and known and registry.load_class("method", name).exports


def save_trained_model(store: Store, manifest: dict, folder: Path) -> str:
    """Write the language model that a trial trained into a new folder, and return how to use it.

    Raises UserError where the trial trained no model, and where the folder is not empty or cannot be written.
    """
    found = load_trained_method(store, manifest) if "files" in manifest else None
    if found is None:
        raise UserError(
            f"the trial {manifest['key']} has no language model to save",
            "name a trial of a method that trains a language model, such as dpo",
        )
    method, state = found
    if not method.exports:
        raise UserError(
            f"{method.name} trains no model that could be saved",
            "name a trial of another policy, such as dpo; this one steers an existing model and trains no copy of it",
        )
    try:
        (folder := folder.absolute()).mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty", "name a new folder, since nothing is overwritten")
        with method.open_predictor(state, Run(0, store=store)) as policy:
            return policy.export(state, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})", "name a folder you can write to") from error
