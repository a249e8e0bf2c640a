"""The settings of a run, merged from the defaults of :mod:`sctool.sections`, ``config.yaml`` and the command line.

A value comes from: the default here < ``config.yaml`` < the command line. An unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from sctool.errors import SctoolError
from sctool.published_config import TABLE, is_published, read_published
from sctool.sections import (
    ARConfig,
    ClassifyConfig,
    CradleConfig,
    CurveConfig,
    DataConfig,
    DiffusionConfig,
    EvalConfig,
    IntegrateConfig,
    NoveltyConfig,
    SampleCLRConfig,
    SCGenConfig,
    SCVIConfig,
    Section,
    TrainConfig,
)

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "scgen": {
        "data.n_top_genes": 0,
        "train.warmup": 0.0,
        "train.adam_eps": 1e-8,
        "train.batch_size": 64,
        "train.lr": 2e-3,
        "train.epochs": 80,
        "train.patience": 20,
    },
    "integrate": {"data.validation": 0.0, "train.warmup": 1.0},
    "classify": {"data.n_top_genes": 3000, "train.lr": 5e-4},
    "curve": {"data.n_top_genes": 3000, "train.lr": 5e-4},
    "cradle": {"data.n_top_genes": 5000, "train.most_epochs": 200, "train.adam_eps": 1e-8, "train.grad_clip": 100.0},
    "sampleclr": {
        "data.validation": 0.0,
        "train.most_epochs": 200,
        "train.batch_size": 64,
        "train.optimizer": "adamw",
        "train.adam_eps": 1e-8,
        "train.lr": 3e-3,
        "train.weight_decay": 1e-2,
        "train.lr_decay": "cosine",
        "train.lr_warmup": 0.05,
        "train.warmup": 0.5,
    },
}
"""Where a model's defaults differ from those below, which are scVI's."""


class Config(Section):
    """All of ``config.yaml``."""

    seed: int = Field(0, ge=0)
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    out: str = "."
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    ar: ARConfig = ARConfig()
    scvi: SCVIConfig = SCVIConfig()
    scgen: SCGenConfig = SCGenConfig()
    integrate: IntegrateConfig = IntegrateConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    classify: ClassifyConfig = ClassifyConfig()
    curve: CurveConfig = CurveConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    cradle: CradleConfig = CradleConfig()
    sampleclr: SampleCLRConfig = SampleCLRConfig()
    eval: EvalConfig = EvalConfig()

    def replaced(self, settings: dict[str, Any]) -> Config:
        """With other values, by dotted key."""
        tree = self.model_dump()
        for key, value in settings.items():
            section, _, name = key.partition(".")
            if name:
                tree[section][name] = value
            else:
                tree[section] = value
        return Config.model_validate(tree)


def load_config(
    file: Path | None = None,
    flags: dict[str, Any] | None = None,
    sets: list[str] | None = None,
    model: str | None = None,
    notes: list[str] | None = None,
    preset: dict[str, Any] | None = None,
) -> Config:
    """Merge defaults, a YAML file and the command line.

    Parameters
    ----------
    file
        ``--config``; where it is None, ``config.yaml`` of the current folder is read if it is there.
    flags
        Dotted key to value; a value of None means "not given".
    sets
        ``section.key=value`` strings of ``--set``; the value is read as YAML.
    model
        Whose own defaults stand in for the general ones.
    notes
        Filled with what the user should be told of the file.
    preset
        Values by dotted key that stand in for the model's own defaults.

    Raises
    ------
    SctoolError
        Listing every unknown key (with the nearest valid one) and every bad value at once.
    """
    tree = _read_yaml(file)
    _translate(tree, model, [] if notes is None else notes)
    for item in sets or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise SctoolError(f"--set {item!r} is not KEY=VALUE", "write it like --set train.lr=0.0005")
        try:
            _put(tree, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise SctoolError(f"--set {item!r}: the value is not YAML", "quote it for the shell") from error
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value)
    for key, value in {**MODEL_DEFAULTS.get(model or "", {}), **(preset or {})}.items():
        _put_default(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise SctoolError(
            "; ".join(_explain(problem) for problem in error.errors()),
            "see config.yaml for the valid keys, or give --set section.key=value",
        ) from None


def _read_yaml(file: Path | None) -> dict[str, Any]:
    path = file or Path("config.yaml")
    if not path.exists():
        if file is None:
            return {}
        raise SctoolError(f"{path}: no such file", "give the path of a config.yaml after --config")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())[:200]
        raise SctoolError(f"{path} is not valid YAML: {where}", "mend that line") from None
    if not isinstance(tree, dict):
        raise SctoolError(f"{path} holds a {type(tree).__name__}, not sections of keys", "start from the config.yaml of the repository")
    return tree


def _translate(tree: dict[str, Any], model: str | None, notes: list[str]) -> None:
    """Published sections below ``integrate:`` become keys of ours, where these are not given; of what others share, for it alone."""
    own = tree.get("integrate")
    theirs = {name: own.pop(name) for name in list(own) if is_published(name, own[name])} if isinstance(own, dict) else {}
    if not theirs:
        return
    values, said = read_published(theirs)
    put, lost = [], []
    for key, value in values.items():
        if model == "integrate" or key.startswith(("integrate.", "diffusion.")):
            there = _put_default(tree, key, value, over_null=True)
            if there == value:
                put.append(f"{key} {value}")
            else:
                lost.append(f"{key} ({there}, not {value})")
    if model == "integrate":
        notes.append(f"published keys below integrate are read as {', '.join(put) or 'nothing'}")
        notes += [f"our own keys of the file win over published ones: {', '.join(lost)}"] if lost else []
        notes += said


def _put_default(tree: dict[str, Any], dotted: str, value: Any, *, over_null: bool = False) -> Any:
    """Put a value where there is none; return what is there then."""
    section, _, name = dotted.rpartition(".")
    place = tree.setdefault(section, {}) if section else tree
    if not isinstance(place, dict):
        return None
    if over_null and place.get(name) is None:
        place[name] = value
    return place.setdefault(name, value)


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SctoolError(f"--set {dotted}: {parent} is not a section", "see config.yaml for the valid keys")
    tree[last] = value


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg'].lower()} (found {problem['input']!r})"
    if key in TABLE and isinstance(problem["input"], dict):
        return f"unknown key {key}; a section of the published configuration goes below integrate:"
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(location[-1], section.model_fields, n=1)
    if not near:
        return f"unknown key {key} (valid here: {', '.join(section.model_fields)})"
    return f"unknown key {key}; did you mean {'.'.join([*location[:-1], near[0]])}?"
