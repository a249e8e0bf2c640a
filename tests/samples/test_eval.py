"""``sctool eval samples``: what is scored, what is refused and how, and what is written."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool.bench.sample_given import embedding_names, of_table, read_embedding
from sctool.config import Config
from sctool.errors import SctoolError
from sctool.models.samples.baselines import covariates

FAST = ("--permutations", "19", "--repeats", "2")


@pytest.fixture
def files(tmp_path):
    """24 samples of 12 donors, half of them ill: an embedding with some of it, one that was told, one of noise, and metadata."""
    rng = np.random.default_rng(0)
    samples, donor = [f"{i:03d}" for i in range(24)], np.repeat([f"d{i}" for i in range(12)], 2)
    ill = np.repeat(np.arange(12) % 2, 2)
    meta = pd.DataFrame({"sample": samples, "donor": donor, "state": np.where(ill, "ill", "well")})
    meta["stage"] = np.array(["early", "mild", "late"])[np.arange(24) // 2 % 3]
    meta["age"] = np.round(40 + 10 * ill + rng.normal(size=24), 1)
    meta["pool"] = np.where(np.arange(24) < 12, "p", "q")
    z = np.repeat(rng.normal(size=(12, 3)), 2, 0) + 0.3 * rng.normal(size=(24, 3))
    z[:, 0] += 1.5 * ill
    z[:, 1] += 4 * (meta["pool"] == "q")
    made = {"some": z, "told": np.stack([ill, 1 - ill], 1) + 0.01 * rng.normal(size=(24, 2)), "noise": rng.normal(size=(24, 3))}
    for name, x in made.items():
        table = pd.DataFrame(x, columns=[f"e{i + 1}" for i in range(x.shape[1])])
        table.insert(0, "sample", samples)
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    meta.to_csv(tmp_path / "meta.csv", index=False)
    return tmp_path


def change(path, make):
    """Rewrite a table."""
    table = pd.read_csv(path, dtype=str)
    make(table).to_csv(path, index=False)


def given(*names):
    return [word for name in names for word in ("--embeddings", f"{name}.csv")]


def test_embeddings_are_scored_on_donors_held_out(sctool, files):
    levels = ("--target", "stage:ordinal", "--set", "sampleclr.orders={stage: [early, mild, late]}")
    change(files / "noise.csv", lambda table: table.iloc[::-1].iloc[2:])  # another order, and two samples fewer
    ran = sctool(
        *("eval", "samples", *given("some", "told", "noise"), "--metadata", "meta.csv", "--target", "state", *levels),
        *("--target", "age", "--technical", "pool", *FAST, "--name", "all"),
    )
    assert ran.code == 0, ran.err
    assert "2 of 24 samples of meta.csv are not in every embedding" in ran.err
    folder = files / "results" / "samples" / "all"
    told = json.loads((folder / "metrics.json").read_text())
    for line in ("warning: told has auc 1.000 for state, the best baseline", "some: pool found (auc 1.000", "noise: pool not found (auc"):
        assert line in ran.out
        assert any(note.startswith(line) for note in told["notes"])
    assert told["n_samples"] == 22
    assert told["predicted"]["state"]["scores"]["told"]["auc"]["mean"] == 1
    assert 0.65 < told["predicted"]["state"]["scores"]["some"]["auc"]["mean"] < 1
    assert told["predicted"]["state"]["donors"] == 11
    assert told["predicted"]["age"]["kind"] == "regression"
    assert told["predicted"]["stage"]["order"] == ["early", "mild", "late"]
    spare = told["spare"]["some"]
    kept = [told["neighbours"]["some"][key] for key in ("state", "stage", "age")]
    assert spare["retention"] == pytest.approx(np.mean(kept))
    assert spare["removal"] == pytest.approx(1 - told["neighbours"]["some"]["pool"])
    assert spare["total"] == pytest.approx((spare["retention"] + spare["removal"] / 2) / 1.5)
    assert spare["replicates"] > 0.9 > told["spare"]["noise"]["replicates"]
    assert {path.stem for path in folder.glob("*.csv")} >= {"comparison", "predictions", "spare", "neighbours", "technical", "confounding"}
    predictions = pd.read_csv(folder / "predictions.csv", dtype={"sample": str})
    assert set(predictions["sample"]) == {f"{i:03d}" for i in range(22)}


def test_baselines_are_made_of_the_cells(sctool, files):
    meta, rng = pd.read_csv(files / "meta.csv", dtype=str), np.random.default_rng(1)
    obs = meta.loc[np.repeat(np.arange(24), 25), ["sample", "state"]].reset_index(drop=True)
    cells = ad.AnnData(sp.csr_matrix((600, 2), dtype=np.float32), obs=obs.set_index(obs.index.astype(str)))
    cells.obsm["X_pca"] = rng.normal(size=(600, 3)) + 2 * (obs["state"] == "ill").to_numpy()[:, None]
    cells.write_h5ad(files / "cells.h5ad")
    (files / "noise.csv").rename(files / "mean.csv")
    keys = ("--sample-key", "sample", "--donor-key", "donor", "--rep", "obsm:X_pca", "--set", "sampleclr.min_cells=20")
    words = ("eval", "samples", "cells.h5ad", *given("mean"), "--metadata", "meta.csv", *keys, "--target", "state")
    ran = sctool(*words, "--permutations", "0", "--repeats", "1", "--quiet")
    assert ran.code == 0, ran.err
    scores = pd.read_csv(files / "results/samples/mean/scores.csv").set_index("name")
    assert {"mean (given)", "mean", "lda", "composition", "gloscope", "random"} <= set(scores.index)
    assert scores.loc["mean (given)", "arm"] == "embedding"
    assert scores.loc["mean", "auc"] > 0.9 > scores.loc["mean (given)", "auc"]
    assert "behind the baseline" in ran.out
    folds = pd.read_csv(files / "results/samples/mean/folds.csv", dtype=str)
    assert (folds.groupby("donor")["fold"].nunique() == 1).all()  # donors are of the metadata here
    assert set(folds["donor"]) == set(meta["donor"])
    spare = pd.read_csv(files / "results/samples/mean/spare.csv").set_index("name")
    assert spare.loc["mean", "retention"] > spare.loc["random", "retention"]
    assert spare["total"].isna().all()  # nothing technical was named
    refused(sctool(*words[:3], *given("some"), *keys, "--target", "state"), "obs has no column 'donor' (--donor-key)", "give one")


def test_numbers_of_cells_are_those_of_the_metadata(sctool, files):
    table = pd.read_csv(files / "meta.csv", index_col="sample", dtype={"sample": str})
    table["n_cells"] = np.where(table["state"] == "ill", 900, 100) + np.arange(24)
    table.to_csv(files / "sized.csv")
    made = of_table(table, Config(), files / "sized.csv")
    np.testing.assert_allclose(covariates(made, made.usable_s), np.log1p(table[["n_cells"]]))
    unknown = of_table(table.drop(columns="n_cells"), Config(), files / "meta.csv")
    np.testing.assert_allclose(covariates(unknown, unknown.usable_s, columns=["age"]), table[["age"]])
    ran = sctool("eval", "samples", *given("noise"), "--metadata", "sized.csv", "--target", "state", *FAST)
    assert ran.code == 0, ran.err
    scores = pd.read_csv(files / "results/samples/noise/scores.csv").groupby("name")["auc"].mean()
    assert scores["covariates"] == 1
    ran = sctool("eval", "samples", *given("noise"), "--metadata", "meta.csv", "--target", "state", *FAST, "--name", "unsized")
    assert ran.code == 0, ran.err
    assert "covariates" not in set(pd.read_csv(files / "results/samples/unsized/scores.csv")["name"])


BAD = {
    "no such file": (given("nothing"), "nothing.csv: no such file", "a row for each sample"),
    "given twice": (given("some", "some"), "some.csv is given twice", "once"),
    "no column": ([*given("some"), "--target", "stat"], "--target stat: there is no column 'stat'", "did you mean 'state'"),
    "technical": ([*given("some"), "--technical", "poool"], "--technical poool: there is no column", "did you mean 'pool'"),
    "both": ([*given("some"), "--technical", "state"], "'state' is both a --target and --technical", "say which"),
    "donor": ([*given("some"), "--donor-key", "donr"], "meta.csv has no column 'donr' (--donor-key)", "did you mean 'donor'"),
    "sample": ([*given("some"), "--sample-key", "sampl"], "no file has a column 'sampl' (--sample-key)", "did you mean 'sample'"),
    "order": ([*given("some"), "--target", "stage:ordinal"], "the order of early, late, mild is not known", "sampleclr.orders"),
    "an order": ([*given("some"), "--set", "sampleclr.orders={stat: [a, b]}"], "sampleclr.orders: 'stat' is no target", "did you mean"),
    "number": ([*given("some"), "--target", "stage:regression"], "'early' is not a number", "stage:class"),
    "cv": ([*given("some"), "--cv", "none"], "--cv none holds out no donor", "--cv auto"),
    "study": ([*given("some"), "--cv", "leave-one-study-out"], "needs --study-key", "one study"),
    "covariate": ([*given("some"), "--covariate", "sex"], "no column 'sex' (--covariate)", "did you mean"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_asked_for_must_be_there(sctool, files, case):
    words, said, remedy = BAD[case]
    refused(sctool("eval", "samples", *words, "--metadata", "meta.csv", "--target", "state"), said, remedy)
    assert not (files / "results").exists()


WRONG = {
    "missing": (lambda t: t.assign(e2=t["e2"].where(t.index != 3)), "sample 003 has no value in e2", "drop"),
    "word": (lambda t: t.assign(e2=t["e2"].where(t.index != 3, "high")), "sample 003 has 'high' in e2", "drop"),
    "infinite": (lambda t: t.assign(e1=t["e1"].where(t.index != 3, "inf")), "sample 003 has 'inf' in e1", "drop"),
    "twice": (lambda t: pd.concat([t, t[:2]]), "2 rows repeat a sample of 'sample', e.g. 000", "one row"),
    "unnamed": (lambda t: t.assign(sample=t["sample"].where(t.index != 3)), "row 5 has no name in 'sample'", "name every sample"),
    "none": (lambda t: t[:0], "some.csv has a header and no rows", "a row for each sample"),
    "words": (lambda t: t[["sample"]].assign(a="b"), "no columns of numbers that could be dimensions; it has: a", "dimensions"),
    "others": (
        lambda t: t.assign(sample="x" + t["sample"]),
        "0 samples of meta.csv, such as 000, are in every embedding (some has x000",
        "same samples",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_embeddings_are_refused(sctool, files, case):
    make, said, remedy = WRONG[case]
    change(files / "some.csv", make)
    refused(sctool("eval", "samples", *given("some"), "--metadata", "meta.csv", "--target", "state"), said, remedy)
    assert not (files / "results").exists()


def refused(ran, said, remedy):
    assert ran.code == 2
    error, fix = [line for line in ran.err.splitlines() if not line.startswith(("some:", "note:"))]
    assert error.startswith("error: ")
    assert said in error
    assert remedy in fix


def test_wrong_metadata_and_other_files_are_refused(sctool, files):
    (files / "cells.csv").write_bytes(b"\x89HDF\r\n\x1a\n\x00\xff")
    refused(sctool("eval", "samples", *given("cells"), "--target", "state"), "cells.csv is not a CSV table", "a row for each sample")
    refused(sctool("eval", "samples", *given("some"), "--target", "state"), "there are: none", "--metadata")
    change(files / "meta.csv", lambda t: t.assign(donor=t["donor"].where(t.index != 3)))
    words = (*given("some"), "--metadata", "meta.csv", "--target", "state")
    refused(sctool("eval", "samples", *words), "1 samples have no donor in 'donor' of meta.csv, e.g. 003", "fill it in")
    change(files / "meta.csv", lambda t: t.assign(donor=t["sample"], n_cells="many"))
    refused(sctool("eval", "samples", *words), "sample 000 has many in n_cells", "correct or drop")


def test_samples_without_a_target_are_told(sctool, files):
    change(files / "meta.csv", lambda t: t.assign(state=t["state"].where(t.index > 1, "NA")))
    words = ("eval", "samples", *given("noise"), "--metadata", "meta.csv", "--target", "state")
    ran = sctool(*words, *FAST)
    assert ran.code == 0, ran.err
    assert "2 of 24 samples have no value of state and are not scored on it" in ran.err
    refused(sctool(*words), "results/samples/noise", "--force")
    ran = sctool(*words, *FAST, "--force", "--json")
    assert json.loads(ran.out)["predicted"]["state"]["samples"] == 22


def test_dimensions_are_told_from_what_else_is_known(tmp_path):
    path = tmp_path / "a.csv"
    table = pd.DataFrame({"sample": ["007", "008"], "PC_1": [0.1, 0.2], "PC_2": [0.3, 0.4], "age": [30, 40], "ok": [True, False]})
    table.to_csv(path)  # with row numbers
    dims, other = read_embedding(path)
    assert dims.columns.tolist() == ["PC_1", "PC_2"]
    assert dims.index.tolist() == ["007", "008"]
    assert "age" in other
    table[["sample", "PC_1", "age"]].to_csv(path, index=False, sep=";")
    assert read_embedding(path)[0].columns.tolist() == ["PC_1", "age"]
    assert read_embedding(path, known=["age"])[0].columns.tolist() == ["PC_1"]
    path.write_text("PC_1 PC_2\na 1 2\nb 3 4\n".replace(" ", "\t"))  # R's write.table
    assert read_embedding(path)[0].to_dict("list") == {"PC_1": [1, 3], "PC_2": [2, 4]}
    assert read_embedding(path)[0].index.tolist() == ["a", "b"]
    path.write_text("sample,e1\na,1,2,3\n")
    with pytest.raises(SctoolError, match="rows have 2 fields more than the header"):
        read_embedding(path)
    table.assign(e1=1.0, n_cells=3).to_csv(path, index=False, sep="\t")
    assert read_embedding(path)[0].columns.tolist() == ["e1"]


def test_files_have_names_of_their_own(tmp_path):
    a, b = tmp_path / "a" / "embeddings.csv", tmp_path / "b" / "embeddings.csv"
    assert embedding_names([a, b, tmp_path / "mean.csv"]) == ["a", "b", "mean (given)"]
    assert embedding_names([tmp_path / "x" / "z.csv", tmp_path / "y" / "z.csv"]) == ["x", "y"]
    assert len(set(embedding_names([tmp_path / "1" / "x" / "z.csv", tmp_path / "2" / "x" / "z.csv"]))) == 2
    with pytest.raises(SctoolError, match="given twice"):
        embedding_names([a, tmp_path / "b" / ".." / "a" / "embeddings.csv"])
