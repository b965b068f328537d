#!/usr/bin/env bash
# The study studies/objective.yaml at full size on a GPU: 734 + 155 synthetic phantoms of the paper's cells, 64 slices of
# 256 x 256, batch 2. One call; finished runs are not run again, so it may be called until all are done.
#
#   benchmarks/objective/gpu.sh OUT [EPOCHS [SEEDS [PRESET]]]
#
# OUT/study/study.json and OUT/study/tables (table1.csv, index.html) hold the results. PRESET demo tries it out.
set -euo pipefail
out=${1:?usage: gpu.sh OUT [EPOCHS [SEEDS [PRESET]]]}
epochs=${2:-10} seeds=${3:-0,1,2} preset=${4:-benchmark}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
test -f "$out/cohort/cohort.csv" || fairlung phantom "$out/cohort" --preset "$preset" --format jpg --workers "$(nproc)"
cat > "$out/objective.yaml" <<YAML
name: objective
cohort: $out/cohort/cohort.csv
bundle_root: $here/bundles/fair_lung_ct
seeds: [$seeds]
settings: {epochs: $epochs, pretrained: false, cache_dir: $out/cache, tracking_uri: ""}
systems:
- system: ce
- system: la_cvar
  alpha: [0.5, 0.7, 0.9]
  gradient: [exact, published]
YAML
fairlung study "$out/objective.yaml" -o "$out/study"
