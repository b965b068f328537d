#!/usr/bin/env bash
# Everything that needs a GPU, in one call under 9 minutes: full-size training steps, epochs of cached volumes and what a
# whole training takes by them, inference, the loss, each against the published code.
#
#   benchmarks/gpu.sh [--published DIR] [--small] [--results DIR]
#
# Needs python with torch, torchvision, numpy, pillow, monai and pytorch-ignite; nothing is fetched, nothing installed:
# PYTHON names another python, and wheels of monai and pytorch-ignite are unpacked from the folder WHEELS, if it is set.
# Writes gpu.json and gpu.md; `benchmarks/run.py docs` puts them into docs/performance.md.
# --small tries it out, also without a GPU, and writes gpu_small.json.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
mkdir "$links/fairlung"
ln -s "$root/pipeline" "$links/fairlung/pipeline"
ln -s "$root/transforms" "$links/fairlung/transforms"
if [[ -n ${WHEELS:-} ]]; then
    for wheel in "$WHEELS"/*.whl; do "$python" -m zipfile -e "$wheel" "$links"; done
fi
PYTHONPATH="$links:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}" timeout 530 "$python" -m speed.gpu "$@"
