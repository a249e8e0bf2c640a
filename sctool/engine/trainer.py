"""The one training loop of all torch models.

The state of a run is all that the next step depends on: weights, optimiser moments, random generators, the sampler, the rows of the
running epoch and how far it has come. It is saved now and then, so a run that is killed and resumed ends with the same weights, bit
for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctool.artifacts.tensors import load_tensors, save_tensors
from sctool.data.minibatch import Minibatch
from sctool.data.samplers import Sampler
from sctool.engine.device import in_chunks, own_randomness
from sctool.errors import Interrupted, SctoolError
from sctool.sections import TrainConfig

Rows = NDArray[np.int64]


class Store(Protocol):
    """What the trainer asks of the data."""

    device: torch.device

    def batch(self, rows: Rows) -> Any:
        """A minibatch on the device."""

    def names(self, rows: Rows) -> list[str]:
        """Names of cells, for messages."""


class Reporter(Protocol):
    """Told how the run goes; prints it or not."""

    def start(self, epochs: int, done: int, title: str) -> None:
        """Training of that name begins, or goes on after ``done`` epochs."""

    def step(self, cells: int) -> None:
        """A minibatch of so many cells is done."""

    def epoch(self, row: dict[str, float]) -> None:
        """An epoch is done; its row of the history."""

    def stop(self, message: str) -> None:
        """Training is over, or broken off, and why."""


@dataclass
class Fit:
    """What came out."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    reason: str = ""


class Trainer:
    """Trains a model on rows of a store.

    Parameters
    ----------
    model
        On the device of ``store``.
    store
        Gives minibatches.
    sampler
        Decides the rows of each epoch.
    config
        Optimiser, early stopping, precision; ``config.epochs`` must be set.
    seed
        Of the one generator of the run.
    validation_rows
        Cells for early stopping; with none the last weights are kept.
    reporter
        Told of each epoch.
    state_path
        Where the state is kept for ``resume``; None keeps none.
    title
        What the reporter calls it.
    """

    def __init__(
        self,
        model: Any,
        store: Store,
        sampler: Sampler,
        config: TrainConfig,
        *,
        seed: int = 0,
        validation_rows: Rows | None = None,
        reporter: Reporter | None = None,
        state_path: Path | None = None,
        title: str = "training",
    ) -> None:
        assert config.epochs is not None
        self.model, self.store, self.sampler, self.config = model, store, sampler, config
        self.epochs = config.epochs
        self.seed = seed
        self.validation_rows = np.empty(0, np.int64) if validation_rows is None else validation_rows
        self.reporter = reporter
        self.state_path, self.title = state_path, title
        self.rng = np.random.default_rng(seed)
        self._trained: list[Tensor] = list(model.trained() if hasattr(model, "trained") else model.parameters())
        self.optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](
            self._trained,
            lr=config.lr,
            weight_decay=config.weight_decay,
            eps=config.adam_eps,
            fused=store.device.type in ("cpu", "cuda"),
        )
        self.fit_so_far = Fit()
        self._best: dict[str, Tensor] = {}
        self._average = [p.detach().clone() for p in model.parameters()] if config.ema else []
        self._epoch = 0
        self._rows = np.empty(0, np.int64)
        self._cursor = 0
        self._sums: dict[str, float] = {}
        self._pending: list[tuple[int, Rows, dict[str, Tensor]]] = []
        self._look_every = 1 if store.device.type == "cpu" else 32
        self._stop_signal = 0

    def fit(self, resume: bool = False) -> Fit:
        """Train to the end and leave the best weights in the model.

        Parameters
        ----------
        resume
            Go on from ``state_path`` if it is there.

        Raises
        ------
        Interrupted
            After Ctrl-C or SIGTERM, with the state saved.
        SctoolError
            If the loss is not finite, naming the cells of the minibatch.
        """
        with own_randomness(self.store.device), self._signals():
            torch.manual_seed(self.seed)
            if resume and self.state_path is not None and self.state_path.exists():
                self._load()
            if self.reporter:
                self.reporter.start(self.epochs, self._epoch, self.title)
            saved = time.monotonic()
            try:
                while not self.fit_so_far.reason:
                    for _ in self._steps():
                        due = time.monotonic() - saved > self.config.checkpoint_seconds
                        if (due or self._stop_signal) and self.state_path is not None:
                            self._save()
                            saved = time.monotonic()
                        if self._stop_signal:
                            where = f"; the state is in {self.state_path.parent}" if self.state_path else ""
                            raise Interrupted(f"interrupted in epoch {self._epoch + 1}{where}", "give --resume to go on" if where else "")
                    self._end_epoch()
            finally:
                if self.reporter:
                    self.reporter.stop(self.fit_so_far.reason or "not finished")
            if self._best:
                self.model.load_state_dict(self._best)
            elif self._average:
                self._swap()
            self.model.eval()
        return self.fit_so_far

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights and their running mean."""
        for parameter, average in zip(self.model.parameters(), self._average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has the mean weights, where they are kept."""
        if self._average:
            self._swap()
        try:
            yield
        finally:
            if self._average:
                self._swap()

    def _anneal(self) -> float:
        ramp = self.config.warmup * self.epochs
        return min(1.0, (self._epoch + 1) / ramp) if ramp >= 1 else 1.0

    def _steps(self) -> Iterator[None]:
        """Take the remaining steps of the running epoch, yielding after each."""
        if self._cursor == 0:
            self._rows = self.sampler.rows(self._epoch, self.rng, self.embed)
            self._sums = {}
        self.model.train()
        size = self.config.batch_size
        while self._cursor < len(self._rows):
            stop = self._cursor + size
            if len(self._rows) - stop == 1:
                stop += 1  # BatchNorm has no variance over one cell
            rows = self._rows[self._cursor : stop]
            self._step(rows)
            self._cursor += len(rows)
            if self.reporter:
                self.reporter.step(len(rows))
            yield

    def _step(self, rows: Rows) -> None:
        batch = self.store.batch(rows)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            terms = self.model.loss(batch, self._anneal())
        self._pending.append((self._cursor, rows, {"loss": terms.loss.detach(), **terms.parts}))
        if len(self._pending) >= self._look_every:
            self._look()
        terms.loss.backward()
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self._trained, self.config.grad_clip)
        if self.config.lr_decay == "cosine" or self.config.lr_warmup:
            self.optimizer.param_groups[0]["lr"] = self._rate((self._epoch + self._cursor / len(self._rows)) / self.epochs)
        self.optimizer.step()
        if self._average:
            torch._foreach_lerp_(self._average, [p.data for p in self.model.parameters()], 1 - self.config.ema)
        if self.sampler.watches:
            self.sampler.seen(rows, terms.embedding_nl.float().cpu().numpy())

    def _rate(self, done: float) -> float:
        """Learning rate when so much of the training is done, 0 to 1."""
        rise, most = self.config.lr_warmup, self.config.lr
        if done < rise:
            return most * (done + 1 / self.epochs) / (rise + 1 / self.epochs)  # the first step moves, too
        return most if self.config.lr_decay == "none" else most * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))

    def _look(self) -> None:
        """Read the losses of the last steps, which makes an accelerator wait, add them up, and stop if one is not finite."""
        pending, self._pending = self._pending, []
        for cursor, rows, terms in pending:
            values = torch.stack(list(terms.values())).tolist()
            if not math.isfinite(values[0]):
                cells = ", ".join(self.store.names(rows)[:3])
                raise SctoolError(
                    f"the loss became {values[0]} in epoch {self._epoch + 1}, minibatch {cursor // self.config.batch_size + 1} "
                    f"(cells {cells}, ...)",
                    "look at those cells with `sctool check`, or lower --lr, or set --set train.grad_clip=100",
                )
            for name, value in zip(terms, values, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value * len(rows)

    def _autocast(self) -> Any:
        return torch.autocast(self.store.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _end_epoch(self) -> None:
        self._look()
        fit = self.fit_so_far
        row: dict[str, float] = {"epoch": self._epoch + 1, "anneal": self._anneal()}
        row |= {f"train_{name}": total / len(self._rows) for name, total in self._sums.items()}
        if len(self.validation_rows):
            with self._averaged():
                row |= {f"validation_{name}": value for name, value in self.score(self.validation_rows).items()}
                if row["validation_loss"] < fit.best_loss:
                    fit.best_loss, fit.best_epoch = row["validation_loss"], self._epoch + 1
                    self._best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        else:
            fit.best_epoch = self._epoch + 1
        row |= self.sampler.log()
        fit.history.append(row)
        annealed = self._anneal() >= 1.0
        self._epoch += 1
        self._cursor = 0
        since_best = self._epoch - max(fit.best_epoch, math.ceil(self.config.warmup * self.epochs))
        if self._epoch >= self.epochs:
            fit.reason = f"all {self.epochs} epochs done"
        elif annealed and len(self.validation_rows) and self.config.patience and since_best >= self.config.patience:
            fit.reason = f"no better validation loss for {self.config.patience} epochs"
        if self.reporter:
            self.reporter.epoch(row)

    @torch.inference_mode()
    def score(self, rows: Rows) -> dict[str, float]:
        """Mean loss and its terms over some cells, in evaluation mode, with the same noise at every call."""
        self.model.eval()
        sums: dict[str, float] = {}

        def terms(part: Rows) -> dict[str, float]:
            batch: Minibatch = self.store.batch(part)
            with self._autocast():
                got = self.model.loss(batch)
            return {"loss": float(got.loss), **{name: float(value) for name, value in got.parts.items()}}

        with own_randomness(self.store.device):
            torch.manual_seed(self.seed)
            for part, values in in_chunks(terms, rows, self.config.inference_chunk):
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value * len(part)
        return {name: total / len(rows) for name, total in sums.items()}

    @torch.inference_mode()
    def embed(self, rows: Rows) -> NDArray[np.float32]:
        """Posterior means of some cells in evaluation mode, shape (cells, latent)."""
        self.model.eval()
        return embed(self.model, self.store, rows, self.config.inference_chunk)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks for a stop at the next step; the second does what it always did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self._stop_signal = number
            signal.signal(number, previous[signal.Signals(number)])

        previous: dict[signal.Signals, Any] = {}
        for name in (signal.SIGINT, signal.SIGTERM):
            previous[name] = signal.signal(name, ask)
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def _save(self) -> None:
        assert self.state_path is not None
        self._look()
        fit = self.fit_so_far
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"average/{index}": tensor for index, tensor in enumerate(self._average)}
        tensors |= {f"sampler/{name}": torch.from_numpy(array) for name, array in self.sampler.state.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        tensors["torch"] = torch.get_rng_state()
        if self.store.device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(self.store.device)
        tensors["rows"] = torch.from_numpy(self._rows)
        save_tensors(
            self.state_path,
            tensors,
            {
                "title": self.title,
                "numpy": self.rng.bit_generator.state,
                "epoch": self._epoch,
                "cursor": self._cursor,
                "sums": self._sums,
                "history": fit.history,
                "best_epoch": fit.best_epoch,
                "best_loss": None if math.isinf(fit.best_loss) else fit.best_loss,
            },
        )

    def _load(self) -> None:
        assert self.state_path is not None
        tensors, note = load_tensors(self.state_path)
        if note.get("title", self.title) != self.title:
            return  # of the stage before, which is done

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(under("model/"))
        self._best = {name: tensor.to(self.store.device) for name, tensor in under("best/").items()}
        for index, average in under("average/").items():
            self._average[int(index)].copy_(average)
        self.sampler.state |= {name: tensor.numpy() for name, tensor in under("sampler/").items()}
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer/").items():
            index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        torch.set_rng_state(tensors["torch"])
        if "cuda" in tensors and self.store.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda"], self.store.device)
        self.rng.bit_generator.state = note["numpy"]
        self._rows = tensors["rows"].numpy()
        self._epoch, self._cursor, self._sums = note["epoch"], note["cursor"], note["sums"]
        fit = self.fit_so_far
        fit.history, fit.best_epoch = note["history"], note["best_epoch"]
        fit.best_loss = math.inf if note["best_loss"] is None else note["best_loss"]


@torch.inference_mode()
def embed(model: Any, store: Store, rows: Rows, chunk: int) -> NDArray[np.float32]:
    """Posterior means of some cells, shape (cells, latent); ``chunk`` cells at a time."""
    call: Callable[[Rows], NDArray[np.float32]] = lambda part: model.embed(store.batch(part)).float().cpu().numpy()  # noqa: E731
    return np.concatenate([z_nl for _, z_nl in in_chunks(call, rows, chunk)])
