"""Types within types: an answer as fine as the probabilities allow, and a score that forgives near misses."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctool.errors import SctoolError

UNASSIGNED = "Unassigned"
_NO_TYPE = (UNASSIGNED, "Heterogeneous")
_EPS = 1e-9  # the probabilities of all types may sum to a little less than 1


@dataclass(frozen=True)
class Hierarchy:
    """A forest of types: the parent of each, None at the top."""

    parents: dict[str, str | None]

    @classmethod
    def read(cls, path: Path) -> Hierarchy:
        """Read a table of two columns, child and parent, separated by tabs or commas; a header is optional, an empty parent is the top.

        Raises
        ------
        SctoolError
            If a line has no two columns, a type has several parents or is its own ancestor; all of a kind at once.
        """
        path = Path(path)
        try:
            lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip() and not line.startswith("#")]
        except OSError as error:
            raise SctoolError(f"{path}: {error.strerror or error}", "give a table of child and parent") from error
        except UnicodeDecodeError as error:
            raise SctoolError(f"{path} is not text", "save the hierarchy as UTF-8 text, two columns separated by tabs") from error
        if not lines:
            raise SctoolError(f"{path} is empty", "give a line of child and parent for each type")
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",")]
        header = [cell.casefold() for cell in rows[0]]
        turned = header == ["parent", "child"]
        rows = rows[1:] if turned or header == ["child", "parent"] else rows
        bad = [",".join(row) for row in rows if len(row) != 2 or not row[turned]]
        if bad:
            raise SctoolError(
                f"{path}: {len(bad)} lines are not a child and a parent, e.g. {bad[0]!r}", "give two columns separated by a tab"
            )
        return cls.of((row[turned], row[not turned]) for row in rows)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Hierarchy:
        """From pairs of child and parent; errors as of :meth:`read`."""
        pairs = list(dict.fromkeys(pairs))
        several = [child for child, n in Counter(child for child, _ in pairs).items() if n > 1]
        if several:
            above = ", ".join(parent or "(none)" for child, parent in pairs if child == several[0])
            raise SctoolError(
                f"{len(several)} types have several parents, e.g. {several[0]!r}: {above}",
                "give every type one parent; leave the others out",
            )
        parents: dict[str, str | None] = {child: parent or None for child, parent in pairs}
        parents |= {parent: None for _, parent in pairs if parent and parent not in parents}
        made = cls(parents)
        for name in parents:
            made._check_climb(name)
        return made

    def _check_climb(self, name: str) -> None:
        seen = [name]
        while (above := self.parents[seen[-1]]) is not None:
            seen.append(above)
            if above == name:
                raise SctoolError(f"the hierarchy goes in a circle: {' > '.join(seen)}", "leave one of these lines out")
            if len(seen) > len(self.parents):
                return  # a circle further up, which its own members report

    def path(self, name: str) -> list[str]:
        """The type and all above it, itself first."""
        names = [name]
        while (above := self.parents[names[-1]]) is not None:
            names.append(above)
        return names

    def check(self, names: Sequence[str]) -> None:
        """Raise a SctoolError that lists the names the hierarchy has not."""
        unknown = sorted({str(name) for name in names} - self.parents.keys())
        if unknown:
            close = get_close_matches(unknown[0], list(self.parents), n=1)
            raise SctoolError(
                f"{len(unknown)} types are not in the hierarchy: {', '.join(unknown[:10])}{' ...' if len(unknown) > 10 else ''}",
                f"add a line of child and parent for each{f'; or did you mean {close[0]!r}?' if close else ''}",
            )

    def back_off(self, p_nc: NDArray[Any], classes: Sequence[str], floor: float) -> NDArray[Any]:
        """Climb from each cell's most probable type to the first ancestor whose types together have at least ``floor``.

        What lies above all ``classes`` is no answer, since its probability is 1 for any cell whatever: it gives "Unassigned".

        Parameters
        ----------
        p_nc
            Probabilities.
        classes
            Names of the columns; each must be in the hierarchy, as a leaf or an inner type.
        floor
            0 to 1.

        Returns
        -------
        Names of types, shape (cells,), of dtype object.
        """
        self.check(classes)
        paths = [self.path(str(name)) for name in classes]
        common = set.intersection(*(set(path) for path in paths)) if len(paths) > 1 else set()
        top_n = np.asarray(p_nc).argmax(1)
        label_n = np.full(len(top_n), UNASSIGNED, object)
        for c in np.unique(top_n):
            names = [name for name in paths[c] if name not in common]
            if not names:
                continue
            rows = np.flatnonzero(top_n == c)
            within_cd = np.array([[name in path for name in names] for path in paths], np.float64)
            reached_nd = np.asarray(p_nc, np.float64)[rows] @ within_cd >= floor - _EPS
            label_n[rows] = np.where(reached_nd.any(1), np.array(names, object)[reached_nd.argmax(1)], UNASSIGNED)
        return label_n

    def hierarchical_f1(self, truth_labels: Sequence[str] | NDArray[Any], predicted_labels: Sequence[str] | NDArray[Any]) -> float:
        """F1 of the sets of ancestors, each type with itself and without the root, summed over cells (Kiritchenko et al. 2006).

        "Unassigned" and "Heterogeneous" predict nothing: they cost recall, not precision.
        """
        pairs = Counter(zip(map(str, truth_labels), map(str, predicted_labels), strict=True))
        self.check([truth for truth, _ in pairs])
        self.check([predicted for _, predicted in pairs if predicted not in _NO_TYPE])
        tops = [name for name, above in self.parents.items() if above is None]
        root = set(tops) if len(tops) == 1 else set()
        both = true = called = 0
        for (truth, predicted), cells in pairs.items():
            truth_set = set(self.path(truth)) - root
            called_set = set() if predicted in _NO_TYPE else set(self.path(predicted)) - root
            both += cells * len(truth_set & called_set)
            true += cells * len(truth_set)
            called += cells * len(called_set)
        return 2 * both / (true + called) if true + called else float("nan")
