"""scVI of sctool against scVI of scvi-tools at equal settings: held-out likelihood and k-NN accuracy of the latent space.

    python benchmarks/scvi_parity.py CELLS.h5ad ... --label-key cell_type --seeds 0 1 2 --epochs 100

Needs the ``peers`` extra. Both are trained on the same half of the cells (NB, one hidden layer of 128, latent 10, minibatches of 128,
2,000 variable genes chosen on that half, KL weight raised over the first half of the epochs, no early stopping) and scored on the
other half by the same code: the mean negative log-likelihood and evidence lower bound of a cell (nats; lower is better), and the
accuracy of 5 nearest neighbours, half of the held-out cells against the other half, mean of five splits.
How to read it: ``ratio`` under 1.005 and ``accuracy difference`` above -0.01 mean parity.
"""

import argparse
import warnings

import numpy as np
import scvi
import torch
from scvi.model import SCVI as Peer
from sklearn.neighbors import KNeighborsClassifier

from sctool.data.genes import variable_genes
from sctool.data.matrix_kind import find_counts
from sctool.data.minibatch import CellStore
from sctool.data.read import H5ad
from sctool.data.samplers import UniformSampler
from sctool.engine.trainer import Trainer
from sctool.models.scvi import SCVI
from sctool.sections import SCVIConfig, TrainConfig

warnings.filterwarnings("ignore")


def ours(counts, train, test, seed, epochs):
    torch.manual_seed(seed)
    model = SCVI(SCVIConfig(), counts.shape[1])
    store = CellStore(counts, {"batch": np.zeros(counts.shape[0], int)}, [""] * counts.shape[0])
    trainer = Trainer(model, store, UniformSampler(train), TrainConfig(epochs=epochs, warmup=0.5), seed=seed)
    trainer.fit()
    score = trainer.score(test)
    return score["reconstruction"], score["loss"], trainer.embed(test)


def theirs(counts, train, test, seed, epochs):
    import anndata as ad

    scvi.settings.seed = seed
    cells = ad.AnnData(counts)
    parts = cells[train].copy(), cells[test].copy()
    Peer.setup_anndata(parts[0])
    model = Peer(parts[0], n_latent=10, n_hidden=128, gene_likelihood="nb")
    model.train(
        epochs,
        train_size=1.0,
        batch_size=128,
        plan_kwargs={"n_epochs_kl_warmup": epochs // 2},
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
    )
    # Scored by the same code: its networks give the posterior and the decoded mean of the held-out cells.
    from sctool.nn.likelihood import nb_log_likelihood, normal_kl

    store = CellStore(counts, {"batch": np.zeros(counts.shape[0], int)}, [""] * counts.shape[0])
    batch = store.batch(test)
    with torch.inference_mode():
        model.module.eval()
        one = torch.zeros(len(test), 1, dtype=torch.long)
        posterior, _, _ = (lambda out: (out["qz"], out["z"], None))(model.module.inference(batch.dense(), one))
        torch.manual_seed(seed)
        z = posterior.rsample()
        made = model.module.generative(z, batch.depth_n1.log(), one)
        logits = (made["px"].mu / batch.depth_n1).log()
        nll = -nb_log_likelihood(logits, model.module.px_r, batch).mean()
        kl = normal_kl(posterior.loc, posterior.scale.square()).mean()
    return float(nll), float(nll + kl), posterior.loc.numpy()


def accuracy(z, labels):
    scores = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(z))
        a, b = order[: len(z) // 2], order[len(z) // 2 :]
        scores.append((KNeighborsClassifier(5).fit(z[a], labels[a]).predict(z[b]) == labels[b]).mean())
    return float(np.mean(scores))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("file,seed,nll,nll_peer,nll_ratio,elbo,elbo_peer,accuracy,accuracy_peer,accuracy_difference", flush=True)
    for name in args.files:
        file = H5ad(name)
        counts, labels = file.matrix(find_counts(file).source), file.obs[args.label_key].astype(str).to_numpy()
        for seed in args.seeds:
            order = np.random.default_rng(seed).permutation(file.n_cells)
            train, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
            chosen = counts[:, variable_genes(counts[train], 2000)]
            nll, elbo, z = ours(chosen, train, test, seed, args.epochs)
            nll_peer, elbo_peer, z_peer = theirs(chosen, train, test, seed, args.epochs)
            score, score_peer = accuracy(z, labels[test]), accuracy(z_peer, labels[test])
            print(
                f"{file.path.name},{seed},{nll:.2f},{nll_peer:.2f},{nll / nll_peer:.4f},{elbo:.2f},{elbo_peer:.2f},"
                f"{score:.4f},{score_peer:.4f},{score - score_peer:+.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
