"""``sctool train``: one command per model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctool.cli import classify, curve, samples
from sctool.cli import options as o
from sctool.cli.many import ManyValues
from sctool.cli.session import Session, evaluation_table, score_table

if TYPE_CHECKING:
    from sctool.artifacts.model_folder import ModelFolder, RunPlace
    from sctool.config import Config
    from sctool.data.prepare import Prepared

app = typer.Typer(no_args_is_help=True, help="Train a model; every torch model takes --ar.")
app.command("classify", cls=ManyValues)(classify.train)
app.command("curve", cls=ManyValues)(curve.curve)
app.command("sampleclr")(samples.train)
_DATA, _MODEL = "Data", "Model"
SCREEN_SHOWN = ("change_r", "change_r_top20", "change_error", "specific_r", "discrimination_cosine")


@app.command("scvi")
def scvi(
    data: o.Data = None,
    ar: o.AR = None,
    atlas: o.Atlas = None,
    atlas_count: o.AtlasCount = None,
    total_cells: o.TotalCells = None,
    batch_key: o.BatchKey = None,
    label_key: o.LabelKey = None,
    group_key: o.GroupKey = None,
    hold_out: o.HoldOut = None,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    backed: o.Backed = None,
    n_latent: Annotated[int | None, typer.Option(help="Latent dimensions.", rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(help="Units of a hidden layer.", rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Hidden layers.", rich_help_panel=_MODEL)] = None,
    likelihood: Annotated[str | None, typer.Option(help="nb or zinb.", rich_help_panel=_MODEL)] = None,
    dispersion: Annotated[str | None, typer.Option(help="gene or gene-batch.", rich_help_panel=_MODEL)] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    patience: o.Patience = None,
    precision: o.Precision = None,
    sampler: o.SamplerName = None,
    ar_bins: o.ARBins = None,
    ar_smoothing: o.ARSmoothing = None,
    ar_warmup: o.ARWarmup = None,
    ar_refresh: o.ARRefresh = None,
    ar_density: o.ARDensity = None,
    ar_embedding: o.AREmbedding = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train scVI, a variational autoencoder of raw counts; writes checkpoints/scvi/RUN/."""
    session = Session(locals(), "scvi")
    _train(session, "scvi", data)


@app.command("scgen")
def scgen(
    data: o.Data = None,
    ar: o.AR = None,
    condition_key: o.ConditionKey = None,
    control: o.Control = None,
    perturbed: o.Perturbed = None,
    group_key: o.ResponseGroup = None,
    held_out: o.HeldOut = None,
    control_share: Annotated[float | None, typer.Option(help="Share of its control cells to train on.", rich_help_panel=_MODEL)] = None,
    in_distribution: o.InDistribution = None,
    random_share: o.RandomShare = None,
    delta: Annotated[str | None, typer.Option(help="Groups count: similar, mean or nearest.", rich_help_panel=_MODEL)] = None,
    n_latent: Annotated[int | None, typer.Option(help="Latent dimensions.", rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(help="Units of a hidden layer.", rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Hidden layers.", rich_help_panel=_MODEL)] = None,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    patience: o.Patience = None,
    precision: o.Precision = None,
    sampler: o.SamplerName = None,
    ar_bins: o.ARBins = None,
    ar_smoothing: o.ARSmoothing = None,
    ar_warmup: o.ARWarmup = None,
    ar_refresh: o.ARRefresh = None,
    ar_density: o.ARDensity = None,
    ar_embedding: o.AREmbedding = None,
    label_key: o.LabelKey = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train scGen to predict how a group of cells responds to a treatment it was not seen under; writes checkpoints/scgen/RUN/."""
    session = Session(locals(), "scgen")
    _train(session, "scgen", data)


@app.command("cradle")
def cradle(
    data: o.Data = None,
    ar: o.AR = None,
    perturbation_key: o.PerturbationKey = None,
    control: o.Control = None,
    delimiter: o.Delimiter = None,
    preset: o.Preset = None,
    kind: Annotated[
        str | None, typer.Option("--model", help="cradle, sams, cpa, cvae, auto, shrunken, additive, ...", rich_help_panel=_MODEL)
    ] = None,
    split: o.Split = None,
    fold: o.Fold = None,
    screen_control_share: o.ControlShare = None,
    hold_out: o.HoldOut = None,
    qc_key: o.QCKey = None,
    qc_mad: Annotated[float | None, typer.Option(help="Deviations from the median that fail.", rich_help_panel=_DATA)] = None,
    batch_key: o.BatchKey = None,
    label_key: o.LabelKey = None,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
    backed: o.Backed = None,
    n_latent: Annotated[int | None, typer.Option(help="Latent dimensions.", rich_help_panel=_MODEL)] = None,
    n_hidden: Annotated[int | None, typer.Option(help="Units of a hidden layer.", rich_help_panel=_MODEL)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Hidden layers of the encoder.", rich_help_panel=_MODEL)] = None,
    mask_prior: Annotated[float | None, typer.Option(help="Share of latent dimensions a target moves.", rich_help_panel=_MODEL)] = None,
    particles: Annotated[int | None, typer.Option(help="Draws for each minibatch.", rich_help_panel=_MODEL)] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    patience: o.Patience = None,
    precision: o.Precision = None,
    sampler: o.SamplerName = None,
    ar_bins: o.ARBins = None,
    ar_smoothing: o.ARSmoothing = None,
    ar_warmup: o.ARWarmup = None,
    ar_refresh: o.ARRefresh = None,
    ar_density: o.ARDensity = None,
    ar_embedding: o.AREmbedding = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train CRADLE-VAE on a perturbation screen and compare it with simple predictions; writes checkpoints/cradle/RUN/."""
    session = Session(locals(), "cradle")
    train_on_screen(session, session.data_path(data))


def train_on_screen(session: Session, path: Path) -> None:
    """Train on a screen, choosing the model first where asked to, and say how it fares on the cells held out."""
    session.limit_threads()
    from sctool.artifacts.model_folder import amend
    from sctool.engine.perturb import Response, require_model, screen_stages

    require_model(session.config.cradle.model)
    place = run_place(session, "cradle", path)
    if place.finished:
        made = finished_run(session, "cradle", place, but=("model",) if session.config.cradle.model == "auto" else ())
        session.result({"model": str(made.path), **made.manifest["metrics"]}, [], [str(made.path)])
        return
    from sctool.bench.perturbation_choice import choose_model
    from sctool.bench.trained import compare_trained, comparison, held_out_likelihood, limits
    from sctool.data.perturbation import prepare_screen
    from sctool.data.screen import read_screen

    screen, config, chosen = read_screen(path, session.config), session.config, None
    quality = screen.quality.get("table", [])
    if quality:
        session.show(score_table("quality control", ["criterion", "limit", "fail", "share"], quality))
    if config.cradle.model == "auto":
        chosen = choose_model(screen, config, place, session.say)
        config = config.replaced({"cradle.model": chosen.winner})
    prepared = prepare_screen(screen, config)
    made = run_prepared(session, "cradle", prepared, config, place, screen_stages)
    response = Response(made)
    for note in limits(response, screen):
        session.say(f"note: {note}")
    evaluation = compare_trained(response, screen, session.say)
    contents, tables = comparison(evaluation, chosen)
    contents["metrics"] = {**made.manifest["metrics"], **held_out_likelihood(response, prepared, screen)}
    made = amend(made, contents, {**tables, **response.latent_tables()})
    shown = [] if evaluation is None else [evaluation_table(evaluation, SCREEN_SHOWN)]
    lines = [] if evaluation is None else [*evaluation.verdict(), *evaluation.notes]
    session.result({"model": str(made.path), **contents["metrics"], **contents}, shown, [*lines, str(made.path)])


def _train(session: Session, model: str, data: o.Data) -> None:
    """Train a model and print what came out; the same for all of them."""
    made = train_model(session, model, session.data_path(data))
    metrics = made.manifest["metrics"]
    rows = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in metrics.items() if value is not None]
    session.result({"model": str(made.path), **metrics}, [score_table(made.name, ["figure", "value"], rows, "left")], [str(made.path)])


def train_model(session: Session, model: str, path: Path) -> ModelFolder:
    """Train a model on a file, or take the finished one that ``--resume`` finds."""
    session.limit_threads()
    place = run_place(session, model, path)
    if place.finished:
        return finished_run(session, model, place)
    prepared = _prepare(session, model, path)
    if model == "integrate":
        from sctool.engine.integrate import integration_stages

        return run_prepared(session, model, prepared, session.config, place, integration_stages)
    return run_prepared(session, model, prepared, session.config, place)


def run_place(session: Session, model: str, path: Path) -> RunPlace:
    """Where a run is written."""
    from sctool.artifacts.model_folder import RunPlace
    from sctool.engine.device import choose_device, describe_device

    folder = session.out / "checkpoints" / model / (session.name or run_name(session, model, path.stem))
    place = RunPlace(folder, resume=session.resume, force=session.force)
    device = choose_device(session.config.device)
    session.say(f"{folder} is finished already" if place.finished else f"device: {describe_device(device)}")
    return place


def finished_run(session: Session, model: str, place: RunPlace, *, but: tuple[str, ...] = ()) -> ModelFolder:
    """A run that is there, if it was trained with the same settings (those named aside)."""
    from sctool.artifacts.model_folder import open_model

    made = open_model(place.folder)
    sections = session.config.model_dump(include={"data", "train", "ar", "diffusion", model})
    for key in but:
        del sections[model][key]
    made.require_settings(sections, session.config.seed)
    return made


def run_prepared(session: Session, model: str, prepared: Prepared, config: Config, place: RunPlace, stages: Any = None) -> ModelFolder:
    """Train on cells that are ready."""
    from sctool.engine.progress import TerminalReporter
    from sctool.engine.run import one_stage, run_training
    from sctool.models.registry import BUILDERS

    for line in prepared.notes:
        session.say(line)
    reporter = None if session.quiet or session.json else TerminalReporter(session.console)
    return run_training(model, BUILDERS[model], prepared, config, place, stages=stages or one_stage, reporter=reporter)


def _prepare(session: Session, model: str, path: Path) -> Prepared:
    """The cells a model trains on."""
    if model == "scgen":
        from sctool.data.response import prepare_response

        return prepare_response(path, session.config)
    if model == "integrate":
        from sctool.data.integration import prepare_integration

        return prepare_integration(path, session.config, session.demo)
    from sctool.data.prepare import prepare_counts

    return prepare_counts(path, session.config, session.demo)


def run_name(session: Session, model: str, stem: str) -> str:
    """Data, design, sampler and seed: all that usually differs between the runs of a loop."""
    config = session.config
    arm = {"uniform": "standard", "adaptive": "ar", "balanced": "balanced"}[config.train.sampler]
    parts = [stem, f"atlas{config.data.atlas_count}" if config.data.atlas_count is not None else ""]
    if model == "scgen":
        scgen = config.scgen
        parts += [scgen.held_out or "", f"in-{scgen.in_distribution}" if scgen.in_distribution else ""]
        parts += [f"random{scgen.random_share:g}" if scgen.random_share else ""]
        parts += [f"share{scgen.control_share:g}" if scgen.control_share < 1 else ""]
    if model == "cradle":
        cradle = config.cradle
        parts += ["" if cradle.model == "cradle" else cradle.model, "" if cradle.split == "auto" else cradle.split]
        parts += [cradle.fold.replace("/", "of") if cradle.fold else ""]
    if model == "integrate" and config.integrate.mode != "auto":
        parts.append(config.integrate.mode)
    name = "-".join([*filter(None, parts), arm, f"seed{config.seed}"])
    return re.sub(r"[^\w.+-]+", "_", name)
