"""What can be wrong with a file of samples, and from a file to its cohort."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from sctool.config import Config
from sctool.data.check import Checked, check_names
from sctool.data.cohort import OWN, Cohort, Task, parse_tasks, sample_means, sample_table, text
from sctool.data.read import H5ad, near
from sctool.data.representation import Representation, open_representation
from sctool.errors import SctoolError

FEWEST_SAMPLES = 4
SHOWN = 5
DONORS = re.compile("donor|patient|subject|individual|participant", re.IGNORECASE)
"""What a column of donors is called like."""
_TRAITS = re.compile(
    "(?i:sex|gender|bmi|race|ethnic|status|group|condition|disease|diagnos|type|stage|outcome|respon|treat|weight|height|(?<![a-z])age)|Age"
)
"""In a name like donor_sex, which is what a donor is like, not who it is."""


@dataclass
class CheckedSamples(Checked):
    """A file, its cohort and its tasks, as far as they could be made."""

    cohort: Cohort | None = None
    tasks: list[Task] = field(default_factory=list)

    def require_cohort(self) -> Cohort:
        """The cohort of a file that is fit; see :meth:`require_fit`."""
        self.require_fit()
        assert self.cohort is not None
        return self.cohort


def check_samples_file(
    file: H5ad, config: Config, represent: Callable[[H5ad, Config], Representation] = open_representation, *, training: bool = True
) -> CheckedSamples:
    """Check a file of samples with the columns, the representation and the tasks of a configuration; every problem at once.

    Parameters
    ----------
    represent
        Opens what cells are read as.
    training
        Whether there must be samples enough to train on, and tasks.
    """
    settings, checked = config.sampleclr, CheckedSamples(file)
    checked.problems += check_names(file, file.var)
    source: Representation | None = None
    try:
        source = represent(file, config)
        checked.notes += source.about.get("notes", [])
    except SctoolError as error:
        checked.problems.append(error)
    for key, flag in (
        (settings.donor_key, "--donor-key"),
        (settings.study_key, "--study-key"),
        (config.data.batch_key, "--batch-key"),
        (config.data.label_key, "--label-key"),
        (settings.cell_weights, "sampleclr.cell_weights"),
        *((key, "sampleclr.covariates") for key in settings.covariates),
    ):
        if key is not None:
            try:
                file.column(key, flag)
            except SctoolError as error:
                checked.problems.append(error)
    try:
        made = _cohort(file, config, source, checked)
    except SctoolError as error:
        checked.problems.append(error)
        return checked
    cohort, varying = made
    for key, flag in ((settings.donor_key, "--donor-key"), (settings.study_key, "--study-key")):
        if key in varying:
            checked.problems.append(
                SctoolError(
                    f"obs[{key!r}] ({flag}) is not one value for each sample ({varying[key]})", "give a --sample-key that tells those apart"
                )
            )
    if config.data.batch_key in varying:
        checked.notes.append(f"obs[{config.data.batch_key!r}] varies within samples; the batch of a sample is its commonest")
    _shared_donors(checked, cohort, config, training=training)
    if training:
        _training(checked, cohort, varying, config)
    checked.cohort = cohort if source is not None else None
    return checked


def _cohort(file: H5ad, config: Config, source: Representation | None, checked: Checked) -> tuple[Cohort, dict[str, str]]:
    settings, obs = config.sampleclr, file.obs
    key, columns = settings.sample_key, list(map(str, obs.columns))
    if key is None:
        raise SctoolError("--sample-key is missing", f"give the obs column of samples; there are: {', '.join(columns[:20])}")
    named = text(file.column(key, "--sample-key"))
    missing = int((named == "").sum())
    if missing:
        checked.notes.append(f"{missing:,} cells have no value in obs[{key!r}] and are left out")
    samples, code_n = np.unique(named, return_inverse=True)
    if samples[0] == "":
        samples, code_n = samples[1:], code_n - 1
    table, varying = sample_table(obs, code_n, samples)
    batch = config.data.batch_key
    if batch in varying:  # pooled samples: the batch of most cells
        commonest = pd.Series(text(obs[batch])).groupby(code_n).agg(lambda values: values.mode().iloc[0])
        table[batch] = commonest.reindex(range(len(samples))).to_numpy()
    own = f"obs_{settings.donor_key}" if settings.donor_key in OWN else settings.donor_key
    donor_s = text(table[own]) if own in table and settings.donor_key != key else samples
    unknown = samples[donor_s == ""]
    if len(unknown):
        raise SctoolError(f"{len(unknown)} samples have no donor in obs[{settings.donor_key!r}], e.g. {unknown[0]}", "fill it in")
    table.insert(1, "donor", donor_s)
    table = table.drop(columns=[f"obs_{name}" for name in (key, settings.donor_key) if f"obs_{name}" in table])
    usable_s = table["n_cells"].to_numpy() >= settings.min_cells
    types = text(obs[config.data.label_key]) if config.data.label_key in obs else None
    given_nf = file.given_embedding(config)
    given_sd = None if given_nf is None else sample_means(given_nf, code_n, len(samples)).astype(np.float32)
    return Cohort(samples, donor_s, code_n, table, obs, types, source, usable_s, given_sd), varying  # type: ignore[arg-type]


def _shared_donors(checked: CheckedSamples, cohort: Cohort, config: Config, *, training: bool) -> None:
    """Without a donor key, a column by which several samples are of one donor: folds would have it on both sides."""
    settings = config.sampleclr
    if settings.donor_key is not None:
        return
    tasks = {said for task in settings.tasks for said in (task, task.rpartition(":")[0])}
    found = []
    for key in map(str, cohort.obs.columns):
        own = f"obs_{key}" if key in OWN else key
        if own not in cohort.table or key == settings.sample_key or not DONORS.search(key) or _TRAITS.search(key) or key in tasks:
            continue
        values = text(cohort.table[own])
        known = values[values != ""]
        if 1 < len(set(known)) < len(known):
            found.append((len(set(known)), len(known), key))
    if not found:
        return
    n_values, n_samples, key = max(found, key=lambda one: one[0])
    there, remedy = f"{n_samples} samples of {n_values} values of obs[{key!r}]", f"--donor-key {key}"
    if training:
        checked.problems.append(
            SctoolError(
                f"{there}, and no --donor-key: samples of one {key} would be on both sides of a split",
                f"give {remedy}, or --donor-key {settings.sample_key} to say that samples are donors",
            )
        )
    else:
        checked.notes.append(f"{there}; each sample counts as a donor of its own without {remedy}")


def _training(checked: CheckedSamples, cohort: Cohort, varying: dict[str, str], config: Config) -> None:
    view = config.sampleclr.cells_per_view
    if not isinstance(view, int) and view[0] > view[1]:
        checked.problems.append(SctoolError(f"--cells-per-view {view[0]}-{view[1]}: the least is above the most", "turn them round"))
    few = cohort.samples[~cohort.usable_s]
    if len(few):
        listed = ", ".join(map(str, few[:SHOWN])) + (", ..." if len(few) > SHOWN else "")
        checked.notes.append(f"{len(few)} samples have fewer than {config.sampleclr.min_cells} cells and are not trained on: {listed}")
    n = int(cohort.usable_s.sum())
    if n < FEWEST_SAMPLES:
        checked.problems.append(
            SctoolError(
                f"{n} of {len(cohort)} samples have {config.sampleclr.min_cells} cells or more; at least {FEWEST_SAMPLES} are needed",
                "lower it with --set sampleclr.min_cells=20" if len(cohort) >= FEWEST_SAMPLES else "give another --sample-key",
            )
        )
    for task in parse_tasks(config, cohort.table, varying):
        if isinstance(task, SctoolError):
            checked.problems.append(task)
        else:
            checked.tasks.append(task)
    unknown = [name for name in (*config.sampleclr.orders, *config.sampleclr.task_weights) if name not in {t.column for t in checked.tasks}]
    if unknown and not checked.problems:
        checked.problems.append(SctoolError(f"{unknown[0]!r} is no task", near(unknown[0], [t.column for t in checked.tasks])))


def open_cohort(path: Path, config: Config, represent: Callable[[H5ad, Config], Representation] = open_representation) -> CheckedSamples:
    """Read a file of samples.

    Raises
    ------
    SctoolError
        With every problem of the file at once.
    """
    checked = check_samples_file(H5ad(path), config, represent)
    checked.require_fit()
    return checked
