"""The network classifier, trained by the one training loop; and every classifier by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from sctool.config import Config
from sctool.data.minibatch import CellStore
from sctool.engine.device import choose_device, in_chunks, own_randomness
from sctool.engine.samplers import make_sampler
from sctool.engine.trainer import Trainer
from sctool.models.classify.base import Arrays, Classifier, Watch
from sctool.models.classify.network import CellNetwork
from sctool.models.classify.registry import make_classifier
from sctool.sections import TrainConfig

EPOCHS = 200
PATIENCE = 15


class NetworkClassifier(Classifier):
    """Two hidden layers, trained until the watched cells gain nothing for 15 epochs, or for as many epochs as were found before.

    Any sampler of the engine draws its cells, so ``--ar`` works here too.
    """

    name = "mlp"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.module: Any = None

    def fit(self, x_nf: Any, code_n: NDArray[np.int64], weight_n: NDArray[np.float64], watch: Watch | None = None) -> None:
        """Train the network."""
        n, self.n_classes = x_nf.shape[0], int(code_n.max()) + 1
        weight_c = np.bincount(code_n, weight_n) / np.maximum(np.bincount(code_n), 1)
        with own_randomness(self.device):
            torch.manual_seed(self.config.seed)
            weight = torch.as_tensor(weight_c / weight_c.mean(), dtype=torch.float32)
            self.module = CellNetwork(x_nf.shape[1], self.n_classes, weight_c=weight).to(self.device)
        codes, cells = code_n, sp.csr_matrix(x_nf, dtype=np.float32)
        if watch is not None:
            cells, codes = sp.vstack([cells, sp.csr_matrix(watch[0])], format="csr"), np.concatenate([code_n, watch[1]])
        store = CellStore(cells, {"label": codes}, np.arange(len(codes)), device=self.device)
        given = self.config.train
        train = TrainConfig(
            epochs=self.rounds or given.epochs or EPOCHS,
            batch_size=min(given.batch_size, max(2, n // 4)),
            lr=given.lr,
            weight_decay=given.weight_decay,
            adam_eps=1e-8,
            warmup=0.0,
            patience=given.patience if given.patience != TrainConfig().patience else PATIENCE,
            sampler=given.sampler,
            balance_cap=given.balance_cap,
            precision=given.precision,
        )
        labels = codes.astype(str)
        sampler = make_sampler(np.arange(n), train, self.config.ar.model_copy(update={"embedding": None}), labels=labels)
        fit = Trainer(self.module, store, sampler, train, seed=self.config.seed, validation_rows=np.arange(n, len(codes))).fit()
        if watch is not None:
            self.rounds = fit.best_epoch

    @torch.inference_mode()
    def logits(self, x_nf: Any) -> NDArray[np.float64]:
        """In evaluation mode, in chunks."""
        cells = sp.csr_matrix(x_nf, dtype=np.float32)
        store = CellStore(cells, {}, np.arange(cells.shape[0]), device=self.device)
        chunk = self.config.train.inference_chunk
        parts = in_chunks(lambda part: self.module.logits(store.batch(part)).float().cpu().numpy(), np.arange(len(store)), chunk)
        return np.concatenate([np.empty((0, self.n_classes)), *(z_nc.astype(np.float64) for _, z_nc in parts)])

    def arrays(self) -> Arrays:
        """The weights."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.module.state_dict().items()}

    def restore(self, arrays: Arrays) -> None:
        """Build the network the weights fit, and load them."""
        first, last = arrays["body.0.0.weight"], arrays["head.weight"]
        hidden = tuple(array.shape[0] for name, array in sorted(arrays.items()) if name.startswith("body.") and name.endswith(".0.weight"))
        self.n_classes = last.shape[0]
        self.module = CellNetwork(first.shape[1], self.n_classes, hidden)
        self.module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
        self.module.to(self.device).eval()


def new_classifier(name: str, config: Config) -> Classifier:
    """A classifier that has learned nothing yet, with the settings and the seed of a configuration."""
    if name == "mlp":
        return NetworkClassifier(config)
    device = choose_device(config.device).type
    boosts_on = device if device == "cuda" else "cpu"
    return make_classifier(name, config.classify, seed=config.seed, threads=config.threads, device=boosts_on)
