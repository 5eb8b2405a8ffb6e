#!/bin/bash
CDL=${CDL:-cdl}; Q=${Q:?the path of configs/quickstart.toml}; here=$(cd "$(dirname "$0")" && pwd); T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
S="--set epochs=1 --set stream.max_tasks=1 --set stream.train_per_class=12 --set stream.test_per_class=4 --set batch_size=12"
mkdir m e d; ln -s e l
# Only root can mount; elsewhere the folder is an ordinary one.
mount -t tmpfs -o size=50m tmpfs m 2> /dev/null && trap 'umount "$T/m"; rm -rf "$T"' EXIT
$CDL run $Q $S --run-dir m -q > /dev/null; echo "here: $?"
$CDL run $Q $S --run-dir l -q > /dev/null; echo "link: $?"
(cd d && $CDL run $Q $S --run-dir . -q > /dev/null; echo "dot: $?")
