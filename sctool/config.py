"""Every default a user may want to change, as pydantic models of ``config.yaml``.

A value comes from: the default here < ``config.yaml`` < the command line. An unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sctool.errors import SctoolError
from sctool.published_config import TABLE, is_published, read_published


class Section(BaseModel):
    """A frozen block of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
}
"""Where a model's defaults differ from those below, which are scVI's."""


class DataConfig(Section):
    """Which file, which columns, which genes, which cells."""

    path: str | None = None
    atlas: str | None = None
    atlas_count: int | None = Field(None, ge=0)
    total_cells: int | None = Field(None, ge=1)
    batch_key: str | None = None
    label_key: str | None = None
    group_key: str | None = None
    counts_layer: str | None = None
    cells: str | None = None
    hold_out: str | None = None
    n_top_genes: int = Field(2000, ge=0)
    target_sum: float = Field(10_000.0, ge=0)
    validation: float = Field(0.1, ge=0, lt=1)
    min_gene_coverage: float = Field(0.5, ge=0, le=1)
    skip_empty: bool = False
    backed: bool = False
    cache_dir: str | None = None


class TrainConfig(Section):
    """The training loop, shared by all torch models."""

    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    adam_eps: float = Field(0.01, gt=0)
    grad_clip: float = Field(0.0, ge=0)
    lr_decay: Literal["none", "cosine"] = "none"
    ema: float = Field(0.0, ge=0, lt=1)
    warmup: float = Field(0.25, ge=0, le=1)
    patience: int = Field(45, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    sampler: Literal["uniform", "adaptive", "balanced"] = "uniform"
    balance_cap: float = Field(3.0, ge=1)
    inference_chunk: int = Field(4096, ge=1)
    checkpoint_seconds: float = Field(20.0, ge=0)


class ARConfig(Section):
    """Adaptive resampling; used when ``train.sampler`` is ``adaptive`` (``--ar``)."""

    bins: int = Field(100, ge=1)
    smoothing: float = Field(1e-4, ge=0)
    warmup: int = Field(1, ge=0)
    refresh: Literal["epoch", "online"] = "epoch"
    density: Literal["histogram", "knn"] = "histogram"
    draw: Literal["multinomial", "systematic"] = "multinomial"
    max_ratio: float | None = Field(None, ge=1)
    temper: float = Field(1.0, ge=0, le=1)
    embedding: str | None = None


class SCVIConfig(Section):
    """scVI; the sizes of scvi-tools' defaults."""

    n_latent: int = Field(10, ge=1)
    n_hidden: int = Field(128, ge=1)
    n_layers: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    likelihood: Literal["nb", "zinb"] = "nb"
    dispersion: Literal["gene", "gene-batch"] = "gene"
    norm: Literal["batch", "layer"] = "batch"
    input: Literal["counts", "proportions"] = "counts"


class SCGenConfig(Section):
    """scGen: the network, which cells are held out, and how a group's response is made from the others'."""

    n_latent: int = Field(32, ge=1)
    n_hidden: int = Field(256, ge=1)
    n_layers: int = Field(2, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    kl_weight: float = Field(5e-5, ge=0)
    condition_key: str | None = None
    control: str | None = None
    perturbed: str | None = None
    held_out: str | None = None
    control_share: float = Field(1.0, ge=0, le=1)
    in_distribution: str | None = None
    random_share: float | None = Field(None, gt=0, lt=1)
    delta: Literal["similar", "mean", "nearest"] = "similar"
    similarity: float | None = Field(None, ge=0)
    residual: bool = True
    blend: float = Field(0.5, ge=0, le=1)
    floor: float = Field(0.3, gt=0)
    min_cells: int = Field(10, ge=1)


class IntegrateConfig(Section):
    """Integration: the autoencoder and its prior, how labels are used, what is refined, and what passes from phase to phase."""

    mode: Literal["auto", "supervised", "semi", "unsupervised"] = "auto"
    unlabeled: list[str] = ["Unknown", "unknown", "nan", "NA", ""]
    n_latent: int = Field(20, ge=1)
    n_hidden: int = Field(128, ge=1)
    n_layers: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    likelihood: Literal["nb", "zinb"] = "nb"
    dispersion: Literal["gene", "gene-batch"] = "gene"
    batch_dropout: float = Field(0.1, ge=0, lt=1)
    kl_weight: float = Field(0.6, ge=0)
    prior: Literal["mixture", "normal"] = "mixture"
    n_components: int = Field(10, ge=1)
    novel_weight: float = Field(0.05, gt=0, lt=1)
    classification_weight: float = Field(50.0, ge=0)
    cycle_weight: float = Field(0.0, ge=0)
    finetune_epochs: int = Field(40, ge=0)
    score: bool = True
    refine: bool = False
    refine_method: Literal["bridge", "sdedit_mean", "none"] = "bridge"
    refine_steps: int = Field(200, ge=1)
    refine_grid: int = Field(50, ge=2)
    refine_min_confidence: float = Field(0.8, ge=0, le=1)
    refine_min_cells: int = Field(10, ge=1)
    refine_blend: float = Field(1.0, ge=0, le=1)
    refine_target: str = "auto"
    target_batch: str = "average"
    transfer: Literal["replay", "finetune", "surgery"] = "replay"
    replay_share: float = Field(0.25, ge=0, lt=1)
    lr_scale: float = Field(0.3, gt=0)
    anchor_weight: float = Field(1e-3, ge=0)


class DiffusionConfig(Section):
    """The diffusion of latent codes."""

    schedule: Literal["cosine", "linear", "quadratic"] = "cosine"
    steps: int = Field(400, ge=2)
    n_hidden: int = Field(128, ge=1)
    n_layers: int = Field(3, ge=1)
    train_steps: int = Field(3000, ge=0)
    batch_size: int = Field(256, ge=2)
    lr: float = Field(1e-3, gt=0)
    ema: float = Field(0.995, ge=0, lt=1)
    drop_type: float = Field(0.15, ge=0, lt=1)
    drop_batch: float = Field(0.3, ge=0, lt=1)


class ClassifyConfig(Section):
    """Classification: features, models, what is held out, and how far the answers are to be trusted."""

    models: list[str] = ["lr", "svm"]
    features: str = "hvg"
    markers: int = Field(500, ge=0)
    thin: int = Field(0, ge=0)
    unit_length: bool = True
    split_key: str | None = None
    split_train: list[str] = []
    split_test: list[str] = []
    missing_labels: list[str] = ["nan", "NaN", "NA", "N/A", "None", "", "Unknown", "unknown", "Unassigned", "unassigned"]
    min_cells: int = Field(1, ge=1)
    max_cells: int | None = Field(None, ge=1)
    cv: str = "auto"
    inner_folds: int = Field(3, ge=2)
    imbalance: Literal["none", "balanced", "sqrt", "oversample", "smote"] = "balanced"
    calibrate: Literal["temperature", "isotonic", "none"] = "temperature"
    reject: str = "quantile:0.95"
    tune: bool = False
    explain: bool = False
    lr_c: float = Field(0.1, gt=0)
    svm_c: float = Field(0.01, gt=0)
    rf: dict[str, Any] = {"n_estimators": 500, "max_features": "sqrt", "min_samples_leaf": 1}
    xgb: dict[str, Any] = {"max_rounds": 300, "eta": 0.1, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.3}
    vote: str | None = None
    min_share: float = Field(0.0, ge=0, le=1)
    hierarchy: str | None = None
    back_off: float = Field(0.8, gt=0, le=1)


class CurveConfig(Section):
    """Learning curves."""

    by: Literal["groups", "cells"] = "groups"
    repeats: int = Field(5, ge=1)
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = [0.01, 0.03, 0.1, 0.3, 1.0]


class NoveltyConfig(Section):
    """Detectors of cells that are of no known type."""

    methods: list[str] = []
    alpha: float = Field(0.05, gt=0, lt=1)
    n_components: int = Field(50, ge=2)
    novel_key: str | None = None
    novel_value: str | None = None
    hold_out: str | None = None


class EvalConfig(Section):
    """How embeddings and predictions are scored."""

    neighbors: int = Field(5, ge=1)
    split_seeds: int = Field(5, ge=1)
    samples: int = Field(0, ge=0)


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
    for key, value in MODEL_DEFAULTS.get(model or "", {}).items():
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
