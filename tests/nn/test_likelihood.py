import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
import torch.nn.functional as F

from sctool.data.minibatch import CellStore
from sctool.nn.likelihood import nb_log_likelihood, normal_kl, zinb_log_likelihood


def make_batch(cells=40, genes=60, high=30, seed=0, whole=True):
    rng = np.random.default_rng(seed)
    x = sp.random(cells, genes, 0.15, format="csr", random_state=seed, data_rvs=lambda n: rng.integers(1, high, n).astype(np.float32))
    if not whole:
        x.data += 0.37
    x = sp.csr_matrix(x.toarray() * (np.arange(cells) > 0)[:, None], dtype=np.float32)  # the first cell is empty
    store = CellStore(x, {"batch": np.zeros(cells, int)}, [f"c{i}" for i in range(cells)])
    return store.batch(np.arange(cells)), torch.from_numpy(x.toarray()).double()


def dense_nb(x, logits, log_theta, batch):
    m = batch.depth_n1.clamp_min(1).double() * logits.double().softmax(1)
    t = log_theta.double().exp()
    return t * (t.log() - (t + m).log()) + x * (m.log() - (t + m).log()) + torch.lgamma(x + t) - torch.lgamma(t) - torch.lgamma(x + 1)


def dense_zinb(x, logits, log_theta, pi, batch):
    m = batch.depth_n1.clamp_min(1).double() * logits.double().softmax(1)
    t, pi = log_theta.double().exp(), pi.double()
    zero = F.softplus(t * (t.log() - (t + m).log()) - pi) - F.softplus(-pi)
    return torch.where(x == 0, zero, -pi - F.softplus(-pi) + dense_nb(x, logits, log_theta, batch))


@pytest.mark.parametrize("by_cell", [False, True])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_equals_the_dense_formula_with_its_gradients(kind, whole, by_cell):
    batch, x = make_batch(whole=whole)
    torch.manual_seed(0)
    logits = torch.randn(x.shape, requires_grad=True)
    log_theta = torch.randn(x.shape if by_cell else x.shape[1:], requires_grad=True)
    pi = torch.randn(x.shape, requires_grad=True)
    weight = torch.rand(len(x))
    if kind == "nb":
        made, wanted, inputs = (
            nb_log_likelihood(logits, log_theta, batch),
            dense_nb(x, logits, log_theta, batch).sum(1),
            (logits, log_theta),
        )
    else:
        made, inputs = zinb_log_likelihood(logits, log_theta, pi, batch), (logits, log_theta, pi)
        wanted = dense_zinb(x, logits, log_theta, pi, batch).sum(1)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-6, atol=1e-4)
    for a, b in zip(torch.autograd.grad((made * weight).sum(), inputs), torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        assert (a - b).norm() / b.norm() < 1e-5


def test_equals_scipy():
    batch, x = make_batch()
    logits, log_theta = torch.randn(x.shape), torch.randn(x.shape[1])
    m = (batch.depth_n1.clamp_min(1) * logits.softmax(1)).double().numpy()
    t = log_theta.exp().double().numpy()
    wanted = scipy.stats.nbinom.logpmf(x.numpy(), t, t / (t + m)).sum(1)
    np.testing.assert_allclose(nb_log_likelihood(logits, log_theta, batch).numpy(), wanted, rtol=1e-5)


def test_stays_accurate_near_poisson():
    """log(1 + m / t) must not be taken as a difference of logs: at theta = e^12 that loses four digits."""
    batch, x = make_batch(genes=500)
    logits, log_theta = torch.randn(x.shape), torch.full((x.shape[1],), 12.0)
    wanted = dense_nb(x, logits, log_theta, batch).sum(1)
    torch.testing.assert_close(nb_log_likelihood(logits, log_theta, batch).double(), wanted, rtol=2e-4, atol=1e-2)


def test_many_rows_in_blocks_equal_one_row_at_a_time():
    batch, x = make_batch(cells=37, genes=20000, seed=3)
    logits, log_theta = torch.randn(x.shape), torch.randn(x.shape[1])
    made = nb_log_likelihood(logits, log_theta, batch)
    store = CellStore(sp.csr_matrix(x.numpy().astype(np.float32)), {}, [""] * 37)
    single = torch.cat([nb_log_likelihood(logits[i : i + 1], log_theta, store.batch(np.array([i]))) for i in range(37)])
    torch.testing.assert_close(made, single, rtol=1e-5, atol=1e-3)


def test_kl_of_the_prior_is_zero_and_matches_torch():
    assert normal_kl(torch.zeros(3, 4), torch.ones(3, 4)).abs().max() == 0
    mean, variance = torch.randn(5, 4), torch.rand(5, 4) + 0.1
    q, p = torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(normal_kl(mean, variance), torch.distributions.kl_divergence(q, p).sum(1))
