"""What every command does first and last: settings, the file, names of runs, and what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from sctool.cli.options import KEYS
from sctool.config import Config, load_config
from sctool.data.demo import DEMOS, Demo
from sctool.errors import SctoolError

if TYPE_CHECKING:
    from sctool.bench.evaluation import Evaluation


class Session:
    """The settings of one command and its two consoles: results to stdout, all else to stderr.

    Parameters
    ----------
    flags
        The parameters of the command function, by name (``locals()``).
    job
        The model, whose defaults apply and whose demo stands in for a file.
    """

    def __init__(self, flags: dict[str, Any], job: str = "scvi") -> None:
        values = {KEYS[name].replace("MODEL", job): value for name, value in flags.items() if name in KEYS}
        if flags.get("ar") is not None:
            if flags["ar"] and flags.get("sampler") not in (None, "adaptive"):
                raise SctoolError(f"--ar and --sampler {flags['sampler']} exclude each other", "give one of them")
            if flags["ar"] or flags.get("sampler") is None:
                values["train.sampler"] = "adaptive" if flags["ar"] else "uniform"
        notes: list[str] = []
        given = flags.get("config"), values, flags.get("set_"), job
        self.config: Config = load_config(*given, notes)
        if job == "cradle" and self.config.cradle.preset:
            from sctool.data.presets import PRESETS

            self.config = load_config(*given, preset=PRESETS[self.config.cradle.preset].settings)
        self.json, self.quiet = bool(flags.get("json_")), bool(flags.get("quiet"))
        self.force, self.resume = bool(flags.get("force")), bool(flags.get("resume"))
        self.name: str | None = flags.get("name")
        if self.name is not None and (not self.name or "/" in self.name or self.name.startswith(".")):
            raise SctoolError(f"--name {self.name!r} is not a folder name", "leave out slashes and leading dots; --out sets the place")
        self.console = Console(stderr=True, quiet=self.quiet or self.json)
        for note in notes:
            self.say(f"note: {note}")
        self.demo: Demo | None = None
        self._job = job
        self._set_threads()

    @property
    def out(self) -> Path:
        """Root of ``checkpoints/`` and ``results/``."""
        return Path(self.config.out)

    def say(self, text: str) -> None:
        """A plain line for people."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def data_path(self, given: Path | None) -> Path:
        """The file of the command line, of config.yaml, or the demo; where it is not the first, the command says which.

        The demo brings the columns it has along; a flag or config.yaml wins over them.
        """
        if given is not None:
            return given
        if self.config.data.path:
            self.say(f"data: {self.config.data.path} (config.yaml)")
            return Path(self.config.data.path)
        if self.config.cradle.preset and self._job == "cradle":
            from sctool.data.presets import PRESETS

            preset = self.config.cradle.preset
            path = PRESETS[preset].path
            if not path.exists():
                raise SctoolError(f"{path}: no such file", f"run `sctool download cradle --only {preset}`, or give the file")
            self.say(f"data: {path}")
            return path
        self.demo = DEMOS[self._job]
        tree = self.config.model_dump()
        keys = {key: key.split(".") for key in self.demo.settings}
        chosen = any(tree["scgen"][key] is not None for key in ("in_distribution", "random_share"))  # they exclude held_out
        fitting = [key for key, (section, name) in keys.items() if tree[section][name] is None and not (name == "held_out" and chosen)]
        self.config = self.config.replaced({key: self.demo.settings[key] for key in fitting})
        said = ", ".join(f"--{keys[key][1].replace('_', '-')} {self.demo.settings[key]}" for key in fitting)
        self.say(f"data: the bundled demo {self.demo.file}" + (f" with {said}" if said else ""))
        return self.demo.path

    def show(self, table: Table) -> None:
        """A table for people, on the way to the result."""
        self.console.print(table)

    def result(self, values: dict[str, Any], tables: Iterable[Table] = (), lines: Iterable[str] = ()) -> None:
        """Print what came out: JSON, or tables and lines; with ``--quiet`` the lines only."""
        stdout = Console()
        if self.json:
            from sctool.artifacts.atomic import strict

            print(json.dumps(strict(values), indent=2, allow_nan=False))  # noqa: T201
            return
        if not self.quiet:
            for table in tables:
                stdout.print(table)
        for line in lines:
            stdout.print(line, highlight=False, markup=False, soft_wrap=True)

    def _set_threads(self) -> None:
        if self.config.threads is None:
            return
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(self.config.threads)

    def limit_threads(self) -> None:
        """Apply ``--threads`` to torch; called once torch is wanted anyway."""
        if self.config.threads is not None:
            import torch

            torch.set_num_threads(self.config.threads)


_SHORT = {
    "f1_macro_present": "macro F1",
    "balanced_accuracy": "balanced",
    "ece": "ECE",
    "coverage": "kept",
    "accuracy_assigned": "right of kept",
    "hierarchical_f1": "hF1",
    "change_r": "r",
    "change_r_top20": "r top 20",
    "change_error": "error",
    "specific_r": "specific r",
    "discrimination_cosine": "rank",
}


def evaluation_table(made: Evaluation, shown: tuple[str, ...] = ()) -> Table:
    """The mean scores of an evaluation; ``shown`` names the columns."""
    shown = shown or (made.columns[:4] if made.decide else made.columns[:2])
    arms = ["arm"] if set(made.summary["arm"]) - {"prediction", "baseline", "ceiling"} else []
    rows = [
        [row["name"], *(row[a] for a in arms), *(f"{row[c]:.3f}" if row[c] == row[c] else "-" for c in shown)]
        for _, row in made.summary.iterrows()
    ]
    return score_table(made.task, ["name", *arms, *(_SHORT.get(c, c.replace("_", " ")) for c in shown)], rows)


def score_table(title: str, columns: list[str], rows: Iterable[list[str]], values: Literal["left", "right"] = "right") -> Table:
    """A table for people: the first column to the left, the others to the right (figures) or left (words)."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else values)
    for row in rows:
        table.add_row(*row)
    return table
