#!/usr/bin/env bash
# A batch that was never trained on, mapped by --model, beside training on all batches; for each seed.
#
#     benchmarks/integration_mapping.sh FILE.h5ad BATCH_KEY LABEL_KEY HELD_OUT_BATCH OUT_FOLDER [SEEDS]
#
# Read the last lines: `total` of all cells, with the batch mapped (mapped-SEED) and with it among the training cells (all-SEED).
set -euo pipefail
file=$1 batch=$2 label=$3 held=$4 out=$5 seeds=${6:-"0 1 2"}
for s in $seeds; do
  common="--batch-key $batch --label-key $label --mode unsupervised --seed $s --out $out --threads 1 --quiet --resume"
  sctool integrate "$file" $common --name "all-$s" --set diffusion.train_steps=0
  sctool integrate "$file" $common --name "without-$s" --hold-out "$batch=$held" --no-score --set diffusion.train_steps=0
  sctool integrate "$file" --batch-key "$batch" --label-key "$label" --model "$out/checkpoints/integrate/without-$s" --out "$out" \
    --name "mapped-$s" --threads 1 --quiet --force
done
grep -H "^integrated" "$out"/results/integrate/{mapped,all}-*/scores.csv | cut -d, -f1-6
