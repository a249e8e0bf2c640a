"""Tables in which any word may be a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd


def read_table(path: Path, **words: Any) -> pd.DataFrame:
    """A CSV table in which NA may be a gene, a perturbation or a cell, and only an empty field is missing."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""], **words)
