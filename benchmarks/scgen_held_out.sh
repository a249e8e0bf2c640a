#!/usr/bin/env bash
# Every group of a file held out in turn: scGen with and without adaptive resampling, all baselines, the ceiling.
#
#   benchmarks/scgen_held_out.sh FILE.h5ad GROUP_KEY CONDITION_KEY CONTROL PERTURBED OUT GROUP...
#
#   SEEDS="0 1 2"   seeds of the training
#   TARGET_SUM=0    counts per cell before the logarithm; 0 is the median, as in most published comparisons
#
# Reading the table it prints: change_r is the correlation of predicted and real change over genes (1 is best), energy_distance says
# how far the predicted cells are from the real ones (0 is best), "real half" is what half of the real cells reach. A model earns its
# keep where it is before every baseline. Killed, it goes on where it stopped.
set -euo pipefail
file=$1 group_key=$2 condition_key=$3 control=$4 perturbed=$5 out=$6
shift 6
for seed in ${SEEDS:-0 1 2}; do
  for arm in no-ar ar; do
    for group in "$@"; do
      sctool train scgen "$file" --group-key "$group_key" --condition-key "$condition_key" --control "$control" --perturbed "$perturbed" \
        --held-out "$group" --seed "$seed" --$arm --set "data.target_sum=${TARGET_SUM:-0}" --out "$out" --threads 1 --quiet --resume
    done
  done
done
for run in "$out"/checkpoints/scgen/*-seed*[0-9]; do
  sctool predict scgen "$run" --out "$out" --quiet --resume
done
sctool eval scgen "$out"/results/scgen/*-seed*[0-9] --out "$out" --name held-out --force
sctool plot "$out"/results/scgen/held-out
