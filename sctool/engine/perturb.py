"""What a trained model of perturbations says of any combination of targets: changes of the mean, with intervals, and cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctool.artifacts.model_folder import ModelFolder
from sctool.config import Config
from sctool.data.minibatch import CellStore
from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.read import near
from sctool.data.screen import Screen
from sctool.engine.device import own_randomness
from sctool.engine.query import load_module
from sctool.engine.run import Setting, Stage, one_stage
from sctool.errors import SctoolError
from sctool.models.cradle import NETWORKS, CradleVAE
from sctool.models.perturbation.means import Means
from sctool.models.perturbation.predictors import PREDICTORS, predictor
from sctool.models.perturbation.shrunken import Effects
from sctool.models.registry import BUILDERS

CHUNK = 1024
RATIO_FLOOR, MOST_RATIO = 0.01, 10.0
"""Of the factors that make cells agree with the predicted mean: added to both means, and the largest factor."""
Profiles = NDArray[np.float64]


@dataclass(frozen=True)
class Changes:
    """Predicted changes of mean log expression against control, shapes (perturbations, genes)."""

    control_g: NDArray[np.float64]
    """The model's own control."""
    change_pg: Profiles
    sd_pg: Profiles
    """Of the error of the expected change."""


@dataclass(frozen=True)
class Cells:
    """Cells that a perturbation is done to, as the network sees them."""

    names: list[str]
    z_nl: Tensor
    total_n: Tensor
    batch_n: Tensor

    def part(self, start: int, stop: int) -> Cells:
        """Some of them."""
        some = slice(start, stop)
        return Cells(self.names[some], self.z_nl[some], self.total_n[some], self.batch_n[some])


class Response:
    """A trained model of perturbations.

    Parameters
    ----------
    folder
        ``checkpoints/cradle/RUN``.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        self.config = Config.model_validate(folder.manifest["config"])
        self.kind = self.config.cradle.model
        self.module: Any = load_module(folder, BUILDERS["cradle"])
        known = folder.manifest["vocabularies"]
        self.target_sum = float(folder.manifest["data"]["target_sum"])
        self.targets: list[str] = known["target"]
        self.perturbations: list[str] = known["perturbation"]
        self.genes: list[str] = folder.manifest["genes"]["name"]
        arrays = [getattr(self.module, name).double().numpy() for name in ("mean_pg", "variance_pg", "cells_p")]
        (control_g, *_), (variance_g, *_), (cells, *_) = arrays
        mean_pg, variance_pg, cells_p = (array[1:] for array in arrays)
        symbols, names = tuple(_symbols(folder)), tuple(self.perturbations[1:])
        self.means = Means(symbols, names, mean_pg, variance_pg, cells_p, control_g, variance_g, float(cells))

    def columns_of(self, screen: Screen) -> NDArray[np.int64]:
        """Where the genes of the model are in the screen it was trained on."""
        place = {name: at for at, name in enumerate(screen.genes)}
        return np.array([place[name] for name in self.genes])

    def require_known(self, wanted: Sequence[str]) -> None:
        """Refuse perturbations with a target that was never perturbed in training.

        Raises
        ------
        SctoolError
            Naming them, with near matches.
        """
        known = set(self.targets)
        absent = [target for name in wanted for target in targets_of(name) if target not in known]
        if absent:
            raise SctoolError(
                f"{', '.join(dict.fromkeys(absent))} was not perturbed in any training cell of {self.folder.name}",
                near(absent[0], self.targets) + f"; {len(self.targets)} targets are known, e.g. {', '.join(self.targets[:5])}",
            )

    def changes(self, wanted: Sequence[str]) -> Changes:
        """Changes of the mean.

        A perturbation of training cells: their mean, shrunk by the model of means, which no network has improved on. A new combination: the
        network's change counts by ``cradle.blend``; what that leaves of the measured means is shrunk, and added. A target that was never
        perturbed has the usual effect of the others, shrunk.

        Parameters
        ----------
        wanted
            Canonical names.
        """
        shrunken = Effects.fit(self.means)
        made_pg, sd_pg = shrunken.change(wanted), shrunken.deviation(wanted)
        if self.kind in PREDICTORS and self.kind != "shrunken":  # these say nothing of their error
            return Changes(self.means.control_g, predictor(self.kind)(self.means, wanted), np.full_like(sd_pg, np.nan))
        known = set(self.targets)
        new = [at for at, name in enumerate(wanted) if name not in self.perturbations and known & set(targets_of(name))]
        if self._blend and new:
            names, left = [wanted[at] for at in new], self._left
            unseen_p = np.array([sum(target not in known for target in targets_of(name)) for name in names])
            usual_g = left.weight * self.module.network_pg[1:].double().mean(0).numpy()
            made_pg[new] = left.change(names) + self._blend * (self.network_changes(names) + unseen_p[:, None] * usual_g)
            sd_pg[new] = left.deviation(names)
        return Changes(shrunken.control_g, made_pg, sd_pg)

    @property
    def _blend(self) -> float:
        return self.config.cradle.blend if self.kind in NETWORKS else 0.0

    @cached_property
    def _left(self) -> Effects:
        """The model of means, of what the network's share of the change leaves."""
        known_pg = self.means.mean_pg
        return Effects.fit(replace(self.means, mean_pg=known_pg - self._blend * self.module.network_pg[1:].double().numpy()))

    @torch.inference_mode()
    def artifact_shifts(self, wanted: Sequence[str]) -> Profiles:
        """What the usual artifact adds to mean log expression under these perturbations, by the network; shape (wanted, genes)."""
        module: CradleVAE = self.module
        effect_tl, artifact_ql, _ = module.draw(sample=False)
        a_l, effects = module.usual_q @ artifact_ql, [self.effect(effect_tl, name) for name in wanted]
        return torch.stack([module.log_profile(u_l, a_l) - module.log_profile(u_l) for u_l in effects]).double().numpy()

    @torch.inference_mode()
    def network_changes(self, wanted: Sequence[str]) -> Profiles:
        """What the network alone says, shape (wanted, genes)."""
        module: CradleVAE = self.module
        effect_tl = module.draw(sample=False)[0]
        control_g = module.log_profile(self.effect(effect_tl, CONTROL))
        place = {name: at for at, name in enumerate(self.perturbations)}
        made = [
            module.network_pg[place[name]] if name in place else module.log_profile(self.effect(effect_tl, name)) - control_g
            for name in wanted
        ]
        return torch.stack(made).double().numpy()

    @torch.inference_mode()
    def log_weights(self, store: CellStore, rows: NDArray[np.int64], name_n: NDArray[Any], particles: int) -> NDArray[np.float64]:
        """Log importance weights of some cells, particles x cells: one draw of masks, effects and artifacts for each particle.

        Parameters
        ----------
        store
            Of the screen the network was trained on, with its codes.
        name_n
            Canonical perturbations of the rows, seen in training or not.
        """
        module: CradleVAE = self.module
        names, code_n = np.unique(name_n.astype(str), return_inverse=True)
        out = np.empty((particles, len(rows)))
        with own_randomness(store.device):
            torch.manual_seed(self.folder.manifest["seed"])
            for weight_n in out:
                effect_tl, artifact_ql, _ = module.draw()
                effect_pl = torch.stack([self.effect(effect_tl, name) for name in names])
                for at in range(0, len(rows), CHUNK):
                    part = slice(at, at + CHUNK)
                    own = module.log_weights(store.batch(rows[part]), effect_pl, torch.from_numpy(code_n[part]), artifact_ql)
                    weight_n[part] = own.double().numpy()
        return out

    @torch.inference_mode()
    def latent_tables(self) -> dict[str, pd.DataFrame]:
        """``masks``: how likely each target moves each latent dimension; ``embeddings``: the effect of each training perturbation."""
        if self.kind not in NETWORKS:
            return {}
        module: CradleVAE = self.module
        names = [f"z{at + 1}" for at in range(module.config.n_latent)]
        effect_pl = module.design_pt @ module.draw(sample=False)[0]
        embeddings = pd.DataFrame(effect_pl[1:].numpy(), columns=names)
        embeddings.insert(0, "perturbation", self.perturbations[1:])
        if module.mask_logits_tl is None:
            return {"embeddings": embeddings}
        masks = pd.DataFrame(module.mask_logits_tl.sigmoid().numpy(), columns=names)
        masks.insert(0, "target", self.targets)
        return {"masks": masks, "embeddings": embeddings}

    def require_artifact(self) -> None:
        """Refuse a model that has learned of no cell that failed quality control."""
        if self.kind != "cradle" or not self.folder.manifest["vocabularies"]["criterion"]:
            raise SctoolError(
                f"{self.folder.name} knows no artifacts", "train with --model cradle and --qc-key on cells of which some fail"
            )

    def base_cells(self) -> Cells:
        """The control cells of training that the network kept."""
        module: CradleVAE = self.module
        n = len(module.base_z_nl)
        return Cells([f"control-{at}" for at in range(n)], module.base_z_nl, module.base_total_n, module.base_batch_n)

    def factors(self, wanted: Sequence[str], made: Changes) -> Tensor:
        """By what a network's expected counts are multiplied so that means change as ``made`` says, shape (wanted, genes)."""
        shares = [
            np.expm1(made.control_g + change_pg).clip(0) + RATIO_FLOOR for change_pg in (made.change_pg, self.network_changes(wanted))
        ]
        return torch.from_numpy((shares[0] / shares[1]).clip(1 / MOST_RATIO, MOST_RATIO)).float()

    @torch.inference_mode()
    def expected_counts(self, cells: Cells, name_n: Sequence[str] | NDArray[Any], quality: str = "pass") -> Tensor:
        """Expected counts of some cells with these perturbations by the network, shape (cells, genes).

        With ``quality`` of ``fail`` they have the artifact of the usual cell that failed.
        """
        module: CradleVAE = self.module
        effect_tl, artifact_ql, _ = module.draw(sample=False)
        effects = {name: self.effect(effect_tl, name) for name in set(name_n)}
        u_nl = torch.stack([effects[name] for name in name_n])
        a_nl = (module.usual_q @ artifact_ql).expand_as(u_nl) if quality == "fail" else torch.zeros_like(u_nl)
        share_ng = module.logits(cells.z_nl, u_nl, a_nl, cells.batch_n).float().softmax(1)[:, :-1]
        return cells.total_n[:, None] * share_ng

    @torch.inference_mode()
    def drawn_counts(self, expected_ng: Tensor, generator: torch.Generator) -> Tensor:
        """Counts drawn from the negative binomial of the model around their expectation."""
        theta_g = self.module.log_theta.exp()[:-1].expand_as(expected_ng)
        rate_ng = torch._standard_gamma(theta_g, generator=generator) * (expected_ng / theta_g)
        return torch.poisson(rate_ng, generator=generator)

    def effect(self, effect_tl: Tensor, name: str) -> Tensor:
        """Sum of the effects of the targets of a perturbation; one that is not known has none. Shape (latent,)."""
        at = [self.targets.index(target) for target in targets_of(name) if target in self.targets]
        return effect_tl[at].sum(0)


def require_model(name: str) -> None:
    """Refuse a name that is no model's (``cradle.model``)."""
    known = [*NETWORKS, "auto", *PREDICTORS]
    if name not in known:
        raise SctoolError(f"there is no model {name!r} (--model); there are: {', '.join(known)}", near(name, known))


def screen_stages(setting: Setting) -> Iterator[Stage]:
    """The network on the cells; nothing for predictions made of means."""
    if isinstance(setting.module, CradleVAE):
        yield from one_stage(setting)


def _symbols(folder: ModelFolder) -> list[str]:
    """The names of the genes that targets are called by: those of which most are targets."""
    targets = set(folder.manifest["vocabularies"]["target"])
    kinds = folder.manifest["genes"]
    return max(kinds.values(), key=lambda names: len(targets & set(names)))
