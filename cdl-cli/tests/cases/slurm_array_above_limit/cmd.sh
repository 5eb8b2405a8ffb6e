#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
"$CDL" sweep config.toml --seeds "$(seq -s, 1 1200)" --out "$OUT/sweep" --emit slurm; grep -- --array "$OUT/sweep/sweep.slurm"
