"""The words of a published configuration (autoencoder with DDPM: sections global, data, encoder, ..., transfer) in our own.

They are understood below ``integrate:`` in config.yaml. Each of its keys is read as one of ours, or known and without effect; the table
says which. ``training.sessions`` is a list of phases, which ``--phases`` reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from sctool.errors import SctoolError


class Read(NamedTuple):
    """What a published key says: our dotted keys and their values, and what the user should know."""

    values: dict[str, Any]
    note: str = ""


Rule = Callable[[Any, dict[str, Any]], Read]
"""Of a value and its whole section; raises ValueError with a few words."""


def _to(key: str) -> Rule:
    """The same value under our key."""
    return lambda value, _: Read({key: value})


def _text(key: str) -> Rule:
    """The same value as a string; ``auto`` leaves our default."""
    return lambda value, _: Read({} if value == "auto" else {key: str(value)})


def _number(key: str) -> Rule:
    """A number, also one that YAML takes for a string, as 1e-3 without a dot; ``auto`` leaves our default."""
    return lambda value, _: Read({} if value == "auto" else {key: _as_number(value)})


def _word(key: str, words: dict[Any, str], **reasons: str) -> Rule:
    """One of some words; those with a reason have no effect."""

    def rule(value: Any, _: dict[str, Any]) -> Read:
        for theirs, ours in words.items():
            if value == theirs:
                return Read({key: ours})
        if isinstance(value, str) and value in reasons:
            return Read({}, f"{value} has no effect: {reasons[value]}")
        valid = ", ".join(str(word).lower() if isinstance(word, bool) else str(word) for word in (*words, *reasons))
        raise ValueError(f"give one of {valid}")

    return rule


def _unused(reason: str, *same: Any) -> Rule:
    """No effect; nothing is said of the values that ask for what happens anyway."""
    return lambda value, _: Read({}, "" if value in same else f"no effect: {reason}")


def _widths(value: Any, _: dict[str, Any]) -> Read:
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of widths, as [128, 128]")
    widths = [_as_number(width) for width in value]
    note = f"all {len(widths)} layers get the last width, {widths[-1]}" if len(set(widths)) > 1 else ""
    return Read({"integrate.n_hidden": widths[-1], "integrate.n_layers": len(widths)}, note)


def _kl_warmup(value: Any, section: dict[str, Any]) -> Read:
    if section.get("n_epochs") is None:
        return Read({}, "no effect: without n_epochs; train.warmup is the share of the epochs")
    return Read({"train.warmup": min(1.0, _as_number(value) / max(1, _as_number(section["n_epochs"])))})


def _sessions(value: Any, _: dict[str, Any]) -> Read:
    if not isinstance(value, list):
        raise ValueError("give a list of phases")
    return Read({}, f"{len(value)} phases; to train them one after the other, give this file to --phases too")


def _as_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("give a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("give a number") from None
    return int(number) if number.is_integer() else number


SIZES = "sizes are read from the file"
VALUES = "what X holds is judged by its values"
LAYER_NORM = "layers are normalised by LayerNorm"
LINEAR = "the classifier is linear, on the code"
SHAPE = "the decoder has the encoder's layers"
SHARES = "shares are learned"
FIXED_SCHEDULE = "fixed by the schedule"
EMBEDDED = "conditions are embedded at the width of the layers"
CONSTANT = "train.lr_decay is none or cosine"
PLACE = "--out and --name say where"
WRITTEN = "it is always written"

TABLE: dict[str, dict[str, Rule]] = {
    "global": {
        "latent_dim": _number("integrate.n_latent"),
        "n_diffusion_steps": _number("diffusion.steps"),
        "n_genes": _unused(SIZES),
        "n_batches": _unused(SIZES),
        "n_cell_types": _unused(SIZES),
        "supervised": _word("integrate.mode", {True: "auto", False: "unsupervised", "semi": "semi"}),
        "eps": _unused("no logarithm here needs it"),
        "dropout": _number("integrate.dropout"),
        "use_batch_norm": _unused(LAYER_NORM, False),
    },
    "data": {
        "train_data_path": _to("data.path"),
        "val_data_path": _unused("validation cells are data.validation of the training file"),
        "test_data_path": _unused("apply the trained model to it with --model"),
        "log_transform": _unused(VALUES),
        "normalize": _unused(VALUES),
        "cell_type_key": _to("data.label_key"),
        "batch_key": _to("data.batch_key"),
        "counts_layer": _text("data.counts_layer"),
        "n_top_genes": _number("data.n_top_genes"),
        "unlabeled": _to("integrate.unlabeled"),
        "shared_batches": _unused("batches of one name are one batch", True),
    },
    "encoder": {
        "hidden_dims": _widths,
        "dropout": _number("integrate.dropout"),
        "use_batch_norm": _unused(LAYER_NORM, False),
        "use_layer_norm": _unused(LAYER_NORM, True),
        "input_transform": _unused("the input is log1p of counts per 10,000", "log1p"),
        "n_batch_embed": _unused("the batch is told to every layer; integrate.batch_dropout says how seldom"),
        "batch_dropout": _number("integrate.batch_dropout"),
    },
    "classifier": {
        "hidden_dim": _unused(LINEAR),
        "n_layers": _unused(LINEAR),
        "batch_embed_dim": _unused(LINEAR),
        "dropout": _unused(LINEAR),
    },
    "likelihood": {
        "hidden_dim": _unused(SHAPE),
        "n_layers": _unused(SHAPE),
        "dispersion_mode": _word("integrate.dispersion", {"gene": "gene", "gene-batch": "gene-batch", "gene_batch": "gene-batch"}),
        "use_library_size": _unused("expression is decoded at the depth of the cell", True),
        "distribution": _to("integrate.likelihood"),
    },
    "prior": {
        "cell_type_prior_probs": _unused(SHARES),
        "batch_prior_probs": _unused(SHARES),
        "type": _word("integrate.prior", {"auto": "mixture", "mixture": "mixture", "normal": "normal"}, vamp="the prior stays as it is"),
        "novel_weight": _number("integrate.novel_weight"),
        "n_components": _number("integrate.n_components"),
    },
    "ddpm_forward": {
        "beta_schedule": _to("diffusion.schedule"),
        "beta_min": _unused(FIXED_SCHEDULE),
        "beta_max": _unused(FIXED_SCHEDULE),
    },
    "ddpm_backward": {
        "variance_type": _unused("the variance is fixed", "fixed"),
        "noise_hidden_dim": _number("diffusion.n_hidden"),
        "noise_n_layers": _number("diffusion.n_layers"),
        "timestep_embed_dim": _unused("steps are embedded in 64 dimensions", 64),
        "celltype_embed_dim": _unused(EMBEDDED),
        "dropout": _unused("the denoiser has none", 0),
    },
    "training": {
        "n_epochs": _number("train.epochs"),
        "batch_size": _number("train.batch_size"),
        "learning_rate": _number("train.lr"),
        "weight_decay": _number("train.weight_decay"),
        "grad_clip_norm": _number("train.grad_clip"),
        "lr_scheduler": _word("train.lr_decay", {"cosine": "cosine"}, step=CONSTANT, plateau=CONSTANT),
        "lr_warmup_epochs": _unused("the learning rate starts at its full height", 0),
        "log_interval": _unused("each epoch is shown and kept in history.csv"),
        "checkpoint_interval": _unused("the state is saved by the clock, train.checkpoint_seconds"),
        "checkpoint_dir": _unused(PLACE),
        "device": _text("device"),
        "use_amp": _word("train.precision", {True: "bf16", False: "fp32"}),
        "seed": _number("seed"),
        "sessions": _sessions,
        "n_epochs_kl_warmup": _kl_warmup,
        "kl_weight_max": _number("integrate.kl_weight"),
        "classification_ratio": _number("integrate.classification_weight"),
        "n_samples_per_label": _unused("--sampler balanced draws labels evenly"),
        "cycle_weight": _number("integrate.cycle_weight"),
        "adversarial_weight": _unused("there is no adversary", 0),
        "early_stopping_patience": _number("train.patience"),
        "val_fraction": _number("data.validation"),
    },
    "diffusion": {
        "n_steps_train": _number("diffusion.train_steps"),
        "batch_size": _number("diffusion.batch_size"),
        "lr": _number("diffusion.lr"),
        "ema": _number("diffusion.ema"),
        "prediction": _unused("v is predicted", "v"),
        "min_snr_gamma": _unused("it is 5", 5),
        "p_null_label": _number("diffusion.drop_type"),
        "p_null_batch": _number("diffusion.drop_batch"),
    },
    "elbo": {"joint": _unused("the diffusion is trained after the autoencoder", False)},
    "inference": {
        "use_ddpm_refinement": _to("integrate.refine"),
        "n_refinement_steps": _number("integrate.refine_steps"),
        "default_target_batch": _text("integrate.target_batch"),
        "save_latent_embeddings": _unused(WRITTEN, True),
        "save_corrected_expression": _unused(WRITTEN, True),
        "save_cell_type_predictions": _unused(WRITTEN, True),
        "output_dir": _unused(PLACE),
        "refinement_method": _to("integrate.refine_method"),
        "refinement_target": _to("integrate.refine_target"),
        "refinement_grid": _number("integrate.refine_grid"),
        "refinement_min_confidence": _number("integrate.refine_min_confidence"),
        "refinement_blend": _number("integrate.refine_blend"),
    },
    "transfer": {
        "mode": _to("integrate.transfer"),
        "replay_fraction": _number("integrate.replay_share"),
        "l2sp": _number("integrate.anchor_weight"),
        "lr_scale": _number("integrate.lr_scale"),
    },
}
"""Sections in the order in which they win over each other: what ``global`` says holds where the own section says nothing."""


def is_published(name: str, value: Any) -> bool:
    """Whether a key below ``integrate:`` is a section; our own keys there are none, though some have the same names."""
    return isinstance(value, dict) or (value is None and name in TABLE)


def read_published(tree: dict[str, dict[str, Any] | None]) -> tuple[dict[str, Any], list[str]]:
    """Published sections in our words.

    Parameters
    ----------
    tree
        Sections by name; a key whose value is null says nothing.

    Returns
    -------
    values, notes
        Our dotted keys and their values, not judged yet; and what has no effect, or not all of it, by reason.

    Raises
    ------
    SctoolError
        Listing every unknown key, with the nearest valid one, and every value that cannot be read.
    """
    values: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    problems = [f"unknown section integrate.{name}{_nearest(name, list(TABLE))}" for name in tree if name not in TABLE]
    for name, rules in TABLE.items():
        section = tree.get(name) or {}
        for key, value in section.items():
            if key not in rules:
                problems.append(f"unknown key integrate.{name}.{key}{_nearest(key, list(rules))}")
            elif value is not None:
                try:
                    read = rules[key](value, section)
                except ValueError as error:
                    problems.append(f"integrate.{name}.{key}: {error} (found {value!r})")
                    continue
                values |= read.values
                if read.note:
                    notes.setdefault(read.note, []).append(f"{name}.{key}")
    if problems:
        raise SctoolError("; ".join(problems), "mend them in config.yaml; keys of the published configuration go below integrate:")
    return values, [f"{', '.join(keys)}: {note}" for note, keys in notes.items()]


def _nearest(name: Any, valid: list[str]) -> str:
    near = difflib.get_close_matches(str(name), valid, n=1)
    return f"; did you mean {near[0]}?" if near else f" (valid here: {', '.join(valid)})"
