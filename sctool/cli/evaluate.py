"""``sctool eval``: scores with their baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctool.cli import options as o
from sctool.cli import samples
from sctool.cli.many import ManyValues
from sctool.cli.session import Session, evaluation_table
from sctool.errors import SctoolError

if TYPE_CHECKING:
    from sctool.bench.evaluation import Evaluation

INTEGRATION_SHOWN = ("total", "batch", "bio", "ilisi", "kbet", "nmi")
app = typer.Typer(no_args_is_help=True, help="Score models and predictions beside simple baselines.")

app.command("samples", cls=ManyValues)(samples.evaluate)

Models = Annotated[list[Path] | None, typer.Option("--model", help="A model folder; give several to compare them.")]
Neighbors = Annotated[int | None, typer.Option(help="Neighbours in the vote.")]
Splits = Annotated[int | None, typer.Option(help="Random halves to average over.")]
Samples = Annotated[int | None, typer.Option(help="Posterior samples to average; 0 decodes the mean.")]
Embeddings = Annotated[list[str] | None, typer.Option("--embedding", help="Of any tool: obsm:KEY, an .npy or a .csv.")]
Peers = Annotated[bool, typer.Option("--peers", help="Harmony and scvi-tools' scVI too, where installed.")]
IncludeTrained = Annotated[bool, typer.Option("--include-trained", help="Score cells the model was trained on too.")]


@app.command("classification")
def classification(
    data: o.Data = None,
    model: Models = None,
    embedding: Embeddings = None,
    label_key: o.LabelKey = None,
    neighbors: Neighbors = None,
    splits: Splits = None,
    hold_out: o.ScoreOnly = None,
    include_trained: IncludeTrained = False,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    backed: o.Backed = None,
    name: o.Name = None,
    out: o.Out = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Zero-shot k-NN classification in the latent space, on cells the models have not seen; writes results/classification/RUN/."""
    session = Session(locals(), "scvi")
    if not model and not embedding:
        raise SctoolError("nothing to score", "give --model checkpoints/scvi/RUN, or --embedding obsm:KEY")
    path = session.data_path(data)
    results = _place(session, "classification", model or [], embedding or [])
    session.limit_threads()
    from sctool.bench.zero_shot import evaluate_classification

    made = evaluate_classification(path, model or [], embedding or [], session.config, include_trained=include_trained, say=session.say)
    _finish(session, results, made)


@app.command("reconstruction")
def reconstruction(
    data: o.Data = None,
    model: Models = None,
    label_key: o.LabelKey = None,
    samples: Samples = None,
    hold_out: o.ScoreOnly = None,
    include_trained: IncludeTrained = False,
    batch_key: o.BatchKey = None,
    counts_layer: o.CountsLayer = None,
    backed: o.Backed = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Correlation of decoded and observed profiles of cells the models have not seen; writes results/reconstruction/RUN/."""
    session = Session(locals(), "scvi")
    if not model:
        raise SctoolError("nothing to score", "give --model checkpoints/scvi/RUN")
    path = session.data_path(data)
    results = _place(session, "reconstruction", model, [])
    session.limit_threads()
    from sctool.bench.reconstruct import evaluate_reconstruction

    _finish(session, results, evaluate_reconstruction(path, model, session.config, include_trained=include_trained, say=session.say))


@app.command("integration")
def integration(
    data: o.Data = None,
    model: Models = None,
    embedding: Embeddings = None,
    batch_key: o.BatchKey = None,
    label_key: o.ScoreLabelKey = None,
    hold_out: o.ScoreOnly = None,
    peers: Peers = False,
    counts_layer: o.CountsLayer = None,
    backed: o.Backed = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    device: o.Device = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Batch mixing and biology kept (scIB) of embeddings, beside the cells without integration; writes results/integration/RUN/."""
    session = Session(locals(), "integrate")
    if not model and not embedding and not peers:
        raise SctoolError("nothing to score", "give --model checkpoints/integrate/RUN, --embedding obsm:KEY, or --peers")
    path = session.data_path(data)
    results = _place(session, "integration", model or [], (embedding or []) + ["peers"] * (not model and not embedding))
    session.limit_threads()
    from sctool.bench.integration import evaluate_integration

    made = evaluate_integration(path, model or [], embedding or [], session.config, session.say, peers)
    _finish(session, results, made, shown=INTEGRATION_SHOWN)


@app.command("scgen")
def scgen(
    predictions: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="results/scgen/RUN, or .h5ad files of predicted cells.")],
    data: Annotated[Path | None, typer.Option(help="The file with the real cells. Default: the file of training.")] = None,
    condition_key: o.ConditionKey = None,
    control: o.Control = None,
    perturbed: o.Perturbed = None,
    group_key: o.ResponseGroup = None,
    held_out: o.HeldOut = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Predicted against real treated cells, beside simple baselines and the ceiling of real against real.

    The scores of one RUN are written beside its predictions, those of several into results/scgen/NAME/.
    """
    session = Session(locals(), "scgen")
    predictions, results, beside = _predictions_place(session, "scgen", predictions)
    session.limit_threads()
    from sctool.bench.response import evaluate_responses

    made = evaluate_responses(predictions, data, session.config, session.say)
    _finish(session, results, made, beside=beside)


@app.command("perturbation")
def perturbation(
    predictions: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="results/cradle/RUN, or any tool's .h5ad or table.")],
    data: Annotated[Path | None, typer.Option(help="The file with the real cells. Default: the file of training.")] = None,
    perturbation_key: o.PerturbationKey = None,
    control: o.Control = None,
    delimiter: o.Delimiter = None,
    split: Annotated[str | None, typer.Option("--split-key", help="obs column; its value test marks the cells to score.")] = None,
    counts_layer: o.CountsLayer = None,
    name: o.Name = None,
    out: o.Out = None,
    threads: o.Threads = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Predicted against measured changes of perturbations, beside simple baselines, no change, and real halves of the cells.

    The scores of one RUN are written beside its predictions, all else into results/perturbation/NAME/.
    """
    flags = dict(locals())
    session = Session(flags, "cradle")
    given = _given(session, flags, ("perturbation_key", "control", "delimiter", "counts_layer"))
    predictions, results, beside = _predictions_place(session, "perturbation", predictions)
    session.limit_threads()
    from sctool.bench.perturbation import SHOWN, evaluate_perturbations

    made = evaluate_perturbations(predictions, data, session.config, session.say, given)
    _finish(session, results, made, beside=beside, shown=tuple(column for column in SHOWN if column in made.columns))


@app.command("classify", cls=ManyValues)
def classify(
    data: Annotated[Path | None, typer.Option("--truth", help="The .h5ad with the true labels.")] = None,
    predictions: Annotated[list[Path] | None, typer.Option("--pred", help="predictions.csv of any tool, or its folder; several.")] = None,
    label_key: o.ScoreLabelKey = None,
    pred_column: Annotated[str | None, typer.Option(help="Their column of labels. Default: label, y_pred, ...")] = None,
    label_map: Annotated[Path | None, typer.Option(help="TSV: predicted label, what the truth calls it.")] = None,
    hierarchy: Annotated[Path | None, typer.Option(help="TSV: child, parent; adds the hierarchical F1.")] = None,
    group_key: o.GroupKey = None,
    name: o.Name = None,
    out: o.Out = None,
    seed: o.Seed = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Called cell types of any tool against the truth, beside the commonest label; writes results/classify/RUN/."""
    session = Session({k: v for k, v in locals().items() if k != "hierarchy"}, "classify")
    if not predictions:
        raise SctoolError("nothing to score", "give --pred predictions.csv")
    path = session.data_path(data)
    names = [p.resolve().parent if p.name == "predictions.csv" else p.resolve() for p in predictions]
    results = _place(session, "classify", [p.with_name(f"{p.name}-against-{path.stem}") for p in names], [])
    from sctool.bench.labels import evaluate_labels

    made = evaluate_labels(predictions, path, session.config, column=pred_column, label_map=label_map, hierarchy=hierarchy, say=session.say)
    _finish(session, results, made, shown=made.columns)


@app.command("novelty")
def novelty(
    scores: Annotated[Path, typer.Argument(help="scores.csv of any tool (cell, and a column for each method), or its folder.")],
    data: Annotated[Path | None, typer.Option("--truth", help="The .h5ad that says which cells are novel.")] = None,
    novel_key: Annotated[str | None, typer.Option(help="Its column. Default: is_novel of the table.")] = None,
    novel_value: Annotated[str | None, typer.Option(help="Its value that means novel. Default: true, yes, 1.")] = None,
    name: o.Name = None,
    out: o.Out = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    force: o.Force = False,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Novelty scores against the truth, beside a random score; writes results/novelty/RUN/."""
    session = Session(locals(), "novelty")
    folder = scores if scores.is_dir() else scores.parent if scores.name == "scores.csv" else scores
    results = _place(session, "novelty", [folder.with_name(f"{folder.name}-scored")], [])
    from sctool.bench.novelty_scores import evaluate_novelty_scores

    made = evaluate_novelty_scores(scores, data, session.config.novelty.novel_key, session.config.novelty.novel_value, say=session.say)
    _finish(session, results, made, shown=made.columns)


def _given(session: Session, flags: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The settings among some that the command line itself gives, by dotted key."""
    keys = {name: o.KEYS[name].replace("MODEL", "cradle") for name in names}
    said = {word.partition("=")[0].strip() for word in flags.get("set_") or []}
    tree = session.config.model_dump()
    chosen = [key for name, key in keys.items() if flags.get(name) is not None or key in said]
    return {key: tree[key.split(".")[0]][key.split(".")[1]] for key in chosen}


def _predictions_place(session: Session, task: str, predictions: list[Path]) -> tuple[list[Path], Path, bool]:
    """The predictions among some paths, where their scores go, and whether that is beside those of the only run."""
    from sctool.artifacts.atomic import read_json
    from sctool.artifacts.result_folder import check_free

    missing = [path for path in predictions if not path.exists()]
    if missing:
        model = "cradle" if task == "perturbation" else task
        raise SctoolError(f"{missing[0]}: no such folder or file", f"give results/{model}/RUN, as `sctool predict {model}` writes it")
    predictions = [path for path in predictions if path.is_file() or (path / "prediction.json").exists()] or predictions[:1]
    about = predictions[0] / "metrics.json"
    if about.exists() and not (predictions[0] / "prediction.json").exists() and read_json(about).get("task") == "counterfactual":
        raise SctoolError(f"{predictions[0]} holds counterfactual cells, which have no truth to score", "give a run of predictions")
    if len(predictions) == 1 and predictions[0].is_dir() and session.name is None:
        check_free(predictions[0] / "metrics.json", force=session.force)
        return predictions, predictions[0], True
    return predictions, _place(session, task, [path.with_name(path.stem) if path.is_file() else path for path in predictions], []), False


def _place(session: Session, task: str, models: list[Path], embeddings: list[str]) -> Path:
    """The result folder, checked before any work is done."""
    from sctool.artifacts.result_folder import check_free

    names = [path.name.removesuffix(".h5ad") for path in models] + [Path(spec.removeprefix("obsm:")).stem for spec in embeddings]
    name = session.name or (names[0] if len(names) == 1 else f"{names[0]}-and-{len(names) - 1}-more")
    results = session.out / "results" / task / name
    check_free(results, force=session.force)
    return results


def _finish(session: Session, results: Path, made: Evaluation, *, beside: bool = False, shown: tuple[str, ...] = ()) -> None:
    """Write the result, into a folder of its own or beside what is there, and print it."""
    made.write(results, force=session.force, beside=beside)
    session.result({"results": str(results), **made.metrics}, [evaluation_table(made, shown)], [*made.verdict(), *made.notes, str(results)])
