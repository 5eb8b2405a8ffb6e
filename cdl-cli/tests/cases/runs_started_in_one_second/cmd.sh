#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
cd "$OUT" || exit 1
for i in 1 2 3; do "$CDL" run "$OLDPWD/config.toml" >"log$i" 2>&1 & done; wait; tail -qn1 log1 log2 log3; ls runs
