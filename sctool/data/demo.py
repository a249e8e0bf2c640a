"""The bundled data: small, real, one file for each job, with the columns each has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_HOMES = (Path(__file__).parents[2] / "data" / "demo", Path(__file__).parents[1] / "_demo")


@dataclass(frozen=True)
class Demo:
    """A bundled file.

    ``settings`` are the keys of config.yaml that fit it; a flag or config.yaml wins over them.
    """

    file: str
    settings: dict[str, str] = field(default_factory=dict)
    atlas: str = ""
    """COLUMN=VALUE of the cells which stand in for an atlas."""

    @property
    def path(self) -> Path:
        """Where it is: in the repository, or inside the installed package."""
        return next((home / self.file for home in _HOMES if (home / self.file).exists()), _HOMES[0] / self.file)


CELLS = Demo("cells.h5ad", {"data.label_key": "cell_type", "data.hold_out": "part=test"}, atlas="part=atlas")
TREATED = Demo(
    "treated.h5ad",
    {
        "data.group_key": "donor",
        "scgen.condition_key": "condition",
        "scgen.control": "control",
        "scgen.perturbed": "panobinostat",
        "scgen.held_out": "PW034",
    },
)
BATCHES = Demo("batches.h5ad", {"data.batch_key": "batch", "data.label_key": "cell_type"})
STRANGERS = Demo("batches.h5ad", {**BATCHES.settings, "novelty.hold_out": "each"})
SCREEN = Demo("perturbations.h5ad", {"cradle.perturbation_key": "perturbation", "cradle.control": "control"})
COHORT = Demo("cohort.h5ad", {"sampleclr.sample_key": "sample", "sampleclr.donor_key": "donor"})
DEMOS = {
    "scvi": CELLS,
    "scgen": TREATED,
    "integrate": BATCHES,
    "classify": BATCHES,
    "curve": BATCHES,
    "novelty": STRANGERS,
    "cradle": SCREEN,
    "sampleclr": COHORT,
}
