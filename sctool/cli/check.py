"""``sctool check``: what a file is, and every problem at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sctool.cli import options as o
from sctool.cli.session import Session, score_table


class Job(StrEnum):
    """Models a file can be checked for."""

    scvi = "scvi"
    scgen = "scgen"
    integrate = "integrate"
    classify = "classify"
    cradle = "cradle"
    sampleclr = "sampleclr"


def check(
    file: Annotated[Path, typer.Argument(help="The .h5ad file.")],
    for_: Annotated[Job, typer.Option("--for", help="The model it is meant for.")] = Job.scvi,
    batch_key: o.BatchKey = None,
    label_key: o.LabelKey = None,
    group_key: o.GroupKey = None,
    condition_key: o.ConditionKey = None,
    control: o.Control = None,
    perturbed: o.Perturbed = None,
    held_out: o.HeldOut = None,
    in_distribution: o.InDistribution = None,
    random_share: o.RandomShare = None,
    perturbation_key: o.PerturbationKey = None,
    delimiter: o.Delimiter = None,
    preset: o.Preset = None,
    split: o.Split = None,
    fold: o.Fold = None,
    qc_key: o.QCKey = None,
    split_key: Annotated[str | None, typer.Option(help="obs column to split by.", rich_help_panel="Data")] = None,
    split_train: Annotated[list[str] | None, typer.Option(help="Its values to train on.", rich_help_panel="Data")] = None,
    split_test: Annotated[list[str] | None, typer.Option(help="Its values to test on.", rich_help_panel="Data")] = None,
    features: Annotated[str | None, typer.Option(help="hvg, all, a FILE of genes, or obsm:KEY.", rich_help_panel="Data")] = None,
    sample_key: o.SampleKey = None,
    donor_key: o.DonorKey = None,
    study_key: o.StudyKey = None,
    rep: o.Rep = None,
    task: o.SampleTasks = None,
    counts_layer: o.CountsLayer = None,
    hold_out: o.HoldOut = None,
    n_top_genes: o.TopGenes = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    json_: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what a file is and list every problem with its remedy. Exit code 0 if it is fit for the model, 2 if not."""
    session = Session(locals(), for_.value)
    from sctool.data.check import check_counts_file, describe
    from sctool.data.check_classify import check_classify_file
    from sctool.data.check_integration import check_integration_file
    from sctool.data.check_perturbation import check_perturbation_file
    from sctool.data.check_samples import check_samples_file
    from sctool.data.read import H5ad
    from sctool.data.response import check_response_file

    opened = H5ad(file)
    match for_:
        case Job.scvi:
            checked = check_counts_file(opened, session.config.data)
        case Job.scgen:
            checked = check_response_file(opened, session.config)
        case Job.integrate:
            checked = check_integration_file(opened, session.config)
        case Job.classify:
            checked = check_classify_file(opened, session.config)
        case Job.cradle:
            checked = check_perturbation_file(opened, session.config)
        case Job.sampleclr:
            from sctool.engine.samples import represent

            checked = check_samples_file(opened, session.config, represent)
    rows = describe(checked, session.config.data, for_.value)
    problems = [{"problem": problem.message, "fix": problem.hint} for problem in checked.problems]
    lines = [f"note: {note}" for note in checked.notes]
    lines += [f"problem: {problem['problem']}\n    fix: {problem['fix']}" for problem in problems]
    lines.append(f"{len(problems)} problem{'s' * (len(problems) != 1)} for {for_.value}" if problems else f"ready for {for_.value}")
    session.result(
        {"about": dict(rows), "notes": checked.notes, "problems": problems},
        [score_table("", ["what", "value"], [list(row) for row in rows], "left")],
        lines,
    )
    if problems:
        raise typer.Exit(2)
