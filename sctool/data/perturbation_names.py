"""Names of perturbations: ``control``, ``A``, ``A+B`` (targets sorted)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CONTROL = "control"
DELIMITER = "+"


def canonical(text: str, control: str, delimiter: str = DELIMITER) -> str:
    """The name of a perturbation: its targets without controls and repeats, sorted; ``control`` where none is left.

    ``B+A`` and ``A+B`` are one; so are ``A`` and ``A+NT`` where ``NT`` is the word for control.
    """
    if text.strip() == control:
        return CONTROL
    targets = set(pieces(text, delimiter)) - {"", control}
    return DELIMITER.join(sorted(targets)) or CONTROL


def pieces(text: str, delimiter: str = DELIMITER) -> list[str]:
    """The words between the delimiters."""
    return [piece.strip() for piece in text.split(delimiter)]


def targets_of(perturbation: str) -> tuple[str, ...]:
    """Targets of a canonical name: ``A+B`` gives A and B, ``control`` none."""
    return () if perturbation in ("", CONTROL) else tuple(perturbation.split(DELIMITER))


def design(perturbations: Sequence[str], targets: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the targets each perturbation has, shape (perturbations, targets); other targets are passed over."""
    column = {target: at for at, target in enumerate(targets)}
    design_pt = np.zeros((len(perturbations), len(targets)), bool)
    for row, name in enumerate(perturbations):
        design_pt[row, [column[target] for target in targets_of(name) if target in column]] = True
    return design_pt
