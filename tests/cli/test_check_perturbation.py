"""Checking a perturbation screen: names, control, combinations, split, flags; every problem at once."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.config import Config
from sctool.data.check_perturbation import check_perturbation_file, perturbation_names
from sctool.data.demo import SCREEN
from sctool.data.read import H5ad
from sctool.errors import SctoolError
from sctool.sections import CradleConfig

NAMES = np.repeat(["control", "KLF1", "SET", "KLF1+SET", "SET+MIDN", "MIDN"], 20)
GENES = ["KLF1", "SET", "ACTB", "GAPDH", "CD3E", "CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "PPBP"]


@pytest.fixture
def check(tmp_path):
    """Check a small made-up file with other names or columns."""

    def run(names=NAMES, obs=None, counts=None, **settings):
        names = list(names)
        rng = np.random.default_rng(0)
        table = pd.DataFrame({"gene": pd.Categorical(names), **(obs or {})}, index=[f"c{i}" for i in range(len(names))])
        x_ng = rng.poisson(2, (len(names), len(GENES))).astype(np.float32) if counts is None else counts
        ad.AnnData(sp.csr_matrix(x_ng), table, pd.DataFrame(index=GENES)).write_h5ad(tmp_path / "a.h5ad")
        data = {key.removeprefix("data_"): settings.pop(key) for key in list(settings) if key.startswith("data_")}
        settings = {"perturbation_key": "gene", "control": "control", **settings}
        return check_perturbation_file(H5ad(tmp_path / "a.h5ad"), Config(data=data, cradle=CradleConfig(**settings)))

    return run


def said(checked):
    return [problem.message for problem in checked.problems]


def test_the_bundled_screen_is_fit():
    checked = check_perturbation_file(H5ad(SCREEN.path), Config().replaced(dict(SCREEN.settings)))
    assert said(checked) == []
    assert checked.require().source == "X"
    assert "33 perturbations, 15 of them combinations, and 100 control cells" in checked.notes
    assert any(note.startswith("5 of 15 combinations have every target perturbed alone too") for note in checked.notes)
    assert any(note.startswith("1 of 31 targets is a gene of the file") for note in checked.notes)
    assert "--split auto is ood here: it holds out combinations" in checked.notes


def test_a_good_file(check):
    checked = check(split="ood")
    assert said(checked) == []
    assert checked.notes == [
        "5 perturbations, 2 of them combinations, and 20 control cells",
        "2 of 3 targets are genes of the file; the change of the perturbed gene itself is seen for these only, not for: MIDN",
    ]


@pytest.mark.parametrize(
    ("names", "settings", "what", "remedy"),
    [
        (NAMES, {"perturbation_key": None}, "--perturbation-key is missing", "there are: gene"),
        (NAMES, {"perturbation_key": "genes"}, "no column 'genes' (--perturbation-key); it has: gene", "did you mean 'gene'?"),
        (NAMES, {"control": None}, "--control is missing", "gene'] has: control (20), KLF1 (20)"),
        (NAMES, {"control": "ctrl"}, "has no 'ctrl' (--control); it has: control (20)", "did you mean 'control'?"),
        (["non-targeting_1" if n == "control" else n for n in NAMES], {}, "has no 'control'", "did you mean 'non-targeting_1'?"),
        ([None, None, *NAMES], {}, "2 of 122 cells have no value in obs['gene']", "fill it in"),
        (
            [n.replace("+", "_") for n in NAMES],
            {},
            "no name has the delimiter '+', but 2 look like combinations written with '_': KLF1_SET, SET_MIDN",
            "--delimiter '_'",
        ),
        ([n.replace("+", " | ") for n in NAMES], {}, "combinations written with '|'", "--delimiter '|'"),
        ([n + "_ctrl" if n == "SET" else n.replace("+", "_") for n in NAMES], {}, "3 look like combinations written", "--delimiter '_'"),
        ([n + "+ctrl" if n == "SET" else n for n in NAMES], {}, "'ctrl', as in 'SET+ctrl', counts as a target", "--control ctrl"),
        (["control"] * 30, {}, "all cells are control cells", "another --perturbation-key"),
        ([f"cell{i}" for i in range(40)] + ["control"], {}, "looks like a name of each cell", "perturbed genes"),
        (NAMES, {"split": "odd"}, "no column 'odd' (--split)", "did you mean 'ood'?"),
        (NAMES, {"split": "ood", "fold": "3/3"}, "2 combinations cannot be shared out over 3 folds", "2 to 2"),
        (NAMES, {"split": "singles", "fold": "7"}, "'7' is not a fold", "2/5"),
        (NAMES, {"fold": "1/2"}, "--fold 1/2 with --split cells", "--split ood or singles"),
        (
            ["NT" if n == "SET" else n.replace("SET", "A") for n in NAMES],
            {"control": "NT"},
            "20 cells of 'NT' (--control) and 20 of",
            "rename",
        ),
        (
            [n.replace("+", ";").replace("MIDN", "IFNg+TNF") for n in NAMES],
            {"delimiter": ";"},
            "'SET;IFNg+TNF', whose '+'",
            "replace the plus",
        ),
        ([n.replace("+", "/") + "+ T" * (n == "SET") for n in NAMES], {"delimiter": "/"}, "'SET+ T', whose '+'", "replace the plus sign"),
        (NAMES, {"delimiter": ";"}, "'KLF1+SET', whose '+' is not the delimiter ';'", "give --delimiter '+', or replace the plus sign"),
        ([n.split("+")[0] for n in NAMES], {"split": "ood"}, "no combination of targets is in the file", "--split singles"),
        (NAMES, {"qc_key": "qc"}, "no column 'qc' (--qc-key)", "names"),
        (NAMES, {"qc_key": "gene"}, "not a column of flags; it has: ", "--qc-key auto or none"),
        (NAMES, {"qc_criteria": ["mito"]}, "no criterion 'mito' of quality", "did you mean 'mt'?"),
        (NAMES, {"qc_limits": {"max_mt": 5}}, "no limit 'max_mt' of quality", "did you mean 'max_pct_mt'?"),
        (NAMES, {"preset": "norman"}, "preset norman needs the columns of guides like guide_KLF1", "leave --preset out"),
    ],
)
def test_one_problem(check, names, settings, what, remedy):
    checked = check(names, **settings)
    assert len(checked.problems) == 1, said(checked)
    assert what in checked.problems[0].message
    assert remedy in checked.problems[0].hint


def test_all_problems_at_once(check):
    counts = np.log1p(np.random.default_rng(0).poisson(2, (120, len(GENES)))).astype(np.float32) * 1.7
    checked = check(
        [n.replace("+", ";") for n in NAMES], {"bad": np.ones(120, int)}, counts, control="ctrl", qc_key="bad", data_batch_key="no"
    )
    texts = " ".join(said(checked))
    for word in ("has no raw counts", "no column 'no'", "has no 'ctrl'", "written with ';'", "all 120 cells fail quality control"):
        assert word in texts
    assert len(checked.problems) == 5


@pytest.mark.parametrize(
    ("names", "note"),
    [
        ([*NAMES[:-15]], "1 perturbation has fewer than 10 cells, so its mean says little: MIDN (5)"),
        (
            [*NAMES[:-15], *["KLF1+MIDN"] * 3],
            "2 perturbations have fewer than 10 cells, so their means say little: MIDN (5), KLF1+MIDN (3)",
        ),
        (NAMES, "--split auto is cells here: it holds out cells of every perturbation"),
        ([*["control"] * 20, *["drug"] * 20], "1 perturbation, 0 of them combinations, and 20 control cells"),
        ([*NAMES, *["klf1"] * 12], "names that differ by case only count as different: KLF1 and klf1"),
        ([*NAMES, *["non-targeting"] * 12], "counted as perturbations and not as control: non-targeting"),
        ([*NAMES, *["WT1"] * 12, *["NKX2-1"] * 12, *["HLA-A"] * 12], "8 perturbations, 2 of them combinations"),
    ],
)
def test_notes(check, names, note):
    checked = check(names)
    assert said(checked) == []
    assert any(note in line for line in checked.notes), checked.notes


@pytest.mark.parametrize(
    ("targets", "note"),
    [
        (("drug",), None),
        (("drug", "other"), None),
        (("drug", "other", "third"), "0 of 3 targets are genes of the file"),
        (("drug", "SET"), "1 of 2 targets is a gene of the file"),
        (("KLF1", "SET"), None),
    ],
)
def test_treatments_are_no_genes(check, targets, note):
    notes = check(np.repeat(["control", *targets], 20)).notes
    assert [line.split(";")[0] for line in notes if "of the file" in line] == ([note] if note else [])


def test_other_words_of_a_name(check):
    names = [n.replace("control", "NT").replace("+", ";") + ";NT" * (n == "SET") for n in NAMES]
    checked = check(names, control="NT", delimiter=";")
    assert said(checked) == []
    assert checked.notes[0] == "5 perturbations, 2 of them combinations, and 20 control cells"
    assert said(check(["CD4+ none" if n == "NT" else n for n in names], control="CD4+ none", delimiter=";"))[0].startswith("'NT', as in")


def test_options_of_the_split(sctool):
    words = ("check", SCREEN.path, "--for", "cradle", "--perturbation-key", "perturbation", "--control", "control")
    for more, problem in (
        (("--split", "ood", "--fold", "2/5"), None),
        (("--split", "singles", "--fold", "99/99"), "cannot be shared out over 99 folds"),
        (("--split", "odd"), "no column 'odd' (--split)"),
        (("--qc-key", "qc"), "no column 'qc' (--qc-key)"),
        (("--preset", "replogle"), "preset replogle needs the column 'gene'"),
    ):
        ran = sctool(*words, *more)
        assert ran.code == (2 if problem else 0)
        assert (problem or "ready for cradle") in ran.out


def test_names_with_dashes_are_no_combinations(check):
    names = ["NKX2-1" if n == "KLF1+SET" else "HLA-A" if n == "SET+MIDN" else n for n in NAMES]
    assert said(check(names)) == []


def test_flags_of_quality_are_described(check):
    checked = check(obs={"pass_qc": np.arange(120) % 5 > 0})
    assert said(checked) == []
    most = check(obs={"bad": np.arange(120) % 5 > 0}, qc_key="bad")
    assert any("80% of cells fail quality control" in note for note in most.notes)
    none = check(obs={"bad": np.zeros(120, int)}, qc_key="bad")
    assert any("every cell passes" in note for note in none.notes)


def test_a_split_column(check):
    part = np.where(np.arange(120) % 3 == 0, "test", "train")
    assert said(check(obs={"part": part}, split="part")) == []
    assert "has no 'test' cell" in said(check(obs={"part": "train"}, split="part"))[0]


def test_canonical_names():
    obs = pd.DataFrame({"gene": pd.Categorical(["B;A", "A;B", "A;ctrl", "ctrl", "ctrl;ctrl", " A ", "A;A"])})
    settings = CradleConfig(perturbation_key="gene", control="ctrl", delimiter=";")
    assert list(perturbation_names(obs, settings)) == ["A+B", "A+B", "A", "control", "control", "A", "A"]


def test_names_by_preset():
    obs = pd.DataFrame({"perturbation": ["SPI1_pDS255", "62(mod)_pBA581", "*", None]})
    assert list(perturbation_names(obs, CradleConfig(preset="adamson"))) == ["SPI1", "control", "", ""]
    with pytest.raises(SctoolError, match="preset replogle needs the column 'gene'"):
        perturbation_names(obs, CradleConfig(preset="replogle"))
