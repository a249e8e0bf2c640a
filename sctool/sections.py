"""The sections of ``config.yaml`` as pydantic models: every default a user may want to change."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen block of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    most_epochs: int = Field(400, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    adam_eps: float = Field(0.01, gt=0)
    grad_clip: float = Field(0.0, ge=0)
    lr_decay: Literal["none", "cosine"] = "none"
    lr_warmup: float = Field(0.0, ge=0, le=1)
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


class CradleConfig(Section):
    """Perturbation response: the screen, its quality flags, what is held out, and the network."""

    perturbation_key: str | None = None
    control: str | None = None
    delimiter: str = Field("+", min_length=1)
    preset: Literal["norman", "dixit", "replogle", "adamson"] | None = None
    size_key: str = "auto"
    model: str = "cradle"
    split: str = "auto"
    train_share: float = Field(0.75, ge=0, le=1)
    test_share: float = Field(0.25, gt=0, le=1)
    fold: str | None = None
    control_share: float = Field(0.5, ge=0, lt=1)
    qc_key: str = "auto"
    qc_mad: float = Field(3.0, gt=0)
    qc_criteria: list[str] = ["counts", "genes", "mt", "ribo", "hb", "doublet"]
    qc_limits: dict[str, float] = {}
    qc_by_batch: bool = False
    n_latent: int = Field(32, ge=1)
    n_hidden: int = Field(128, ge=1)
    n_layers: int = Field(1, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    mode: Literal["sum", "concat"] = "concat"
    guide: Literal["mean_field", "correlated"] = "mean_field"
    mask_prior: float = Field(0.1, gt=0, lt=1)
    embedding_scale: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    particles: int = Field(1, ge=1)
    counterfactual_weight: float = Field(0.1, ge=0)
    counterfactual_cells: int = Field(32, ge=1)
    class_weight: Literal["none", "balanced"] = "none"
    blend: float = Field(0.5, ge=0, le=1)


class SampleCLRConfig(Section):
    """Sample representation: what a sample is, what its cells are read from, what is learned, and how it is tested."""

    sample_key: str | None = None
    donor_key: str | None = None
    study_key: str | None = None
    rep: str | None = None
    n_components: int = Field(30, ge=1)
    min_cells: int = Field(50, ge=1)
    tasks: list[str] = []
    orders: dict[str, list[str]] = {}
    task_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    covariates: list[str] = []
    cv: str = "auto"
    repeats: int = Field(3, ge=1)
    permutations: int = Field(200, ge=0)
    cells_per_view: Annotated[int, Field(ge=1)] | Annotated[list[int], Field(min_length=2, max_length=2)] = [32, 96]
    cell_weights: str | None = None
    preset: Literal["tiny", "middle", "large"] = "tiny"
    n_networks: int = Field(4, ge=2)
    n_heads: int = Field(8, ge=1)
    n_clusters: int = Field(15, ge=0)
    n_values: int = Field(8, ge=0)
    n_hidden: int | None = Field(None, ge=1)
    n_layers: int | None = Field(None, ge=1)
    n_latent: int | None = Field(None, ge=1)
    attention_layers: int = Field(2, ge=1)
    attention_hidden: int | None = Field(None, ge=1)
    norm: Literal["layer", "batch", "none"] = "layer"
    gumbel: bool = True
    loss: Literal["xsample", "infonce_cosine", "infonce_cauchy", "infonce_gaussian", "xsample_bce"] = "xsample"
    temperature: float = Field(1.0, gt=0)
    label_temperature: float = Field(0.1, gt=0)
    graph_temperature: float = Field(0.2, gt=0)
    prior: str = "none"
    prior_scale: float = Field(5.0, gt=0)
    joint_contrast: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    diversity: float = Field(0.1, ge=0)
    task_epochs: int | None = Field(None, ge=1)
    batch_weight: float = Field(5.0, ge=0)


class EvalConfig(Section):
    """How embeddings and predictions are scored."""

    neighbors: int = Field(5, ge=1)
    split_seeds: int = Field(5, ge=1)
    samples: int = Field(0, ge=0)
