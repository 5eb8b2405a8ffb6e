#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
python3 ../hub.py stalls 18999 & server=$!; trap 'kill $server; rm -rf "$OUT"' EXIT; sleep 1
SECONDS=0; HF_HUB_DOWNLOAD_TIMEOUT=1 HF_HOME="$OUT/hf" HF_ENDPOINT=http://127.0.0.1:18999 timeout "${LIMIT:-90}" "$CDL" run config.toml --run-dir "$OUT/run"
echo "exit code $? after $SECONDS s (124: still waiting when the limit of ${LIMIT:-90} s ended it)"
