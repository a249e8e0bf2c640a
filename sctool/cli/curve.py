"""``sctool train curve``: how good a classifier is, by how much it was trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from sctool.cli import options as o
from sctool.cli.classify import Features, Imbalance, Models
from sctool.cli.session import Session, score_table


def curve(
    data: o.Data = None,
    label_key: o.ScoreLabelKey = None,
    group_key: Annotated[str | None, typer.Option(help="obs column of donors or cultures, kept whole.", rich_help_panel="Data")] = None,
    batch_key: Annotated[str | None, typer.Option(help="The same, where there are no donors.", rich_help_panel="Data")] = None,
    models: Models = None,
    features: Features = None,
    by: Annotated[str | None, typer.Option(help="groups: more donors; cells: more cells of each.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Random orders of the groups, or draws of the cells.")] = None,
    fractions: Annotated[list[float] | None, typer.Option(help="With --by cells: shares of the cells.")] = None,
    cv: Annotated[str | None, typer.Option(help="Test groups: auto, leave-one-group-out or groups:K.")] = None,
    imbalance: Imbalance = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the result, as `sctool plot` does.")] = True,
    counts_layer: o.CountsLayer = None,
    n_top_genes: o.TopGenes = None,
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
    """Learning curves of classifiers, tested on the same held-out groups at every size; writes results/curve/RUN/."""
    session = Session(locals(), "curve")
    from sctool.artifacts.result_folder import check_free
    from sctool.bench.classify import check_models

    path = session.data_path(data)
    check_models(session.config.classify.models)
    results = session.out / "results" / "curve" / (session.name or f"{path.stem}-by-{session.config.curve.by}-seed{session.config.seed}")
    check_free(results, force=session.force)
    session.limit_threads()
    from sctool.bench.curve import learning_curve, write_curve
    from sctool.engine.progress import counted

    with counted(None if session.quiet or session.json else session.console) as tick:
        made = learning_curve(path, session.config, say=session.say, tick=tick)
    write_curve(made, results, force=session.force)
    if plots:
        from sctool.report.draw import draw_runs

        draw_runs([results], ["png"], session.say)
    shown = made.summary
    rows = [
        [r["model"], f"{r['size']:g}", f"{r['f1_macro_present_mean']:.3f}", f"{r['f1_macro_present_sd']:.3f}"] for _, r in shown.iterrows()
    ]
    table = score_table("learning curve", ["model", made.axis, "macro F1", "sd"], rows)
    session.result({"results": str(results), **made.metrics}, [table], [*made.lines, str(results)])
