"""What is said of samples: networks for the tasks and a linear probe of the embedding that saw no labels, weighed by what each is worth.

A network finds what a mean of cells hides, but needs donors to learn from; the probe needs few. Each network was trained without a part of
the donors. What it says of these, beside what a probe fitted without them says, sets the weight of the two and the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from sctool.data.cohort import Task
from sctool.data.folds import Rows
from sctool.models.classify.calibration import Calibration
from sctool.models.samples.probe import Probe

Floats = NDArray[np.float64]
_LEAST = 1e-6
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the networks."""


def averaged(task: Task, answers: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Weighted mean of log probabilities of classes, of log-odds of being above each level, or of numbers; shape (samples, outputs)."""
    if task.kind == "regression":
        return sum((w * a_sc for w, a_sc in zip(weights, answers, strict=True)), np.zeros_like(answers[0]))
    if task.kind == "class":
        return softmax(sum(w * np.log(np.maximum(p_sc, _LEAST)) for w, p_sc in zip(weights, answers, strict=True)), axis=1)
    above = [np.clip(1 - np.cumsum(p_sc, 1)[:, :-1], _LEAST, 1 - _LEAST) for p_sc in answers]
    above_sk = expit(sum(w * logit(one) for w, one in zip(weights, above, strict=True)))
    edge_s1 = np.ones((len(above_sk), 1))
    full = np.hstack([edge_s1, above_sk, 0 * edge_s1])
    return full[:, :-1] - full[:, 1:]


def at_shares(p_sc: Floats, share_c: Floats | None) -> Floats:
    """Probabilities as if all classes were as frequent, to what they are at these frequencies; None leaves them."""
    if share_c is None:
        return p_sc
    weighed_sc = p_sc * share_c
    return weighed_sc / np.maximum(weighed_sc.sum(1, keepdims=True), 1e-300)


def probed(task: Task, train_sd: NDArray[Any], truth_s: Floats, test_sd: NDArray[Any], share_c: NDArray[Any] | None = None) -> Floats:
    """Answers of the linear probe, shape (samples, outputs); NaN for samples without an embedding.

    Parameters
    ----------
    train_sd, test_sd
        Embeddings.
    truth_s
        Codes of classes or levels, or numbers, of the training samples; those of NaN are left out.
    share_c
        Of the classes, where it is not that in training: folds need the same, or what a fold holds out tells its ranks.
    """
    n_outputs = 1 if task.kind == "regression" else len(task.order)
    prior_c = None if share_c is None else np.asarray(share_c, np.float64)
    fit_s = np.isfinite(truth_s) & np.isfinite(train_sd).all(1)
    there_s = np.isfinite(test_sd).all(1)
    made = np.full((len(test_sd), n_outputs), np.nan)
    probe = Probe(task.kind, n_outputs)
    made[there_s] = probe.answers(train_sd[fit_s], truth_s[fit_s][None], test_sd[there_s], prior_c).values_bsc[0]
    return made


@dataclass(frozen=True)
class Blend:
    """How the answers of networks and probe become one.

    Attributes
    ----------
    weight
        Of the networks, 0 to 1.
    calibration
        Of the probabilities of classes.
    share_c
        How frequent classes are, for the probe.
    """

    weight: float
    calibration: Calibration
    share_c: Floats | None

    @classmethod
    def fit(
        cls,
        task: Task,
        network_ksc: Sequence[Floats],
        embedding_sd: NDArray[Any],
        truth_s: Floats,
        inner: Sequence[tuple[Rows, Rows]],
        share_c: Floats | None = None,
    ) -> Blend:
        """From what each network and a probe like it say of the samples they were not trained on.

        Parameters
        ----------
        network_ksc
            Answers of each network for all samples, as if all classes were as frequent, as it is trained.
        inner
            Of each network the samples it was trained on and those of other donors.
        share_c
            How frequent classes are.
        """
        said: list[tuple[Floats, Floats, Floats]] = []
        for answers_sc, (train, held) in zip(network_ksc, inner, strict=True):
            held = held[np.isfinite(truth_s[held])]
            if len(held):
                by_probe = probed(task, embedding_sd[train], truth_s[train], embedding_sd[held], share_c)
                said.append((at_shares(answers_sc[held], share_c), by_probe, truth_s[held]))
        if not said:
            return cls(0.5, Calibration(), share_c)
        network, probe, truth = (np.concatenate(parts) for parts in zip(*said, strict=True))
        losses = [_loss(task, averaged(task, (network, probe), (w, 1 - w)), truth) for w in WEIGHTS]
        weight = WEIGHTS[int(np.argmin(losses))]
        if task.kind != "class":
            return cls(weight, Calibration(), share_c)
        blended = averaged(task, (network, probe), (weight, 1 - weight))
        return cls(weight, Calibration.fit("temperature", np.log(np.maximum(blended, _LEAST)), truth.astype(np.int64)), share_c)

    def __call__(self, task: Task, network_ksc: Sequence[Floats], probe_sc: Floats) -> Floats:
        """Of any samples: the mean of the networks, beside the probe; NaN for samples without cells."""
        there_s = np.isfinite(probe_sc).all(1)
        made = np.full(probe_sc.shape, np.nan)
        each = [at_shares(one[there_s], self.share_c) for one in network_ksc]
        networks = averaged(task, each, [1 / len(each)] * len(each))
        made[there_s] = averaged(task, (networks, probe_sc[there_s]), (self.weight, 1 - self.weight))
        if task.kind == "class":
            made[there_s] = self.calibration.proba(np.log(np.maximum(made[there_s], _LEAST)))
        return made

    def to_json(self) -> dict[str, Any]:
        """As words and numbers."""
        share = None if self.share_c is None else self.share_c.tolist()
        return {"weight": self.weight, "calibration": self.calibration.to_json(), "share": share}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Blend:
        """What :meth:`to_json` gave."""
        share_c = None if stored["share"] is None else np.array(stored["share"])
        return cls(float(stored["weight"]), Calibration.from_json(stored["calibration"]), share_c)


def _loss(task: Task, values_sc: Floats, truth_s: Floats) -> float:
    if task.kind == "regression":
        return float(np.mean(np.square(values_sc[:, 0] - truth_s)))
    own_s = values_sc[np.arange(len(truth_s)), truth_s.astype(int)]
    return float(-np.mean(np.log(np.maximum(own_s, _LEAST))))
