"""Gradient-boosted trees (XGBoost, Chen & Guestrin 2016)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sctool.models.classify.base import Arrays, Classifier, Watch

PATIENCE = 30


class BoostedTrees(Classifier):
    """Boosted trees on a multinomial loss; the number of rounds by held-out cells.

    Parameters
    ----------
    settings
        ``max_rounds`` and XGBoost's own: ``max_depth``, ``eta``, ``subsample``, ``colsample_bytree``, ``min_child_weight``.
    """

    name = "xgb"

    def __init__(self, settings: dict[str, Any], seed: int = 0, threads: int | None = None, device: str = "cpu") -> None:
        self.settings, self.seed, self.threads, self.device = dict(settings), seed, threads, device
        self.booster: Any = None

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Boost until the watched cells gain nothing for 30 rounds, or for as many rounds as were found before."""
        import xgboost as xgb

        settings = {key: value for key, value in self.settings.items() if key != "max_rounds"}
        self.n_classes = int(code_n.max()) + 1
        settings |= {"objective": "multi:softprob", "num_class": self.n_classes, "tree_method": "hist", "seed": self.seed}
        settings |= {"nthread": self.threads or 0, "device": self.device, "verbosity": 0}
        train = _cells(x_nf, code_n, weight_n)
        if watch is None:
            self.booster = xgb.train(settings, train, self.rounds or self.settings["max_rounds"])
            return
        held_out = _cells(*watch)
        stop = {"evals": [(held_out, "held_out")], "early_stopping_rounds": PATIENCE, "verbose_eval": False}
        self.booster = xgb.train(settings, train, self.settings["max_rounds"], **stop)
        self.rounds = self.booster.best_iteration + 1
        self.booster = self.booster[: self.rounds]

    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """Summed leaves."""
        return np.asarray(self.booster.predict(_cells(x_nf), output_margin=True), np.float64).reshape(x_nf.shape[0], self.n_classes)

    def arrays(self) -> Arrays:
        """XGBoost's own binary JSON, as bytes."""
        return {"ubj": np.frombuffer(bytes(self.booster.save_raw("ubj")), np.uint8), "n_classes": np.array([self.n_classes])}

    def restore(self, arrays: Arrays) -> None:
        """Load it."""
        import xgboost as xgb

        self.booster = xgb.Booster({"nthread": self.threads or 0, "device": self.device})
        self.booster.load_model(bytearray(arrays["ubj"].tobytes()))
        self.n_classes = int(arrays["n_classes"][0])

    def files(self) -> dict[str, bytes]:
        """The booster, for anything that reads XGBoost models."""
        return {"xgb.ubj": bytes(self.booster.save_raw("ubj"))}

    def importance(self) -> NDArray[np.float64]:
        """Total gain of each feature, the same for all classes."""
        gain_f = np.zeros(self.booster.num_features())
        for name, gain in self.booster.get_score(importance_type="total_gain").items():
            gain_f[int(name.removeprefix("f"))] = float(gain)
        return np.tile(gain_f / max(gain_f.sum(), 1e-12), (self.n_classes, 1))

    def contributions(self, x_nf: Any) -> NDArray[np.float64]:
        """Exact TreeSHAP values of shape (cells, classes, features): what each feature adds to each class's logit (Lundberg 2018)."""
        phi = np.asarray(self.booster.predict(_cells(x_nf), pred_contribs=True), np.float64)
        return phi.reshape(x_nf.shape[0], self.n_classes, -1)[:, :, :-1]


def _cells(x_nf: Any, code_n: NDArray[np.int64] | None = None, weight_n: NDArray[np.float64] | None = None) -> Any:
    import xgboost as xgb

    # A zero of a sparse matrix is a missing value to XGBoost. That is what we want, for zero counts; it is done alike at training
    # and in prediction, and takes a tenth of the memory.
    matrix = sp.csr_matrix(x_nf) if sp.issparse(x_nf) else np.asarray(x_nf, np.float32)
    return xgb.DMatrix(matrix, code_n, weight=weight_n)
