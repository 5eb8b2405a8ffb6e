#!/bin/bash
# `CDL` names the program.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
"$CDL" run config.toml --run-dir "$OUT/run" | tail -7; python3 - "$OUT/run" <<'P'
import csv, json, sys
rows = list(csv.reader(open(sys.argv[1] + "/confusion_student.csv")))[1:]
right = sum(int(row[1 + i]) for i, row in enumerate(rows)); all = sum(int(n) for row in rows for n in row[1:])
print(f"share of all test images that are right: {100 * right / all:.2f} %; keys of results.json: {list(json.load(open(sys.argv[1] + '/results.json'))['student'])}")
P
