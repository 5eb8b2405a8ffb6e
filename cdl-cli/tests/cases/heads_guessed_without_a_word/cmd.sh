#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
for heads in "" "--set student.heads=4"; do
    rm -rf "$OUT"/*; "$CDL" run config.toml $heads --run-dir "$OUT/run" | grep -E "^student:|student epoch" | cut -c1-110
    "$CDL" check config.toml $heads | grep -A1 "^student"; grep -i heads "$OUT/run/run.json"
done
