"""Splits of screens: the published ones exactly; ours by what they promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.perturbation_names import CONTROL, targets_of
from sctool.data.perturbation_splits import (
    parse_fold,
    split_cells,
    split_column,
    split_ood,
    split_perturbations,
    split_singles,
)
from sctool.errors import SctoolError
from tests.conftest import VECTORS


@pytest.fixture(scope="module")
def vector():
    return np.load(VECTORS / "perturb_splits.npz")


@st.composite
def screens(draw):
    """Names of cells: 2 to 6 singles, 2 to 8 combinations (some of unseen singles, some triples), control; 1 to 12 cells each."""
    singles = draw(st.lists(st.sampled_from("ABCDEFGH"), min_size=2, max_size=6, unique=True))
    combinations = draw(st.lists(st.sampled_from(["A+B", "A+C", "B+C", "C+D", "E+F", "G+H", "A+Z", "A+B+C"]), min_size=2, unique=True))
    names = [CONTROL, *singles, *combinations]
    sizes = draw(st.lists(st.integers(1, 12), min_size=len(names), max_size=len(names)))
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.array(names, object), sizes))


def of(name_n, split, part):
    return set(name_n[split == part])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_published_ood(vector, seed, share):
    several = vector["num_guides"] > 1
    label = np.char.replace(vector["guide_identity"], "_", "+")
    name_n = np.where(vector["num_guides"] == 0, CONTROL, label).astype(object)
    assert (np.char.find(name_n[several].astype(str), "+") > 0).all()
    split = split_ood(name_n, share, 0.25, seed=seed, published=True)
    expected = pd.Series(vector[f"split_s{seed}_f{share}"]).replace({"val": "validation", "none": "unused"})
    np.testing.assert_array_equal(split, expected)
    ours = split_ood(name_n, share, 0.25, seed=seed)
    assert of(name_n, ours, "test") - {CONTROL} == of(name_n, split, "test")  # the same combinations are held out
    assert (ours[np.isin(name_n, list(of(name_n, split, "test")))] == "test").all()  # all their cells


def test_published_cells(vector):
    split = split_cells(np.full(100, "A", object), published=True)
    for part, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        np.testing.assert_array_equal(np.flatnonzero(split == part), np.sort(vector[f"replogle100_{key}"]))


@settings(max_examples=30, deadline=None)
@given(name_n=screens(), seed=st.integers(0, 50), shares=st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)))
def test_more_training_combinations_only_add_cells(name_n, seed, shares):
    less, more = sorted(shares)
    small, large = (split_ood(name_n, share, 0.2, seed=seed) for share in (less, more))
    np.testing.assert_array_equal(small == "test", large == "test")
    for part in ("train", "validation"):
        assert set(np.flatnonzero(small == part)) <= set(np.flatnonzero(large == part))


@settings(max_examples=30, deadline=None)
@given(name_n=screens(), seed=st.integers(0, 50), train_share=st.floats(0, 0.7), test_share=st.floats(0.05, 0.3))
def test_held_out_combinations_are_never_trained_on(name_n, seed, train_share, test_share):
    split = split_ood(name_n, train_share, test_share, seed=seed)
    held_out = of(name_n, split, "test") - {CONTROL}
    assert held_out
    assert all(len(targets_of(name)) > 1 for name in held_out | of(name_n, split, "unused"))
    assert not held_out & (of(name_n, split, "train") | of(name_n, split, "validation") | of(name_n, split, "unused"))
    assert {name for name in name_n if len(targets_of(name)) < 2} == {
        name for name in of(name_n, split, "train") if len(targets_of(name)) < 2
    }
    np.testing.assert_array_equal(split, split_ood(name_n, train_share, test_share, seed=seed))


@settings(max_examples=30, deadline=None)
@given(name_n=screens(), seed=st.integers(0, 50), share=st.floats(0.05, 0.95))
def test_held_out_targets_are_in_no_training_cell(name_n, seed, share):
    split = split_singles(name_n, share, seed=seed)
    held_out = {name for name in of(name_n, split, "test") if len(targets_of(name)) == 1} - {CONTROL}
    assert held_out
    seen = {target for part in ("train", "validation") for name in of(name_n, split, part) for target in targets_of(name)}
    assert not held_out & seen
    assert CONTROL in of(name_n, split, "train")
    assert any(len(targets_of(name)) == 1 for name in of(name_n, split, "train"))


@settings(max_examples=25, deadline=None)
@given(name_n=screens(), seed=st.integers(0, 50), which=st.sampled_from(["singles", "perturbations"]), data=st.data())
def test_folds_hold_out_each_once(name_n, seed, which, data):
    wanted = {name for name in name_n if (len(targets_of(name)) == 1 if which == "singles" else len(targets_of(name)) > 1)}
    k = data.draw(st.integers(2, len(wanted)))
    make = split_singles if which == "singles" else split_perturbations
    tested = [of(name_n, make(name_n, fold=(i, k), seed=seed), "test") & wanted for i in range(k)]
    assert all(tested)
    assert set.union(*tested) == wanted
    assert sum(map(len, tested)) == len(wanted)


@settings(max_examples=30, deadline=None)
@given(name_n=screens(), seed=st.integers(0, 50), test=st.floats(0, 0.6), validation=st.floats(0, 0.6))
def test_cells_of_each_perturbation_are_in_all_parts(name_n, seed, test, validation):
    split = split_cells(name_n, test, validation, seed)
    for name in set(name_n):
        own = split[name_n == name]
        assert (own == "train").any()
        assert abs((own == "test").sum() - test * len(own)) <= 1
        assert (own == "validation").sum() <= validation * len(own) + 0.5


def test_shares_of_cells():
    name_n = np.repeat(np.array([CONTROL, "A", "B"], object), [500, 200, 100])
    split = split_cells(name_n)
    for name, n in ((CONTROL, 500), ("A", 200), ("B", 100)):
        own = pd.Series(split[name_n == name]).value_counts() / n
        assert own.to_dict() == {"train": 0.64, "test": 0.2, "validation": 0.16}
    assert (split_cells(name_n, seed=1) != split).any()


def test_control_cells_are_held_out_too():
    name_n = np.repeat(np.array([CONTROL, "A", "B", "A+B", "A+C", "B+C"], object), 50)
    for split in (
        split_ood(name_n, control_share=0.3),
        split_singles(name_n, control_share=0.3),
        split_perturbations(name_n, (0, 2), control_share=0.3),
    ):
        control = pd.Series(split[name_n == CONTROL]).value_counts()
        assert control.to_dict() == {"train": 28, "test": 15, "validation": 7}
    assert (split_ood(name_n, control_share=0)[name_n == CONTROL] != "test").all()


def test_cells_without_a_name_are_unused():
    name_n = np.repeat(np.array([CONTROL, "A", "B", "A+B", "A+C", ""], object), 10)
    for split in (split_ood(name_n), split_singles(name_n), split_perturbations(name_n, (0, 2)), split_cells(name_n)):
        np.testing.assert_array_equal(split[name_n == ""], "unused")
        assert (split[name_n != ""] != "unused").any()


def test_a_share_that_is_whole_is_not_rounded_up():
    name_n = np.array([CONTROL, "A", *(f"A+{c}" for c in "BCDEFGHIJK")], object)
    split = split_ood(name_n, 0.7, 0.1 + 0.2)
    assert (len(of(name_n, split, "test") - {CONTROL}), (split == "unused").sum()) == (3, 0)


@pytest.mark.parametrize(
    ("names", "make", "what", "remedy"),
    [
        (["A", "B", CONTROL], split_ood, "no combination of targets is in the file", "--split singles"),
        (["A", "A_B", "B_C"], split_ood, "names are like A, A_B, B_C", "--delimiter"),
        (["A", "A+B"], split_ood, r"only one combination of targets, 'A\+B'", "--split cells"),
        (["A+B", "B+C", CONTROL], split_singles, "no target is perturbed alone", "--split cells"),
        (["A", CONTROL], split_singles, "only one target, 'A', is perturbed alone", "--split cells"),
        (["A+B", "B+C"], lambda n: split_ood(n, 0.9, 0.2), "more than all", "lower one"),
        (["A+B", "B+C"], lambda n: split_perturbations(n, (0, 3)), "2 combinations cannot be shared out over 3 folds", "2 to 2 folds"),
        (["A", "B"], lambda n: split_singles(n, fold=(2, 2)), "no fold 3 of 2", "1/2 to 2/2"),
        (["A", "B"], lambda n: split_singles(n, 1.0), "a share of 1.0", "between 0 and 1"),
    ],
)
def test_what_cannot_be_split(names, make, what, remedy):
    with pytest.raises(SctoolError, match=f"{what}.*\n.*{remedy}"):
        make(np.array(names, object))


def test_split_column():
    obs = pd.DataFrame({"part": pd.Categorical(["Train", "val", "test", None, "spare", "training"]), "no": "x"})
    assert split_column(obs, "part").tolist() == ["train", "validation", "test", "unused", "unused", "train"]
    with pytest.raises(SctoolError, match=r"obs\['no'\] \(--split\) has no 'train' cell; it has: x \(6\)"):
        split_column(obs, "no")
    with pytest.raises(SctoolError, match=r"no column 'prt'.*\n.*did you mean 'part'"):
        split_column(obs, "prt")
    with pytest.raises(SctoolError, match="did you mean 'ood'"):
        split_column(obs, "oood")


def test_parse_fold():
    assert parse_fold("2/5") == (1, 5)
    assert parse_fold(" 1 / 2 ") == (0, 2)
    for wrong in ("0/5", "6/5", "5", "1/1", "a/b", "-1/5"):
        with pytest.raises(SctoolError, match="is not a fold"):
            parse_fold(wrong)
