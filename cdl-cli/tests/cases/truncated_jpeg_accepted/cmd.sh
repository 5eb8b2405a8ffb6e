#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
"$CDL" data verify data; echo "verify: exit code $?"
"$CDL" check config.toml | grep -E "looked at|all|nothing found|fail"
"$CDL" run config.toml --run-dir "$OUT/run" | tail -1; echo "run: exit code $?"
