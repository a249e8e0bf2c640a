"""The prior of classes and the likelihoods of counts, against reference arrays and identities."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctool.data.minibatch import CellStore
from sctool.nn.likelihood import nb_log_likelihood, normal_kl, zinb_log_likelihood
from sctool.nn.prior import ClassPrior, mixture_kl, normal_kl_to
from tests.conftest import VECTORS

KL = np.load(VECTORS / "integration_kl.npz")
COUNTS = np.load(VECTORS / "integration_counts.npz")


def tensor(key):
    return torch.from_numpy(KL[key])


def kl_per_class():
    return normal_kl_to(tensor("mu1"), tensor("logvar1").exp(), tensor("prior_mu"), tensor("prior_logvar"))


def test_divergence_of_normals():
    made = normal_kl_to(tensor("mu1"), tensor("logvar1").exp(), tensor("mu2"), tensor("logvar2")).diagonal()
    np.testing.assert_allclose(made, KL["kl"], rtol=1e-10)
    np.testing.assert_allclose(made, (7.387132, 3.773581, 5.387066), rtol=1e-6)
    np.testing.assert_allclose(made, KL["cross_entropy"] - KL["entropy"], rtol=1e-10)
    np.testing.assert_allclose(normal_kl(tensor("mu1"), tensor("logvar1").exp()), KL["kl_std"], rtol=1e-10)
    np.testing.assert_allclose(KL["kl_std"], (1.976134, 2.470240, 1.141730), rtol=1e-6)
    np.testing.assert_allclose(kl_per_class(), KL["kl_per_class"], rtol=1e-10)
    q = torch.distributions.Normal(tensor("mu1"), (0.5 * tensor("logvar1")).exp())
    p = torch.distributions.Normal(tensor("mu2"), (0.5 * tensor("logvar2")).exp())
    np.testing.assert_allclose(made, torch.distributions.kl_divergence(q, p).sum(1), rtol=1e-10)


def test_term_of_a_cell_without_a_label():
    q, log_p = tensor("q_cat"), tensor("p_cat").log()
    np.testing.assert_allclose(mixture_kl(kl_per_class(), log_p, q), KL["unlabelled_kl"], rtol=1e-10)
    np.testing.assert_allclose(KL["unlabelled_kl"], (2.746362, 3.699713, 4.860530), rtol=1e-6)
    np.testing.assert_allclose(mixture_kl(torch.zeros(3, 4, dtype=torch.float64), log_p, q), KL["kl_cat"], rtol=1e-10)


def test_a_class_that_a_cell_is_sure_of():
    """q of 0 and 1 makes no NaN, and is the term of a labelled cell."""
    q, log_p = torch.eye(4, dtype=torch.float64)[:3], tensor("p_cat").log()
    wanted = kl_per_class().diagonal() - log_p[:3]
    torch.testing.assert_close(mixture_kl(kl_per_class(), log_p, q), wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.05, 30))
def test_the_tightest_class_probabilities(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    kl = scale * torch.rand(5, classes, generator=generator, dtype=torch.float64)
    log_p = torch.randn(classes, generator=generator, dtype=torch.float64).log_softmax(0)
    least = mixture_kl(kl, log_p)
    torch.testing.assert_close(least, -(log_p - kl).logsumexp(1))
    best = (log_p - kl).softmax(1)
    torch.testing.assert_close(mixture_kl(kl, log_p, best), least, atol=1e-9, rtol=1e-9)
    for _ in range(5):
        other = torch.rand(5, classes, generator=generator, dtype=torch.float64).add(1e-6)
        assert (mixture_kl(kl, log_p, other / other.sum(1, keepdim=True)) >= least - 1e-9).all()
    assert (least <= kl.min(1).values - log_p[kl.argmin(1)] + 1e-9).all()


def reference_prior(novel=1e-9):
    prior = ClassPrior(4, 5, novel).double()
    with torch.no_grad():
        prior.mean.copy_(tensor("prior_mu"))
        prior.log_variance.copy_(tensor("prior_logvar"))
        prior.share.copy_(tensor("p_cat").log())
    prior.LOG_VARIANCE = (-50.0, 50.0)
    return prior


def test_mixture_density_and_responsibilities():
    """Of a point: a normal of next to no variance, whose KL is - log density plus what is the same for all classes."""
    prior, tiny = reference_prior(), torch.full((3, 5), 1e-9, dtype=torch.float64)
    entropy = 0.5 * 5 * (1 + np.log(2 * np.pi * 1e-9))
    kl = prior.kl(tensor("mu1"), tiny).detach()
    assert kl.shape == (3, 5)
    log_mixture = (prior.log_share().detach()[:4] - kl[:, :4]).logsumexp(1) - entropy - np.log1p(-prior.novel_weight)
    np.testing.assert_allclose(log_mixture, KL["log_mixture_at_mu1"], rtol=1e-5)
    made = prior.probabilities(tensor("mu1"), tiny).detach()
    np.testing.assert_allclose(made[:, :4], KL["responsibilities"], atol=1e-5)
    np.testing.assert_allclose(made.sum(1), np.ones(3), rtol=1e-12)


def test_bound_on_the_divergence_from_the_mixture():
    """sum_c q_c KL_c + KL(q || p) >= - H[q(z)] - E log p(z), by Monte Carlo, with equality nowhere near."""
    prior = reference_prior(0.05)
    mean, variance = tensor("mu1"), tensor("logvar1").exp()
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    z = mean + variance.sqrt() * torch.randn(n, 3, 5, generator=generator, dtype=torch.float64)
    centres = torch.cat([prior.mean, torch.zeros(1, 5)]).detach()
    scales = torch.cat([0.5 * prior.log_variance, torch.zeros(1, 5)]).detach().exp()
    log_p = (torch.distributions.Normal(centres, scales).log_prob(z.unsqueeze(2)).sum(3) + prior.log_share().detach()).logsumexp(2)
    exact = -torch.from_numpy(KL["entropy"]) - log_p.mean(0)
    error = 4 * log_p.std(0) / n**0.5
    bound = mixture_kl(prior.kl(mean, variance), prior.log_share()).detach()
    assert (bound >= exact - error).all()
    assert (bound < exact + 3).all()


def test_shares_of_the_classes_and_of_the_rest():
    torch.manual_seed(0)
    prior = ClassPrior(3, 4, 0.05)
    with torch.no_grad():
        prior.share.normal_()
    made = prior.log_share().exp()
    assert float(made[-1].detach()) == pytest.approx(0.05)
    assert float(made.sum().detach()) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(made[:-1].detach() / 0.95, prior.share.detach().softmax(0), rtol=1e-5)


def test_classes_are_put_where_their_cells_are():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 4, generator=generator) * 0.7
    code = torch.arange(300) % 3  # of four classes, the last of which has none; 0, 1, 2 in equal parts
    z[code == 1] += 5
    code[:30] = -1
    prior = ClassPrior(4, 4, 0.05)
    with torch.no_grad():
        prior.mean[3], prior.log_variance[3] = 9.0, -1.0
    prior.place(z, code)
    for c in range(3):
        torch.testing.assert_close(prior.mean[c], z[code == c].mean(0))
        torch.testing.assert_close(prior.log_variance[c], (z[code == c].var(0, unbiased=False) + 1e-2).log().clamp(-2, 0.5))
    assert (prior.mean[3] == 9).all()
    assert (prior.log_variance[3] == -1).all()
    prior.weigh(torch.bincount(code[code >= 0], minlength=4))
    np.testing.assert_allclose(prior.share.detach().softmax(0), np.array([91, 91, 91, 1]) / 274, rtol=1e-5)
    made = prior.probabilities(z, torch.full_like(z, 0.01))
    torch.testing.assert_close(made.sum(1), torch.ones(300))
    assert (made[code == 1].argmax(1) == 1).all()


def test_one_cell_in_a_class_and_none_at_all():
    prior = ClassPrior(2, 3, 0.05)
    prior.place(torch.ones(4, 3), torch.tensor([0, -1, -1, -1]))
    assert torch.isfinite(prior.log_variance).all()
    prior.place(torch.ones(4, 3), torch.full((4,), -1))
    prior.weigh(torch.zeros(2, dtype=torch.long))
    assert torch.isfinite(prior.log_share()).all()
    made = prior.probabilities(torch.full((1, 3), 40.0), torch.full((1, 3), 1e-4))
    assert torch.isfinite(made).all()


def test_a_variance_out_of_bounds_is_held_but_keeps_the_scale():
    prior = ClassPrior(1, 2, 0.5)
    with torch.no_grad():
        prior.log_variance.fill_(30.0)
    bounded = ClassPrior(1, 2, 0.5)
    with torch.no_grad():
        bounded.log_variance.fill_(0.5)
    z, variance = torch.randn(3, 2), torch.ones(3, 2)
    torch.testing.assert_close(prior.kl(z, variance), bounded.kl(z, variance))


def batch_of(x):
    return CellStore(sp.csr_matrix(np.asarray(x, np.float32)), {}, range(len(x))).batch(np.arange(len(x)))


def at_means(x, mu):
    """A minibatch and logits with these means: a gene more takes what is left of the depth."""
    depth = np.maximum(x.sum(1), mu.sum(1)).astype(int) + 10.0
    x = np.column_stack([x, depth - x.sum(1)])
    mu = np.column_stack([mu, depth - mu.sum(1)])
    return batch_of(x), torch.from_numpy(np.log(mu)), x, mu


def gene_by_gene(likelihood, x, mu, theta, *rest):
    """Log-likelihood of each entry: of a cell of two genes, less that of the second, whose inverse dispersion is 1."""
    made = np.empty(x.shape)
    for i in range(x.shape[0]):
        for g in range(x.shape[1]):
            batch, logits, _, _ = at_means(x[i : i + 1, g : g + 1], mu[i : i + 1, g : g + 1])
            log_theta = torch.tensor([np.log(theta[g]), 0.0])
            extra = [torch.cat([torch.from_numpy(r[i : i + 1, g : g + 1]), torch.full((1, 1), -40.0)], 1) for r in rest]
            total = likelihood(logits, log_theta, *extra, batch)
            m, count = float(logits[0, 1].exp()), float(batch.value_e[-1])
            made[i, g] = float(total) - scipy.stats.nbinom.logpmf(count, 1, 1 / (1 + m))
    return made


def test_counts_of_the_reference():
    x, mu, theta, logits = (COUNTS[key] for key in ("x", "mu", "theta", "zi_logits"))
    np.testing.assert_allclose(gene_by_gene(nb_log_likelihood, x, mu, theta), COUNTS["log_nb"], atol=3e-4, rtol=1e-4)
    np.testing.assert_allclose(gene_by_gene(zinb_log_likelihood, x, mu, theta, logits), COUNTS["log_zinb"], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("x", "mu", "theta", "logit", "nb", "zinb"),
    [
        (0, 0.1, 0.5, -2.0, -0.091161, -0.079848),
        (2, 2.0, 2.0, 0.0, -1.673976, -2.367124),
        (300, 280.0, 3.0, -8.0, -6.113302, -6.113637),
        (0, 50.0, 0.5, 3.0, -2.307560, -0.043646),
        (0, 1e4, 100.0, -30.0, 100 * np.log(100 / 10_100), -30.0),
    ],
)
def test_counts_in_print(x, mu, theta, logit, nb, zinb):
    """The last is a tail that a floor inside the logarithm would lift to -17.7."""
    given_x, given_mu = np.array([[float(x)]]), np.array([[mu]])
    assert gene_by_gene(nb_log_likelihood, given_x, given_mu, [theta])[0, 0] == pytest.approx(nb, rel=1e-4, abs=2e-3)
    made = gene_by_gene(zinb_log_likelihood, given_x, given_mu, [theta], np.array([[logit]]))[0, 0]
    assert made == pytest.approx(zinb, rel=1e-4, abs=2e-3)


def test_zero_inflated_probabilities_add_up():
    """Over the counts of the first gene, with the depth held by the second."""
    depth, rows = 400.0, 200
    x = np.column_stack([np.arange(rows), depth - np.arange(rows)])
    logits = torch.log(torch.tensor([[3.0, depth - 3.0]])).expand(rows, 2)
    pi = torch.tensor([[0.4, -40.0]]).expand(rows, 2)
    rest = scipy.stats.nbinom.logpmf(x[:, 1], 1, 1 / (depth - 2.0))
    made = zinb_log_likelihood(logits, torch.tensor([np.log(1.7), 0.0]), pi, batch_of(x)).double().numpy() - rest
    assert np.exp(made).sum() == pytest.approx(1, abs=2e-3)
    mean = (np.exp(made) * x[:, 0]).sum()
    assert mean == pytest.approx((1 - 1 / (1 + np.exp(-0.4))) * 3.0, rel=5e-3)
