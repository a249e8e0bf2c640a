"""Options with the same name and meaning in every command, and the key of config.yaml behind each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_COMMON, _DATA, _TRAIN, _AR = "Common", "Data", "Training", "Adaptive resampling"

Data = Annotated[Path | None, typer.Argument(help="The .h5ad file. Default: data.path of config.yaml, else the bundled demo.")]
Model = Annotated[Path, typer.Argument(help="A model folder, checkpoints/MODEL/RUN.")]
Out = Annotated[str | None, typer.Option(help="Root of checkpoints/ and results/.", rich_help_panel=_COMMON)]
Name = Annotated[str | None, typer.Option(help="Name of the run. Default: made from data, sampler and seed.", rich_help_panel=_COMMON)]
Force = Annotated[bool, typer.Option("--force", help="Replace a finished run of that name.", rich_help_panel=_COMMON)]
Seed = Annotated[int | None, typer.Option(help="Seed of the one random generator.", rich_help_panel=_COMMON)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_COMMON)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_COMMON)]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A config.yaml.", rich_help_panel=_COMMON)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Any key of config.yaml.", rich_help_panel=_COMMON)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_COMMON)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the result only.", rich_help_panel=_COMMON)]

BatchKey = Annotated[str | None, typer.Option(help="obs column of batches to correct for.", rich_help_panel=_DATA)]
LabelKey = Annotated[str | None, typer.Option(help="obs column of cell types. scVI never sees it.", rich_help_panel=_DATA)]
ScoreLabelKey = Annotated[str | None, typer.Option("--label-key", help="obs column of cell types.", rich_help_panel=_DATA)]
GroupKey = Annotated[str | None, typer.Option(help="obs column of donors; validation takes whole donors.", rich_help_panel=_DATA)]
CountsLayer = Annotated[str | None, typer.Option(help="Layer of raw counts (or X, raw/X). Default: found.", rich_help_panel=_DATA)]
HoldOut = Annotated[str | None, typer.Option(metavar="COLUMN=VALUE", help="Cells never trained on.", rich_help_panel=_DATA)]
ScoreOnly = Annotated[str | None, typer.Option("--hold-out", metavar="COLUMN=VALUE", help="Score these cells only.", rich_help_panel=_DATA)]
TopGenes = Annotated[int | None, typer.Option("--n-top-genes", help="Variable genes; 0 takes all.", rich_help_panel=_DATA)]
Backed = Annotated[bool | None, typer.Option("--backed", help="Keep counts on disk, memory-mapped.", rich_help_panel=_DATA)]
Atlas = Annotated[str | None, typer.Option(help="An .h5ad of other cells to mix in.", rich_help_panel=_DATA)]
AtlasCount = Annotated[int | None, typer.Option(help="So many atlas cells replace as many of the base.", rich_help_panel=_DATA)]
TotalCells = Annotated[int | None, typer.Option(help="Training cells in all, drawn at random.", rich_help_panel=_DATA)]

Epochs = Annotated[int | None, typer.Option(help="Most epochs. Default: by the number of cells.", rich_help_panel=_TRAIN)]
BatchSize = Annotated[int | None, typer.Option(help="Cells in a minibatch.", rich_help_panel=_TRAIN)]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate of Adam.", rich_help_panel=_TRAIN)]
Patience = Annotated[int | None, typer.Option(help="Epochs without a better validation loss; 0 never stops.", rich_help_panel=_TRAIN)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=_TRAIN)]
Keep = Annotated[bool, typer.Option("--resume", help="Keep a result of that name that is there already.", rich_help_panel=_COMMON)]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16.", rich_help_panel=_TRAIN)]
SamplerName = Annotated[str | None, typer.Option("--sampler", help="uniform, adaptive or balanced (labels).", rich_help_panel=_TRAIN)]

AR = Annotated[bool | None, typer.Option("--ar/--no-ar", help="Draw rare cell states more often; needs no labels.", rich_help_panel=_AR)]
ARBins = Annotated[int | None, typer.Option(help="Histogram bins of each latent dimension.", rich_help_panel=_AR)]
ARSmoothing = Annotated[float | None, typer.Option(help="Added to the density.", rich_help_panel=_AR)]
ARWarmup = Annotated[int | None, typer.Option(help="First epochs without.", rich_help_panel=_AR)]
ARRefresh = Annotated[str | None, typer.Option(help="epoch or online.", rich_help_panel=_AR)]
ARDensity = Annotated[str | None, typer.Option(help="histogram (published) or knn.", rich_help_panel=_AR)]
AREmbedding = Annotated[str | None, typer.Option(metavar="OBSM_KEY", help="Weights once, from this embedding.", rich_help_panel=_AR)]

ConditionKey = Annotated[str | None, typer.Option(help="obs column of conditions.", rich_help_panel=_DATA)]
Control = Annotated[str | None, typer.Option(help="Its value for untreated cells.", rich_help_panel=_DATA)]
Perturbed = Annotated[str | None, typer.Option(help="Its value for treated cells.", rich_help_panel=_DATA)]
ResponseGroup = Annotated[str | None, typer.Option("--group-key", help="obs column of groups (cell types, donors).", rich_help_panel=_DATA)]
HeldOut = Annotated[
    str | None, typer.Option(metavar="GROUP", help="Its treated cells are never seen, but predicted.", rich_help_panel=_DATA)
]

InDistribution = Annotated[
    str | None, typer.Option(metavar="GROUP", help="Instead: keep half of a group back, both conditions.", rich_help_panel=_DATA)
]
RandomShare = Annotated[
    float | None, typer.Option(help="Instead: a random share of all cells plays the held-out group.", rich_help_panel=_DATA)
]

PerturbationKey = Annotated[str | None, typer.Option(help="obs column of perturbations: A, A+B, control.", rich_help_panel=_DATA)]
Delimiter = Annotated[str | None, typer.Option(help="Between the targets of a combination. Default: +.", rich_help_panel=_DATA)]
Preset = Annotated[str | None, typer.Option(help="norman, dixit, replogle or adamson.", rich_help_panel=_DATA)]
Split = Annotated[str | None, typer.Option(help="ood, singles, cells, none or an obs column.", rich_help_panel=_DATA)]
Fold = Annotated[str | None, typer.Option(metavar="I/K", help="With ood or singles: the fold held out.", rich_help_panel=_DATA)]
ControlShare = Annotated[float | None, typer.Option("--control-share", help="Share of control cells held out.", rich_help_panel=_DATA)]
QCKey = Annotated[str | None, typer.Option(help="auto, none, or an obs column of flags.", rich_help_panel=_DATA)]

SampleKey = Annotated[str | None, typer.Option(help="obs column of samples.", rich_help_panel=_DATA)]
DonorKey = Annotated[
    str | None, typer.Option(help="obs column of donors, kept whole by every split. Default: samples.", rich_help_panel=_DATA)
]
StudyKey = Annotated[str | None, typer.Option(help="obs column of studies, for --cv leave-one-study-out.", rich_help_panel=_DATA)]
Rep = Annotated[
    str | None, typer.Option(help="What cells are read as: obsm:KEY, layers:NAME, X, or a trained model's folder.", rich_help_panel=_DATA)
]
SampleTasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="COLUMN:KIND", help="Predict it: class, regression or ordinal; may be repeated.", rich_help_panel=_DATA),
]

KEYS = {
    "out": "out",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
    "batch_key": "data.batch_key",
    "label_key": "data.label_key",
    "group_key": "data.group_key",
    "counts_layer": "data.counts_layer",
    "hold_out": "data.hold_out",
    "n_top_genes": "data.n_top_genes",
    "backed": "data.backed",
    "atlas": "data.atlas",
    "atlas_count": "data.atlas_count",
    "total_cells": "data.total_cells",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "patience": "train.patience",
    "precision": "train.precision",
    "sampler": "train.sampler",
    "ar_bins": "ar.bins",
    "ar_smoothing": "ar.smoothing",
    "ar_warmup": "ar.warmup",
    "ar_refresh": "ar.refresh",
    "ar_density": "ar.density",
    "ar_embedding": "ar.embedding",
    "n_latent": "MODEL.n_latent",
    "n_hidden": "MODEL.n_hidden",
    "n_layers": "MODEL.n_layers",
    "likelihood": "scvi.likelihood",
    "dispersion": "scvi.dispersion",
    "condition_key": "scgen.condition_key",
    "control": "MODEL.control",
    "perturbation_key": "cradle.perturbation_key",
    "delimiter": "cradle.delimiter",
    "preset": "MODEL.preset",
    "kind": "cradle.model",
    "split": "cradle.split",
    "fold": "cradle.fold",
    "screen_control_share": "cradle.control_share",
    "qc_key": "cradle.qc_key",
    "qc_mad": "cradle.qc_mad",
    "mask_prior": "cradle.mask_prior",
    "particles": "cradle.particles",
    "perturbed": "scgen.perturbed",
    "held_out": "scgen.held_out",
    "control_share": "scgen.control_share",
    "in_distribution": "scgen.in_distribution",
    "random_share": "scgen.random_share",
    "delta": "scgen.delta",
    "mode": "integrate.mode",
    "score": "integrate.score",
    "ddpm_refine": "integrate.refine",
    "refine_steps": "integrate.refine_steps",
    "target_batch": "integrate.target_batch",
    "models": "classify.models",
    "features": "classify.features",
    "split_key": "classify.split_key",
    "split_train": "classify.split_train",
    "split_test": "classify.split_test",
    "cv": "classify.cv",
    "imbalance": "classify.imbalance",
    "tune": "classify.tune",
    "calibrate": "classify.calibrate",
    "reject": "classify.reject",
    "explain": "classify.explain",
    "min_cells": "classify.min_cells",
    "max_cells": "classify.max_cells",
    "vote": "classify.vote",
    "min_share": "classify.min_share",
    "hierarchy": "classify.hierarchy",
    "back_off": "classify.back_off",
    "by": "curve.by",
    "repeats": "curve.repeats",
    "fractions": "curve.fractions",
    "methods": "novelty.methods",
    "alpha": "novelty.alpha",
    "novel_type": "novelty.hold_out",
    "novel_key": "novelty.novel_key",
    "novel_value": "novelty.novel_value",
    "sample_key": "sampleclr.sample_key",
    "donor_key": "sampleclr.donor_key",
    "study_key": "sampleclr.study_key",
    "rep": "sampleclr.rep",
    "task": "sampleclr.tasks",
    "sample_cells": "sampleclr.min_cells",
    "covariate": "sampleclr.covariates",
    "sample_cv": "sampleclr.cv",
    "sample_repeats": "sampleclr.repeats",
    "permutations": "sampleclr.permutations",
    "task_epochs": "sampleclr.task_epochs",
    "prior": "sampleclr.prior",
    "neighbors": "eval.neighbors",
    "splits": "eval.split_seeds",
    "samples": "eval.samples",
}
