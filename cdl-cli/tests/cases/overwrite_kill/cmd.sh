#!/bin/bash
CDL=${CDL:-cdl}; Q=${Q:?the path of configs/quickstart.toml}; here=$(cd "$(dirname "$0")" && pwd); T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
S="--set epochs=1 --set stream.max_tasks=1 --set stream.train_per_class=12 --set stream.test_per_class=4 --set batch_size=12"
mkdir runs; $CDL run $Q $S --run-dir runs/r -q >/dev/null
for call in renameat2:1 rename:1 rename:2 rename:3; do
    strace -f -o /dev/null -e trace=rename,renameat2 -e inject=${call%:*}:signal=KILL:when=${call#*:} \
        $CDL run $Q $S --run-dir runs/r --overwrite -q > /dev/null 2>&1
    ls runs/r/config.toml runs/r/run.json || echo "runs/r is gone"
done
$CDL run $Q $S --set seed=7 --run-dir runs/r --overwrite -q > /dev/null; grep seed runs/r/config.toml
