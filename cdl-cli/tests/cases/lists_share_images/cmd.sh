#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
"$CDL" run config.toml --run-dir "$OUT/run" 2>&1 | sed -n 1p
