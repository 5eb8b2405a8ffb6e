#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
mkdir -p "$OUT/home" && cd "$OUT" && HOME="$OUT/home" HF_HOME='~/hf' HF_HUB_OFFLINE=1 "$CDL" run "$OLDPWD/config.toml" --run-dir "$OUT/run"
