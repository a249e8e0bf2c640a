"""The published configuration below ``integrate:``: every key of its two columns of defaults, and what becomes of each."""

import pandas as pd
import pytest
import yaml

from sctool.config import MODEL_DEFAULTS, Config, load_config
from sctool.data.phases import read_phases
from sctool.errors import SctoolError
from sctool.published_config import TABLE
from tests.cli.test_commands import ROOT, strict_json

SCHEMA = """
global: {latent_dim: 20, n_diffusion_steps: 400, n_genes: 2000, n_batches: 4, n_cell_types: 13, supervised: true}
data: {train_data_path: train.h5ad, cell_type_key: cell_type, batch_key: batch}
encoder: {hidden_dims: [256, 128], dropout: 0.1, use_batch_norm: true, use_layer_norm: false, input_transform: log1p}
classifier: {hidden_dim: 256, n_layers: 3, batch_embed_dim: 32, dropout: 0.2}
likelihood: {hidden_dim: 128, n_layers: 2, dispersion_mode: gene, use_library_size: true}
prior: {cell_type_prior_probs: null, batch_prior_probs: null}
ddpm_forward: {beta_schedule: linear, beta_min: 1e-4, beta_max: 2e-2}
ddpm_backward:
  {variance_type: fixed, noise_hidden_dim: 128, noise_n_layers: 2, timestep_embed_dim: 64, celltype_embed_dim: 32, dropout: 0.1}
training:
  {n_epochs: 100, batch_size: 128, learning_rate: 1e-3, weight_decay: 1e-5, grad_clip_norm: 1.0, lr_scheduler: cosine, lr_warmup_epochs: 5,
   log_interval: 100, checkpoint_interval: 1, checkpoint_dir: ./checkpoints, device: cuda, use_amp: false, seed: 42}
inference:
  {use_ddpm_refinement: false, n_refinement_steps: null, default_target_batch: 0, save_latent_embeddings: true,
   save_corrected_expression: true, save_cell_type_predictions: true, output_dir: ./results}
"""
SHIPPED = """
global:
  {latent_dim: 20, n_diffusion_steps: 400, n_genes: 2000, n_batches: 4, n_cell_types: 13, supervised: true, eps: 1e-8, dropout: 0.1,
   use_batch_norm: true}
data:
  {train_data_path: train.h5ad, val_data_path: val.h5ad, test_data_path: test.h5ad, log_transform: true, normalize: true,
   cell_type_key: celltype, batch_key: orig.ident}
encoder: {hidden_dims: [256, 128], dropout: 0.1, use_batch_norm: true, use_layer_norm: false, input_transform: log1p}
classifier: {hidden_dim: 256, n_layers: 3, batch_embed_dim: 32, dropout: 0.2}
likelihood: {hidden_dim: 128, n_layers: 3, dispersion_mode: gene, use_library_size: true}
prior: {cell_type_prior_probs: null, batch_prior_probs: null}
ddpm_forward: {beta_schedule: cosine, beta_min: 0.0001, beta_max: 0.02}
ddpm_backward:
  {variance_type: learned, noise_hidden_dim: 128, noise_n_layers: 2, timestep_embed_dim: 64, celltype_embed_dim: 32, dropout: 0.1}
training:
  n_epochs: 40
  batch_size: 256
  learning_rate: 1e-3
  weight_decay: 1e-5
  grad_clip_norm: 1.0
  lr_scheduler: step
  lr_warmup_epochs: 5
  log_interval: 10
  checkpoint_interval: 10
  checkpoint_dir: ./checkpoints
  device: cuda
  use_amp: false
  seed: 42
  sessions:
    - {name: s1, data_path: a.h5ad, supervised: false, n_epochs: 40, resume_from: null, output_checkpoint: s1.pt}
    - {name: s2, data_path: b.h5ad, supervised: true, n_epochs: 20, resume_from: null, output_checkpoint: s2.pt}
inference:
  {use_ddpm_refinement: true, n_refinement_steps: 100, default_target_batch: 0, save_latent_embeddings: true,
   save_corrected_expression: true, save_cell_type_predictions: true, output_dir: ./results}
"""
NEW = """
data: {counts_layer: auto, n_top_genes: 1500, unlabeled: ["Unknown", ""], shared_batches: false}
encoder: {n_batch_embed: 10, batch_dropout: 0.2}
likelihood: {distribution: zinb}
prior: {type: normal, novel_weight: 0.1, n_components: auto}
training:
  {n_epochs: 40, n_epochs_kl_warmup: 10, kl_weight_max: 0.5, classification_ratio: 20, n_samples_per_label: 100, cycle_weight: 1.0,
   adversarial_weight: 0.0, early_stopping_patience: 30, val_fraction: 0.2}
diffusion:
  {n_steps_train: 1e4, batch_size: 512, lr: 1e-3, ema: 0.99, prediction: v, min_snr_gamma: 5, p_null_label: 0.1, p_null_batch: 0.2}
elbo: {joint: false}
inference:
  {refinement_method: sdedit_mean, refinement_target: b1, refinement_grid: 20, refinement_min_confidence: 0.7, refinement_blend: 0.5}
transfer: {mode: finetune, replay_fraction: 0.5, l2sp: 1e-2, lr_scale: 0.1}
"""


def below_integrate(text, path, **own):
    tree = yaml.safe_load(text)
    path.write_text(yaml.safe_dump({"integrate": {**tree, **own.pop("integrate", {})}, **own}, sort_keys=False))
    return path


def load(text, path, flags=None, sets=None, model="integrate", **own):
    notes = []
    return load_config(below_integrate(text, path / "published.yaml", **own), flags, sets, model, notes), notes


def flat(config):
    """Values by dotted key."""
    tree = config.model_dump()
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    dotted = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {key: value for key, value in tree.items() if key not in sections} | dotted


def changed(config):
    """Those that are not integrate's defaults."""
    default = flat(Config().replaced(MODEL_DEFAULTS["integrate"]))
    return {key: value for key, value in flat(config).items() if value != default[key]}


def test_the_shipped_file_is_read_as_what_it_says(tmp_path):
    config, notes = load(SHIPPED, tmp_path)
    wanted = {
        "integrate.n_latent": 20,
        "integrate.n_hidden": 128,
        "integrate.n_layers": 2,
        "integrate.refine": True,
        "integrate.refine_steps": 100,
        "integrate.target_batch": "0",
        "data.path": "train.h5ad",
        "data.label_key": "celltype",
        "data.batch_key": "orig.ident",
        "diffusion.n_layers": 2,
        "train.epochs": 40,
        "train.batch_size": 256,
        "train.lr": 1e-3,
        "train.weight_decay": 1e-5,
        "train.grad_clip": 1.0,
        "seed": 42,
        "device": "cuda",
    }
    assert {key: flat(config)[key] for key in wanted} == wanted
    assert set(changed(config)) <= set(wanted)
    said = "\n".join(notes)
    assert "train.epochs 40" in notes[0]
    assert "global.n_genes, global.n_batches, global.n_cell_types: no effect: sizes are read from the file" in notes
    assert "encoder.hidden_dims: all 2 layers get the last width, 128" in notes
    for what in ("variance is fixed", "step has no effect", "2 phases", "--phases", "--model", "judged by its values"):
        assert what in said
    assert "save_" not in said  # it asks for what happens anyway


def test_the_defaults_of_the_schema_load(tmp_path):
    config, notes = load(SCHEMA, tmp_path)
    assert (config.train.lr_decay, config.diffusion.schedule, config.train.epochs) == ("cosine", "linear", 100)
    assert "variance_type" not in "\n".join(notes)


def test_the_new_keys_are_read(tmp_path):
    config, _ = load(NEW, tmp_path)
    made = changed(config)
    assert {key: value for key, value in made.items() if key.startswith("diffusion.")} == {
        "diffusion.train_steps": 10_000,
        "diffusion.batch_size": 512,
        "diffusion.ema": 0.99,
        "diffusion.drop_type": 0.1,
        "diffusion.drop_batch": 0.2,
    }
    assert (config.train.warmup, config.train.patience, config.data.validation, config.data.n_top_genes) == (0.25, 30, 0.2, 1500)
    own = config.integrate
    assert (own.likelihood, own.prior, own.transfer, own.anchor_weight) == ("zinb", "normal", "finetune", 0.01)
    assert (own.refine_method, own.refine_target, own.refine_blend) == ("sdedit_mean", "b1", 0.5)
    assert (own.kl_weight, own.classification_weight, own.batch_dropout) == (0.5, 20, 0.2)
    assert (own.n_components, config.data.counts_layer) == (Config().integrate.n_components, None)


def test_every_key_is_mapped_or_explained():
    """The table has the keys of the files above and no others; each leads to keys that are there, or to a reason."""
    trees = [yaml.safe_load(text) for text in (SCHEMA, SHIPPED, NEW)]
    assert {(name, key) for tree in trees for name, section in tree.items() for key in section} == {
        (name, key) for name, rules in TABLE.items() for key in rules
    }
    words = {"hidden_dims": [8], "sessions": [], "supervised": "semi", "lr_scheduler": "cosine", "use_amp": True}
    words |= {"type": "normal", "dispersion_mode": "gene"}
    for name, rules in TABLE.items():
        for key, rule in rules.items():
            values, note = rule(words.get(key, 3), {"n_epochs": 4})
            assert bool(values) != bool(note), f"{name}.{key}"
            assert set(values) <= set(flat(Config()))


@pytest.mark.parametrize(("value", "mode"), [("true", "auto"), ("false", "unsupervised"), ("semi", "semi")])
def test_supervised(value, mode, tmp_path):
    assert load(f"global: {{supervised: {value}}}", tmp_path)[0].integrate.mode == mode


def test_the_section_wins_over_global(tmp_path):
    text = "encoder: {dropout: 0.3}\nglobal: {dropout: 0.2}"
    assert load(text, tmp_path)[0].integrate.dropout == 0.3


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("training: {n_epoch: 3}", "unknown key integrate.training.n_epoch; did you mean n_epochs?"),
        ("elbo: {zzz: 3}", "unknown key integrate.elbo.zzz (valid here: joint)"),
        ("trainig: {n_epochs: 3}", "unknown section integrate.trainig; did you mean training?"),
        ("global: {supervised: maybe}", "integrate.global.supervised: give one of true, false, semi (found 'maybe')"),
        ("training: {learning_rate: fast}", "integrate.training.learning_rate: give a number (found 'fast')"),
        ("training: {learning_rate: 0}", "train.lr: input should be greater than 0"),
        ("encoder: {hidden_dims: 128}", "integrate.encoder.hidden_dims: give a list of widths"),
        ("ddpm_forward: {beta_schedule: sine}", "diffusion.schedule: input should be 'cosine', 'linear' or 'quadratic' (found 'sine')"),
    ],
)
def test_what_cannot_be_read(text, what, tmp_path):
    with pytest.raises(SctoolError) as error:
        load(text, tmp_path)
    assert what in error.value.message
    assert error.value.hint


def test_all_mistakes_at_once_and_a_section_in_the_wrong_place(tmp_path):
    with pytest.raises(SctoolError) as error:
        load("training: {n_epoch: 3, batchsize: 8}\nglobal: {latent: 1}", tmp_path)
    assert all(word in error.value.message for word in ("did you mean n_epochs?", "did you mean batch_size?", "did you mean latent_dim?"))
    (tmp_path / "top.yaml").write_text("training: {n_epochs: 3}\n")
    with pytest.raises(SctoolError, match="training; a section of the published configuration goes below integrate:"):
        load_config(tmp_path / "top.yaml")


def test_our_own_keys_and_flags_win(tmp_path):
    text = "training: {n_epochs: 40, batch_size: 256, learning_rate: 1e-3}\nglobal: {latent_dim: 20}"
    config, notes = load(
        text, tmp_path, {"train.batch_size": 32}, ["train.lr=0.5"], train={"epochs": 7}, integrate={"n_latent": 5, "transfer": "surgery"}
    )
    assert (config.train.epochs, config.train.batch_size, config.train.lr) == (7, 32, 0.5)
    assert (config.integrate.n_latent, config.integrate.transfer) == (5, "surgery")
    assert "train.epochs" not in notes[0]
    assert notes[1] == "our own keys of the file win over published ones: integrate.n_latent (5, not 20), train.epochs (7, not 40)"


def test_pasted_into_the_whole_config_yaml(tmp_path):
    """Its null keys give way; of the others the user is told."""
    whole = yaml.safe_load((ROOT / "config.yaml").read_text())
    config, notes = load(SHIPPED, tmp_path, **whole)
    assert (config.data.path, config.data.batch_key, config.train.epochs, config.seed) == ("train.h5ad", "orig.ident", 40, 0)
    assert "seed (0, not 42)" in notes[1]
    assert "integrate.n_latent" not in notes[1]  # the same in both


def test_other_models_keep_their_settings(tmp_path):
    config, notes = load(SHIPPED, tmp_path, model="scvi")
    assert (config.seed, config.device, config.train, config.data) == (0, "auto", Config().train, Config().data)
    assert config.integrate.refine_steps == 100
    assert notes == []


def test_a_file_without_them_is_read_as_before(tmp_path):
    config, notes = load("mode: semi\nprior: normal", tmp_path)
    assert (config.integrate.mode, config.integrate.prior, notes) == ("semi", "normal", [])
    assert load("training:\nlikelihood: {}", tmp_path)[1] == ["published keys below integrate are read as nothing"]


def test_sessions_are_phases(tmp_path):
    phases = read_phases(below_integrate(SHIPPED, tmp_path / "published.yaml"))
    assert [phase.settings() for phase in phases] == [
        {"data.path": "a.h5ad", "integrate.mode": "unsupervised", "train.epochs": 40},
        {"data.path": "b.h5ad", "integrate.mode": "auto", "train.epochs": 20},
    ]
    (tmp_path / "plain.yaml").write_text(SHIPPED)
    assert read_phases(tmp_path / "plain.yaml") == phases
    below_integrate(SCHEMA, tmp_path / "published.yaml")
    with pytest.raises(SctoolError, match="holds no list of phases"):
        read_phases(tmp_path / "published.yaml")


def test_the_command_trains_by_it(sctool, small_file, tmp_path):
    tree = yaml.safe_load(SHIPPED)
    tree["data"] |= {"train_data_path": str(small_file), "cell_type_key": "cell_type", "batch_key": "batch"}
    tree["encoder"]["hidden_dims"] = [24, 16]
    tree["training"] |= {"n_epochs": 2, "device": "cpu"}
    tree["diffusion"] = {"n_steps_train": 20}
    below_integrate(yaml.safe_dump(tree), tmp_path / "published.yaml", integrate={"finetune_epochs": 2})
    ran = sctool("integrate", "--config", "published.yaml", "--no-score", "--name", "r")
    assert ran.code == 0, ran.err
    assert "note: encoder.hidden_dims: all 2 layers get the last width, 16" in ran.err
    manifest = strict_json(tmp_path / "checkpoints" / "integrate" / "r" / "manifest.json")
    assert manifest["seed"] == 42
    history = pd.read_csv(tmp_path / "checkpoints" / "integrate" / "r" / "history.csv")
    assert history["stage"].value_counts()["autoencoder"] == 2
    metrics = strict_json(tmp_path / "results" / "integrate" / "r" / "metrics.json")
    assert (metrics["mode"], metrics["target_batch"]) == ("supervised", "0")
    assert "refinement" in metrics
