"""Names of perturbations, and how tables of a model keep them."""

import pandas as pd
import pytest

from sctool.artifacts.model_folder import ModelFolder
from sctool.data.check_perturbation import perturbation_names
from sctool.data.perturbation_names import canonical
from sctool.errors import SctoolError
from sctool.sections import CradleConfig


@pytest.mark.parametrize(
    ("text", "control", "delimiter", "name"),
    [
        ("B+A", "NT", "+", "A+B"),
        ("A+NT", "NT", "+", "A"),
        (" NT ", "NT", "+", "control"),
        ("NT+NT", "NT", "+", "control"),
        ("A+control", "control", "+", "A"),
        ("A+control", "NT", "+", "A+control"),
        ("non+targeting", "non+targeting", "+", "control"),
        ("A_B", "ctrl", "_", "A+B"),
    ],
)
def test_canonical(text, control, delimiter, name):
    assert canonical(text, control, delimiter) == name


def of(names, **settings):
    return perturbation_names(pd.DataFrame({"p": names}), CradleConfig(perturbation_key="p", **settings))


@pytest.mark.parametrize("other", ["control", "control+NT", "control+control"])
def test_a_perturbation_called_control(other):
    with pytest.raises(SctoolError, match=r"has 3 cells of 'NT' \(--control\) and 2 of 'control.*\n.*rename one of them"):
        of(["NT", "NT", "NT+NT", other, other, "A"], control="NT")
    assert list(of(["NT", "A", "A+NT"], control="NT")) == ["control", "A", "A"]


def test_a_plus_sign_in_a_name():
    with pytest.raises(SctoolError, match=r"'CD4\+ T;B', whose '\+' is not the delimiter ';'.*\n.*replace the plus sign in the names$"):
        of(["NT", "CD4+ T;B"], control="NT", delimiter=";")
    with pytest.raises(SctoolError, match=r"give --delimiter '\+', or replace the plus sign"):
        of(["NT", "A", "A+B"], control="NT", delimiter=";")
    assert list(of(["CD4+ none", "A;CD4+ none", "A;B"], control="CD4+ none", delimiter=";")) == ["control", "A", "A+B"]


def test_a_table_of_cells_keeps_names(tmp_path):
    names = ["NA", "None", "nan", "null", "12", "", "control"]
    table = pd.DataFrame(
        {
            "cell": ["NA", "1", "c", "d", "e", "f", "g"],
            "perturbation": names,
            "weight": [0.5, None, 1e-3, 2.0, float("inf"), 3.0, 4.0],
            "fail": [True, False] * 3 + [True],
            "type": ["NA", None, "T", "T", "T", "T", "T"],
        }
    )
    table.to_csv(tmp_path / "cells.csv", index=False)
    read = ModelFolder(tmp_path, {}).table("cells")
    assert list(read["cell"]) == list(table["cell"])
    assert list(read["perturbation"].fillna("")) == names
    pd.testing.assert_series_equal(read["weight"], table["weight"])
    assert read["fail"].dtype == bool
    assert list(read["type"].isna()) == [False, True, False, False, False, False, False]
    table.to_csv(tmp_path / "history.csv", index=False)
    assert ModelFolder(tmp_path, {}).table("history")["type"].isna().sum() == 2
