"""Presets of the published screens, on made-up tables of cells with their columns."""

import numpy as np
import pandas as pd
import pytest

from sctool.config import Config
from sctool.data.perturbation_names import CONTROL, canonical
from sctool.data.presets import PRESETS, apply
from sctool.errors import SctoolError


def norman():
    return pd.DataFrame(
        {
            "guide_identity": ["NegCtrl10_NegCtrl0__x", "KLF1_NegCtrl0__x", "MAP2K6_KLF1__x", "SET_NegCtrl0__x"],
            "guide_ids": ["", "KLF1", "KLF1,MAP2K6", "SET"],
            "UMI_count": [50.0, 60.0, 70.0, 80.0],
            "guide_SET": [0.0, 0.0, 0.0, 1.0],
            "guide_MAP2K6": [0.0, 0.0, 1.0, 0.0],
            "guide_KLF1": [0.0, 1.0, 1.0, 0.0],
            "my_guide_x": [1, 1, 1, 1],
        }
    )


def dixit(targets=("sgEGR1_2", "sgEGR1_3", "sgELF1_1", "sgYY1_10", "sgIRF1_2")):
    cells = [(), (targets[0],), targets[:2], (targets[0], targets[2]), (targets[0], *targets[2:]), (), (targets[3],)]
    obs = pd.DataFrame({target: [target in cell for cell in cells] for target in targets})
    obs["INTERGENIC393453"] = [True, False, False, False, False, False, True]
    return obs.assign(cluster="tfs_7", total_counts=5.0, predicted_doublet=False, stray=1)


def replogle():
    pairs = ["AAAS_+_1|AAAS_+_2", "AAAS_-_3|AAAS_-_4", "non-targeting_00003|non-targeting_01", "SET_+_1|SET_+_2"]
    return pd.DataFrame({"sgID_AB": pairs, "gene": pd.Categorical(["AAAS", "AAAS", "non-targeting", "SET"])})


def adamson():
    names = ["SPI1_pDS255", "62(mod)_pBA581", "Gal4-4(mod)_pBA582", "*", None, "OST4_pDS353", "ZNF326_pDS262"]
    return pd.DataFrame({"perturbation": pd.Categorical(names), "T": "?", "other": np.nan})


@pytest.mark.parametrize(
    ("preset", "obs", "expected"),
    [
        ("norman", norman(), [CONTROL, "KLF1", "KLF1+MAP2K6", "SET"]),
        # guides of one target are pooled; three targets and cells without a guide are left out
        ("dixit", dixit(), [CONTROL, "EGR1", "EGR1", "EGR1+ELF1", None, None, "YY1"]),
        ("dixit", dixit().drop(columns="INTERGENIC393453"), [CONTROL, "EGR1", "EGR1", "EGR1+ELF1", None, CONTROL, "YY1"]),
        ("dixit", dixit(("EGR1", "CREB1", "sgELF1", "YY1", "E2F4")), [CONTROL, "EGR1", "CREB1+EGR1", "EGR1+ELF1", None, None, "YY1"]),
        ("replogle", replogle(), ["AAAS", "AAAS", CONTROL, "SET"]),
        ("adamson", adamson(), ["SPI1", CONTROL, CONTROL, None, None, "OST4", "ZNF326"]),
    ],
)
def test_names(preset, obs, expected):
    found = apply(preset, obs)
    assert [None if pd.isna(name) else name for name in found] == expected
    assert found.index.equals(obs.index)
    assert all(canonical(name, CONTROL) == name for name in found.dropna())


@pytest.mark.parametrize(
    ("preset", "obs", "what"),
    [
        (
            "norman",
            norman()[["guide_identity", "guide_ids"]],
            "preset norman needs the columns of guides like guide_KLF1 in obs, which has: guide_",
        ),
        ("dixit", dixit()[["cluster", "stray"]], "like sgEGR1 or sgEGR1_2 in obs, which has: cluster, stray"),
        ("replogle", replogle()[["sgID_AB"]], "preset replogle needs the column 'gene'"),
        ("adamson", adamson()[["T"]], "preset adamson needs the column 'perturbation'"),
        ("adamson", adamson().iloc[[0, 5]], "preset adamson finds no control cell"),
        ("norman", norman().assign(guide_SET=3), r"obs\['guide_SET'\] is not a column of 0 and 1"),
        ("norma", norman(), "there is no preset 'norma'"),
    ],
)
def test_another_file(preset, obs, what):
    with pytest.raises(SctoolError, match=what):
        apply(preset, obs)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_settings_are_keys_of_the_configuration(preset):
    config = Config().replaced(preset.settings)
    tree = config.model_dump()
    for key, value in preset.settings.items():
        section, name = key.split(".")
        assert tree[section][name] == value
    assert preset.path.as_posix() == f"data/cradle/{preset.name}.h5ad"
