"""Networks of samples: what inference may not depend on, what each stage trains, and what is made of several answers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from sctool.bench.sample_files import answer_columns
from sctool.config import load_config
from sctool.data.check_samples import check_samples_file
from sctool.data.cohort import Task
from sctool.data.read import H5ad
from sctool.data.samples import prepare_samples
from sctool.engine.run import set_up, train_in_memory
from sctool.engine.sample_answers import Blend, averaged
from sctool.engine.sample_importance import cell_weights, type_effects
from sctool.engine.samples import attention_stage, embed_samples, in_blocks, sample_stages, see
from sctool.engine.trainer import Trainer
from sctool.models.classify.calibration import Calibration
from sctool.models.registry import BUILDERS
from tests.samples.conftest import tiny_cohort

SMALL = {"min_cells": 10, "n_networks": 2, "n_heads": 2, "n_values": 3, "n_hidden": 8, "n_latent": 6, "attention_hidden": 8}
TASKS = (
    Task("condition", "class", ("ill", "well")),
    Task("age", "regression"),
    Task("stage", "ordinal", ("mild", "severe", "worst")),
)
ALL = np.ones(14, bool)
NONE = np.full(14, -1)  # batches of the samples where none is to be hidden


@pytest.fixture(scope="module")
def cohort_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "tiny.h5ad"
    tiny_cohort().write_h5ad(path)
    file = H5ad(path)

    def cohort(config):
        return check_samples_file(file, config, training=False).require_cohort()

    return cohort


@pytest.fixture
def setting_of(cohort_of):
    """A network, the cells it is for, and what draws views."""

    def of(tasks=(), train_s=ALL, more=None, **settings):
        given = {"sample_key": "sample", "donor_key": "donor", "cells_per_view": [5, 10], "n_clusters": 3, **SMALL, **settings}
        flags = {f"sampleclr.{key}": value for key, value in given.items()}
        flags |= {"sampleclr.tasks": [f"{task.column}:{task.kind}" for task in tasks], "data.label_key": "cell_type"}
        flags |= {"train.epochs": 2, "device": "cpu"}
        config = load_config(model="sampleclr", flags=flags).replaced(more or {})
        cohort = cohort_of(config)
        return set_up(BUILDERS["sampleclr"], prepare_samples(cohort, tasks, config, train_s), config), cohort

    return of


def trained(setting, stages=sample_stages):
    for _ in train_in_memory(setting, stages):
        pass
    return setting.module


def embedded(setting, x_nf, sample_n, network=None):
    return embed_samples(setting.module, in_blocks(x_nf, sample_n), NONE, network=network).embedding_sd


def state(part):
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# inference


@pytest.mark.parametrize("network", [None, 0])
def test_the_order_and_the_number_of_calls_change_nothing(setting_of, network):
    setting, cohort = setting_of(TASKS)
    trained(setting)
    x_nf, sample_n = setting.prepared.matrix, cohort.sample_n
    z_sd = embedded(setting, x_nf, sample_n, network)
    assert np.array_equal(embedded(setting, x_nf, sample_n, network), z_sd)
    order = np.random.default_rng(0).permutation(len(x_nf))
    np.testing.assert_allclose(embedded(setting, x_nf[order], sample_n[order], network), z_sd, atol=1e-5)
    assert np.ptp(z_sd, axis=0).max() > 0.01


@pytest.mark.parametrize(("network", "n_clusters"), [(None, 0), (None, 3), (0, 3)])
def test_each_cell_twice_is_the_same_sample(setting_of, network, n_clusters):
    setting, cohort = setting_of(TASKS, n_clusters=n_clusters)
    x_nf, sample_n = setting.prepared.matrix, cohort.sample_n
    once = embedded(setting, x_nf, sample_n, network)
    twice = embedded(setting, np.repeat(x_nf, 2, 0), np.repeat(sample_n, 2), network)
    np.testing.assert_allclose(twice, once, atol=1e-5)
    if network is None:
        assert once.shape[1] == 5 + n_clusters + 6  # features, log-ratios, learned
        assert (np.ptp(once, axis=0) > 1e-3).all()


@pytest.mark.parametrize("network", [None, 0])
def test_blocks_are_the_same_as_one_shot(setting_of, monkeypatch, network):
    from sctool.engine import samples

    setting, cohort = setting_of(TASKS)
    x_nf, sample_n = setting.prepared.matrix, np.where(np.arange(560) % 7, cohort.sample_n, -1)
    setting.module.eval()
    encoder = setting.module.encoder if network is None else setting.module.told[network]
    rows = [np.flatnonzero(sample_n == s) for s in range(14)]
    x_sof, mask_so = torch.zeros(14, 40, 5), torch.zeros(14, 40, dtype=torch.bool)
    for s, own in enumerate(rows):
        x_sof[s, : len(own)], mask_so[s, : len(own)] = torch.as_tensor(x_nf[own]), True
    with torch.no_grad():
        z_sd, w_soh = encoder(setting.module.standard(x_sof), mask_so, torch.as_tensor(NONE))
    monkeypatch.setattr(samples, "CELLS", 37)
    made = embed_samples(setting.module, in_blocks(x_nf, sample_n), NONE, network=network)
    np.testing.assert_allclose(made.z_sd, z_sd, atol=1e-5)
    w_nh = np.concatenate(list(cell_weights(setting.module, made, in_blocks(x_nf, sample_n))))
    for s, own in enumerate(rows):
        np.testing.assert_allclose(w_nh[own], w_soh[s, : len(own)], atol=1e-5)
    np.testing.assert_allclose(w_nh[sample_n < 0], 0)
    np.testing.assert_array_equal(made.n_cells_s, [len(own) for own in rows])


def test_a_bootstrap_of_the_cells_is_another_draw_around_the_same(setting_of):
    setting, cohort = setting_of()
    blocks = in_blocks(setting.prepared.matrix, cohort.sample_n)
    z_sd = embed_samples(setting.module, blocks, NONE).embedding_sd
    draws = [embed_samples(setting.module, blocks, NONE, rng=np.random.default_rng(seed)).embedding_sd for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    for other in (draws[2], z_sd):
        assert 1e-3 < np.abs(draws[0] - other).mean() < np.abs(z_sd[:, None] - z_sd).mean()


# training


@pytest.mark.parametrize("more", [{}, {"data.batch_key": "pool"}])
def test_a_stage_trains_its_own_part_and_nothing_else(setting_of, more):
    setting, _ = setting_of(TASKS, more=more)
    module = setting.module
    parts = {"contrastive": [module.encoder], "tasks 1": [module.told[0], module.heads[0]], "tasks 2": [module.told[1], module.heads[1]]}
    for stage, own in parts.items():
        before = {name: [state(part) for part in some] for name, some in parts.items()}
        module.on = {"contrastive": None, "tasks 1": 0, "tasks 2": 1}[stage]
        module.train()
        batch, found = setting.store.batch(np.arange(14)), {}
        for hides in (not more, bool(more)):  # the latter as it is
            torch.manual_seed(0)
            module.zero_grad()
            module.hides = hides
            terms = module.loss(batch)
            terms.loss.backward()
            assert ("batches" in terms.parts) == hides
            found[hides] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        assert any(not torch.allclose(a, b) for a, b in zip(*found.values(), strict=True)) == bool(more)  # unknown batches ask nothing
        touched = {id(p) for p in module.parameters() if p.grad is not None}
        assert touched == {id(p) for part in own for p in part.parameters()}
        groups = module.trained()
        assert {id(p) for p in groups} == touched
        rows = np.arange(14)
        Trainer(module, setting.store, setting.sampler(rows), setting.config.train, seed=0).fit()
        for name, some in parts.items():
            changed = [not same(a, state(part)) for a, part in zip(before[name], some, strict=True)]
            assert changed == [name == stage] * len(some), (stage, name)


def test_gradients_of_another_stage_do_not_count_in_the_clip(setting_of):
    after = []
    for stale in (None, 1e30):
        setting, _ = setting_of(TASKS, more={"train.grad_clip": 0.1, "train.epochs": 1})
        setting.module.on = 0
        for p in setting.module.encoder.parameters():
            p.grad = None if stale is None else torch.full_like(p, stale)
        start = state(setting.module.told[0])
        Trainer(setting.module, setting.store, setting.sampler(np.arange(14)), setting.config.train, seed=0).fit()
        after.append(state(setting.module.told[0]))
        assert not same(start, after[-1])
    assert same(*after)


def test_the_embedding_never_sees_a_label(setting_of):
    """Bit for bit what it is without tasks; and attention alone is what it says, without an embedding."""
    told, cohort = setting_of(TASKS)
    plain, _ = setting_of()
    encoders = [state(trained(setting).encoder) for setting in (told, plain)]
    assert same(*encoders)
    x_nf, sample_n = told.prepared.matrix, cohort.sample_n
    assert np.array_equal(embedded(told, x_nf, sample_n), embedded(plain, x_nf, sample_n))
    alone, _ = setting_of(TASKS)
    start = state(alone.module.encoder), state(alone.module.told[1])
    trained(alone, attention_stage)
    assert same(start[0], state(alone.module.encoder))
    assert same(start[1], state(alone.module.told[1]))


def test_networks_for_the_tasks_are_judged_on_other_donors(setting_of):
    setting, cohort = setting_of(TASKS, train_s=ALL & (np.arange(14) != 13))
    held = np.concatenate([b for _, b in setting.prepared.inner])
    assert sorted(held) == list(range(13))
    for a, b in setting.prepared.inner:
        assert not set(cohort.donor_s[a]) & set(cohort.donor_s[b])


def test_labels_of_samples_not_trained_on_change_nothing(setting_of, cohort_of):
    train_s = np.arange(14) % 10 < 7
    setting, cohort = setting_of(TASKS, train_s=train_s)
    table = cohort.table.copy()
    for column in ("condition", "age", "stage"):
        table.loc[~train_s, column] = table[column].to_numpy()[~train_s][::-1]
    assert not table.equals(cohort.table)
    prepared = prepare_samples(replace(cohort, table=table), TASKS, setting.config, train_s)
    other = set_up(BUILDERS["sampleclr"], prepared, setting.config)
    assert same(state(trained(setting)), state(trained(other)))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_best_weights_are_restored(setting_of, norm):
    setting, _ = setting_of(TASKS, norm=norm, more={"data.validation": 0.3, "train.epochs": 6, "train.lr": 0.05})
    best = []
    for stage in sample_stages(setting):
        trainer = Trainer(setting.module, stage.store, stage.sampler, stage.train, seed=0, validation_rows=stage.validation_rows)
        fit = trainer.fit()
        losses = [row["validation_loss"] for row in fit.history]
        assert trainer.score(stage.validation_rows)["loss"] == min(losses) == losses[fit.best_epoch - 1]
        best.append(fit.best_epoch)
    assert len(best) == 3
    assert min(best) < 6  # else the last weights would be the best anyway


def test_statistics_of_a_batch_norm_follow_in_every_epoch(setting_of):
    setting, _ = setting_of(TASKS, norm="batch", more={"data.validation": 0.3, "train.epochs": 3})
    seen = []

    class Watch:
        def start(self, *words): ...
        def step(self, cells): ...
        def stop(self, message): ...
        def epoch(self, row):
            seen.append({name: b.clone() for name, b in setting.module.told[0].named_buffers() if "running" in name})

    setting.module.on = 0
    rows = setting.prepared.inner[0][0]
    train = setting.config.train.model_copy(update={"epochs": 3})
    Trainer(setting.module, setting.store, setting.sampler(rows), train, validation_rows=rows[:3], reporter=Watch()).fit()
    assert len(seen) == 3
    assert seen[0]
    for before, after in pairwise(seen):
        assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_ten_donors_are_enough_for_large_minibatches(setting_of, norm):
    setting, _ = setting_of(TASKS, train_s=np.arange(14) < 10, norm=norm)
    assert setting.config.train.batch_size == 64
    before = state(setting.module)
    after = state(trained(setting))
    for part in ("encoder.projector.weight", "told.0.read.0.weight", "told.1.read.0.weight", "heads.1.2.weight"):
        assert not torch.equal(before[part], after[part]), part
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


def test_one_sample_twice_or_one_donor_is_no_negative(setting_of):
    """Sample 10 is of the donor of sample 0: of the two nothing is left to tell apart, so the loss is 0 whatever the vectors."""
    setting, _ = setting_of()
    module = setting.module.eval()

    def contrast(*rows):
        batch = setting.store.batch(np.array(rows))
        a_sd, b_sd, _ = module._views(batch)
        return module._contrast(a_sd, b_sd, batch).item()

    assert contrast(0, 1) > 0.05
    assert contrast(0, 0) == pytest.approx(0, abs=1e-6)
    assert contrast(0, 10) == pytest.approx(0, abs=1e-6)


def test_the_contrast_by_labels_draws_samples_of_one_label_together(setting_of):
    setting, _ = setting_of(TASKS[:1])
    module = setting.module
    apart_ss = module._apart({"condition": torch.tensor([0.0, 1.0, 0.0, torch.nan])})
    assert apart_ss.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]


# importance


def test_the_effect_of_a_type_is_the_answer_without_its_cells(setting_of):
    setting, cohort = setting_of(TASKS)
    trained(setting)
    x_nf, sample_n = setting.prepared.matrix, cohort.sample_n
    type_n = (cohort.types_n == "b").astype(int)
    type_n[sample_n == 3] = 0  # a sample without the second type, so without any cell but of the first
    type_n[:2] = -1
    made = embed_samples(setting.module, in_blocks(x_nf, sample_n), NONE, network=0)
    effects = type_effects(setting.module, made, 0, in_blocks(x_nf, sample_n), type_n, 2)
    with torch.no_grad():
        whole = setting.module.answers(torch.as_tensor(made.z_sd), 0)
        for code in range(2):
            rest = in_blocks(x_nf[type_n != code], sample_n[type_n != code])
            without = setting.module.answers(torch.as_tensor(embed_samples(setting.module, rest, NONE, network=0).z_sd), 0)
            for task, effect_sto, a_so, b_so in zip(TASKS, effects, whole, without, strict=True):
                want_so = (a_so - b_so).numpy()
                if task.kind == "class":
                    want_so = want_so - want_so.mean(1, keepdims=True)
                other = np.arange(14) != 3
                np.testing.assert_allclose(effect_sto[other, code], want_so[other], atol=1e-4)
                assert np.isnan(effect_sto[3, code]).all()
    assert np.nanmax(np.abs(effects[0])) > 1e-3


# answers

CLASS, NUMBER, LEVELS = TASKS


def test_the_mean_of_equal_answers_is_the_answer():
    rng = np.random.default_rng(0)
    p_sc, x_s1 = rng.dirichlet([1, 1, 1], 20), rng.normal(size=(20, 1))
    for task, answer in ((CLASS, p_sc), (LEVELS, p_sc), (NUMBER, x_s1)):
        for weights in ([1.0], [0.5, 0.5], [0.2, 0.3, 0.5]):
            np.testing.assert_allclose(averaged(task, [answer] * len(weights), weights), answer, atol=1e-5)


def test_means_are_of_log_probabilities_and_of_log_odds():
    a_sc, b_sc = np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([[0.2, 0.8], [0.9, 0.1]])
    mean_sc = averaged(CLASS, [a_sc, b_sc], [0.5, 0.5])
    np.testing.assert_allclose(mean_sc, [[0.5, 0.5], [0.75, 0.25]])
    a_sc, b_sc = np.array([[0.6, 0.3, 0.1]]), np.array([[0.2, 0.2, 0.6]])
    above = expit((logit([0.4, 0.1]) + logit([0.8, 0.6])) / 2)
    np.testing.assert_allclose(averaged(LEVELS, [a_sc, b_sc], [0.5, 0.5])[0], [1 - above[0], above[0] - above[1], above[1]])


@pytest.mark.parametrize("task", TASKS[:2])
def test_who_is_right_is_listened_to(task):
    rng = np.random.default_rng(0)
    truth_s = np.arange(40) % 2.0
    right = truth_s[:, None] if task.kind == "regression" else np.where(truth_s[:, None] == [0, 1], 0.9, 0.1)
    wrong = rng.normal(size=(40, 3))  # an embedding of nothing
    good = np.hstack([truth_s[:, None] * 4 - 2, wrong])
    inner = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]
    bad = rng.permutation(right)
    assert Blend.fit(task, [right, right], wrong, truth_s, inner).weight == 1
    assert Blend.fit(task, [bad, bad], good, truth_s, inner).weight == 0
    blend = Blend(1.0, Calibration(), None)
    np.testing.assert_allclose(blend(task, [right, right], np.where(np.arange(40)[:, None] == 7, np.nan, bad))[8:], right[8:], atol=1e-6)
    assert np.isnan(blend(task, [right], np.full_like(right, np.nan))).all()


def test_a_blend_is_kept_as_words_and_numbers():
    made = Blend(0.25, Calibration(), np.array([0.4, 0.6]))
    again = Blend.from_json(made.to_json())
    rng = np.random.default_rng(0)
    a_sc, b_sc = rng.dirichlet([1, 1], 5), rng.dirichlet([1, 1], 5)
    np.testing.assert_array_equal(made(CLASS, [a_sc], b_sc), again(CLASS, [a_sc], b_sc))


def test_levels_are_read_at_the_middle_of_their_probability():
    table = answer_columns(LEVELS, np.array([[0.4, 0.3, 0.3], [0.6, 0.0, 0.4], [0.1, 0.1, 0.8], [np.nan] * 3]))
    assert table["prediction"].tolist() == ["severe", "mild", "worst", ""]
    np.testing.assert_allclose(table["expected"][:3], [0.9, 0.8, 1.7])
    classes = answer_columns(CLASS, np.array([[0.4, 0.6], [0.7, 0.3]]))
    assert classes["prediction"].tolist() == ["well", "ill"]


def test_answers_are_probabilities_and_numbers_of_the_scale_given(setting_of):
    setting, cohort = setting_of(TASKS)
    blocks = in_blocks(setting.prepared.matrix, cohort.sample_n)
    scales = setting.prepared.about["scales"]
    seen = see(setting.module, blocks, NONE, TASKS, scales)
    for answers in seen.answers:
        np.testing.assert_allclose(answers["condition"].sum(1), 1)
        np.testing.assert_allclose(answers["stage"].sum(1), 1)
        assert (answers["stage"] >= 0).all()
    wider = see(setting.module, blocks, NONE, TASKS, {"age": [0.0, 2 * scales["age"][1]]}).answers[0]["age"]
    np.testing.assert_allclose(wider, 2 * (seen.answers[0]["age"] - scales["age"][0]), rtol=1e-6)
