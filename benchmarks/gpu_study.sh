#!/usr/bin/env bash
# Fashion-MNIST at full width in bfloat16 on one GPU in ten minutes: the base, and two methods that continue it.
#
#     benchmarks/gpu_study.sh [FOLDER]                     # runs/gpu_study by default; the same command goes on
#     MINUTES=5 benchmarks/gpu_study.sh                    # of training for each run, instead of 1.5
#     FAST=1 benchmarks/gpu_study.sh /tmp/try              # tiny, on a CPU, to see that it works
#
# It prints a table, and writes it to FOLDER/gpu_study.json: for each run images per second, bits/dim and Frechet distance
# with their standard errors, and the memory of a step. FOLDER/compare/compare.html is the page. Not yet run on a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/gpu_study}
size=(--full)
if [ -n "${FAST:-}" ]; then size=(--fast); fi

python -m experiments.fashion "${size[@]}" --only base order_2 mixture --budget="${MINUTES:-1.5}" --out="$folder" \
  --config.eval.num_test="${NUM_TEST:-500}" --config.eval.num_samples="${NUM_SAMPLES:-2000}"
cp "$folder/compare/compare.json" "$folder/gpu_study.json"
echo "wrote $folder/gpu_study.json"
