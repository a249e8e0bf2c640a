"""The integrating autoencoder: what labels may do, odd minibatches, growing, surgery, genes that were not measured."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sctool.data.minibatch import CellStore
from sctool.models.integrate import Integrator
from sctool.models.transfer import grow, keep_old
from sctool.sections import DiffusionConfig, IntegrateConfig

GENES, CELLS = 30, 40
DIFFUSION = DiffusionConfig(n_hidden=16, n_layers=1)


def counts(n=CELLS, genes=GENES, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 2.0, (n, genes))).astype(np.float32)


def store_of(x, batches=2, labels=3, seed=0, **codes):
    rng = np.random.default_rng(seed)
    n = len(x)
    own = {"batch": rng.integers(0, batches, n), "label": rng.integers(0, labels + 1, n), **codes}
    return CellStore(sp.csr_matrix(x), own, [f"c{i}" for i in range(n)])


def whole(store):
    return store.batch(np.arange(len(store)))


def network(batches=2, labels=3, genes=GENES, seed=0, placed=True, **settings):
    """With random offsets and classes, so that it matters what they are."""
    torch.manual_seed(seed)
    config = IntegrateConfig(**{"n_latent": 4, "n_hidden": 16, "n_layers": 2, "n_components": 5, **settings})
    net = Integrator(config, DIFFUSION, genes, batches, labels)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".offsets." in name or name.startswith("prior.mean"):
                parameter.normal_()
        net.placed.fill_(placed)
    return net


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("labels", [0, 3])
def test_embedding_a_cell_never_reads_its_label(labels):
    net, x = network(labels=labels).eval(), counts()
    made = []
    for code in (np.zeros(CELLS, int), np.full(CELLS, 2), np.full(CELLS, 3), None):
        batch = whole(store_of(x, label=np.zeros(CELLS, int) if code is None else code))
        if code is None:
            batch = batch._replace(codes={"batch": batch.codes["batch"]})
        with torch.inference_mode():
            made.append((net.embed(batch), *net.posterior(batch), net.classify(batch)))
    for other in made[1:]:
        assert same(made[0], other)


def test_labels_act_through_the_loss():
    net, x = network().eval(), counts()
    losses = []
    for code in (0, 1, 3):
        torch.manual_seed(0)
        losses.append(net.loss(whole(store_of(x, label=np.full(CELLS, code)))))
    assert len({loss.loss.item() for loss in losses}) == 3
    assert losses[2].parts["classification"] == 0
    for loss in losses:
        assert loss.parts["reconstruction"] == losses[0].parts["reconstruction"]
    torch.manual_seed(0)
    before = network(placed=False).eval()
    torch.manual_seed(0)
    first = before.loss(whole(store_of(x, label=np.zeros(CELLS, int)))).loss
    torch.manual_seed(0)
    assert first == before.loss(whole(store_of(x, label=np.ones(CELLS, int)))).loss  # until the classes are placed


def test_the_loss_is_the_formula():
    net = network(kl_weight=0.7, classification_weight=9.0).eval()
    store = store_of(counts())
    batch = whole(store)
    torch.manual_seed(0)
    terms = net.loss(batch, anneal=0.5)
    torch.manual_seed(0)
    mean, variance = net.posterior(batch)
    z = mean + variance.sqrt() * torch.randn_like(variance)
    reconstruction = -net.network.log_likelihood(z, batch)
    log_p, kl, label = net.prior.log_share(), net.prior.kl(mean, variance), batch.codes["label"]
    crossed = torch.nn.functional.log_softmax(net.classifier(mean), 1)
    known = label < 3
    terms_n = torch.stack([kl[i, c] - log_p[c] if c < 3 else -(log_p - kl[i]).logsumexp(0) for i, c in enumerate(label.tolist())])
    classification = -torch.stack([crossed[i, c] for i, c in enumerate(label.tolist()) if c < 3]).mean()
    wanted = reconstruction.mean() + 0.5 * 0.7 * terms_n.mean() + 9.0 * classification
    assert 0 < int(known.sum()) < CELLS
    torch.testing.assert_close(terms.loss, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(terms.embedding_nl, mean.detach())


@pytest.mark.parametrize("cells", [1, 2, 3, 17])
@pytest.mark.parametrize("batches", [1, 2, 17])
@pytest.mark.parametrize("labels", ["none", "half", "all", "free"])
def test_losses_and_gradients_of_odd_minibatches_are_finite(cells, batches, labels):
    x = counts(cells)
    x[0] = 0
    n_labels = 0 if labels == "free" else 3
    code = {"none": np.full(cells, 3), "half": np.arange(cells) % 2 * 3, "all": np.arange(cells) % 3, "free": np.zeros(cells, int)}[labels]
    for cycle in (0.0, 1.0):
        net = network(batches, n_labels, cycle_weight=cycle).train()
        terms = net.loss(whole(store_of(x, batches, label=code)))
        terms.loss.backward()
        values = torch.stack([terms.loss.detach(), *terms.parts.values()])
        assert torch.isfinite(values).all(), (cycle, terms.parts)
        assert ("cycle" in terms.parts) == (cycle > 0 and batches > 1)
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("settings", [{"likelihood": "zinb"}, {"dispersion": "gene-batch"}, {"prior": "normal"}])
def test_variants(settings):
    net = network(**settings).train()
    terms = net.loss(whole(store_of(counts())))
    terms.loss.backward()
    assert torch.isfinite(terms.loss)


def test_an_unknown_batch_is_an_average_one():
    net = network(batches=3, dispersion="gene-batch").eval()
    x = counts()
    with torch.inference_mode():
        made = [net.embed(whole(store_of(x, batch=np.full(CELLS, b)))) for b in range(4)]
        assert torch.isfinite(made[3]).all()
        assert not torch.equal(made[3], made[0])
        rho = net.proportions(made[3], {"batch": torch.full((CELLS,), 3)})
        torch.testing.assert_close(rho.sum(1), torch.ones(CELLS))
        assert torch.isfinite(net.loss(whole(store_of(x, batch=np.full(CELLS, 3)))).loss)
        for layer in [*net.network.encoder.body.linears, *net.network.decoder.linears]:
            layer.offsets[0].copy_(layer.offsets[0].mean(0, keepdim=True).expand_as(layer.offsets[0]))
        torch.testing.assert_close(net.embed(whole(store_of(x, batch=np.full(CELLS, 3)))), made[3])
        torch.testing.assert_close(net.embed(whole(store_of(x, batch=np.ones(CELLS, int)))), made[3])


def test_class_probabilities():
    for labels in (0, 3):
        net = network(labels=labels).eval()
        made = net.classify(whole(store_of(counts())))
        assert made.shape == (CELLS, net.n_classes + 1)
        torch.testing.assert_close(made.sum(1), torch.ones(CELLS))


def test_it_remembers_what_it_has_seen():
    net, store = network(batches=3).eval(), store_of(counts(), batches=2)
    net.remember(store.batch(rows) for rows in np.array_split(np.arange(CELLS), 4))
    batch = whole(store)
    predicted = net.classify(batch)[:, :3].argmax(1)
    for b in range(3):
        own = batch.codes["batch"] == b
        assert net.cells_cb[:, b].tolist() == torch.bincount(predicted[own], minlength=3).tolist()
        if own.any():
            log = batch.depth_n1.squeeze(1).log()[own]
            torch.testing.assert_close(net.depth_b2[b], torch.stack([log.mean(), log.std(unbiased=False)]))


def trained_a_little(net, store, steps=3, lr=0.01):
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        net.train().loss(whole(store)).loss.backward()
        optimizer.step()
    return net.eval()


def outputs(net, batch):
    with torch.inference_mode():
        z, variance = net.posterior(batch)
        rho = net.proportions(z, batch.codes)
        return z, variance, rho, net.classify(batch)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_growing_keeps_what_was_there(likelihood, dispersion):
    variant = {"likelihood": likelihood, "dispersion": dispersion}
    x = counts()
    old = trained_a_little(network(**variant), store_of(x))
    with torch.no_grad():
        torch.nn.init.normal_(old.diffusion.denoiser.outward.weight)
    new = network(batches=4, labels=5, seed=9, **variant).eval()
    grow(new, old.state_dict(), 3)
    batch = whole(store_of(x))
    before, after = outputs(old, batch), outputs(new, batch)
    for a, b in zip(before[:3], after[:3], strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(new.classifier(after[0])[:, :3], old.classifier(before[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            new.network.log_likelihood(after[0], batch), old.network.log_likelihood(before[0], batch), atol=1e-3, rtol=1e-5
        )
        own, other = batch.codes["batch"], 1 - batch.codes["batch"]
        for kind, null in ((batch.codes["label"] % 3, (2, 4)), (torch.full_like(own, 3), (2, 4))):
            kinds = [torch.where(kind == 3, net.n_types, kind) for net in (old.diffusion, new.diffusion)]
            moved = [net.diffusion.bridge(before[0], kinds[i], own, other, 399, 20) for i, net in enumerate((old, new))]
            torch.testing.assert_close(moved[1], moved[0], atol=1e-4, rtol=1e-4)
            nobody = [torch.full_like(own, n) for n in null]
            moved = [net.diffusion.bridge(before[0], kinds[i], own, nobody[i], 399, 20) for i, net in enumerate((old, new))]
            torch.testing.assert_close(moved[1], moved[0], atol=1e-4, rtol=1e-4)


def test_a_new_batch_starts_as_an_average_one():
    x = counts()
    old = trained_a_little(network(batches=3), store_of(x, 3))
    new = network(batches=5, seed=9).eval()
    grow(new, old.state_dict(), 3)
    with torch.inference_mode():
        average = old.embed(whole(store_of(x, batch=np.full(CELLS, 3))))
        for b in (3, 4):
            made = new.embed(whole(store_of(x, batch=np.full(CELLS, b))))
            assert float((made - average).square().mean().sqrt()) < 0.1 * float(average.std())


def test_growing_by_genes_that_are_zero_changes_little():
    x = counts()
    old = trained_a_little(network(), store_of(x))
    extra = GENES // 5
    new = network(genes=GENES + extra, seed=9).eval()
    grow(new, old.state_dict(), 3)
    wide = np.hstack([x, np.zeros((CELLS, extra), np.float32)])
    before, after = outputs(old, whole(store_of(x))), outputs(new, whole(store_of(wide)))
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[3], before[3], atol=1e-5, rtol=1e-4)
    shares = after[2][:, :GENES] / after[2][:, :GENES].sum(1, keepdim=True)
    torch.testing.assert_close(shares, before[2], atol=1e-5, rtol=1e-4)
    assert after[2][:, GENES:].sum(1).max() < 0.5


def test_a_model_without_labels_forgets_its_components_for_labels():
    x = counts()
    old = trained_a_little(network(labels=0), store_of(x))
    for labels in (3, 8):  # less, and more, than the five components
        new = network(labels=labels, seed=9, placed=False).eval()
        grow(new, old.state_dict(), 0)
        torch.testing.assert_close(outputs(new, whole(store_of(x)))[0], outputs(old, whole(store_of(x)))[0])
        assert not bool(new.placed)


def test_surgery_changes_new_rows_only():
    x = counts()
    old = trained_a_little(network(dispersion="gene-batch"), store_of(x))
    new = network(batches=3, labels=4, genes=GENES + 6, seed=9, dispersion="gene-batch")
    grow(new, old.state_dict(), 3)
    new.placed.fill_(True)
    keep_old(new, old.state_dict())
    grown = {name: p.detach().clone() for name, p in new.named_parameters()}
    wide = counts(genes=GENES + 6, seed=1)
    trained_a_little(new, store_of(wide, batch=np.full(CELLS, 2), label=np.arange(CELLS) % 5))
    changed = []
    for name, parameter in new.named_parameters():
        was = old.state_dict()[name]
        old_part = tuple(slice(0, n) for n in was.shape)
        if name.startswith("diffusion."):
            continue
        assert torch.equal(parameter[old_part], grown[name][old_part]), name
        if not torch.equal(parameter, grown[name]):
            changed.append(name)
    assert any(".offsets." in name for name in changed)
    assert any("rate.weight" in name for name in changed)
    assert any("classifier" in name for name in changed)
    before, after = (net.eval().embed(whole(store_of(x if net is old else np.hstack([x, 0 * x[:, :6]])))) for net in (old, new))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_surgery_with_nothing_new_leaves_nothing_to_train():
    old = trained_a_little(network(), store_of(counts()))
    new = network(seed=9)
    keep_old(new, grow(new, old.state_dict(), 3))
    assert not any(p.requires_grad for name, p in new.named_parameters() if not name.startswith("diffusion."))


def test_a_gene_that_was_not_measured_has_no_likelihood():
    """It gets no gradient, and the others are as likely as if it were not there."""
    x = counts()
    x[:, 5:8] = 0
    panels = torch.ones(2, GENES, dtype=torch.bool)
    panels[1, 5:8] = False
    for likelihood in ("nb", "zinb"):
        net = network(likelihood=likelihood)
        net.measured(panels)
        store = store_of(x, panel=np.ones(CELLS, int))
        net.loss(whole(store)).loss.backward()
        core = net.network
        for tensor in (core.rate.weight, core.rate.bias, core.log_theta, *([core.zero.weight] if core.zero else [])):
            assert tensor.grad[5:8].abs().max() < 1e-7  # the two halves of the zero inflation cancel but for rounding
            assert tensor.grad[8:].any()
        kept = [g for g in range(GENES) if g not in (5, 6, 7)]
        small = network(likelihood=likelihood, genes=len(kept))
        for name, tensor in small.network.state_dict().items():
            full = core.state_dict()[name]
            axis = next((i for i, (a, b) in enumerate(zip(full.shape, tensor.shape, strict=True)) if a != b), None)
            tensor.copy_(full if axis is None else full.index_select(axis, torch.tensor(kept)))
        z = torch.randn(CELLS, 4)
        made = core.log_likelihood(z, whole(store))
        wanted = small.network.log_likelihood(z, whole(store_of(x[:, kept])))
        torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-4)


def test_genes_that_were_not_measured_leave_the_scale_of_the_input():
    net, x = network().eval(), counts()
    net.measured(torch.stack([torch.ones(GENES, dtype=torch.bool), torch.arange(GENES) < 20]))
    x[:, 20:] = 0
    full, part = (net.network.inputs(whole(store_of(x, panel=np.full(CELLS, p)))) for p in (0, 1))
    torch.testing.assert_close(part, 1.5 * full)
    with torch.inference_mode():
        mixed = whole(store_of(x, panel=np.arange(CELLS) % 2))
        assert torch.isfinite(net.loss(mixed).loss)


def test_surgery_after_a_model_without_labels_trains_the_head_of_labels():
    """The components were forgotten, so nothing of the head is old."""
    old = network(labels=0)
    new = network(labels=3, seed=9)
    keep_old(new, grow(new, old.state_dict(), 0))
    new.loss(whole(store_of(counts()))).loss.backward()
    assert new.classifier.weight.grad is not None
    assert new.classifier.weight.grad.any()
