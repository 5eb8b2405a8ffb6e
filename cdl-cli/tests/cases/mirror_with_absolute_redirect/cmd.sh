#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
python3 ../hub.py redirects 18997 & server=$!; trap 'kill $server; rm -rf "$OUT"' EXIT; sleep 1
HF_HOME="$OUT/hf" HF_ENDPOINT=http://127.0.0.1:18997 "$CDL" run config.toml --run-dir "$OUT/run"; echo "exit code $?"
