#!/bin/bash
# ImageNet-R as the guide describes it: the published archive, whose entries begin with `imagenet-r/`, is unpacked and split.
cd "$(dirname "$0")" || exit 1
CDL="${CDL:-cdl}"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
cp -r imagenet-r "$OUT"/ && tar cf "$OUT/imagenet-r.tar" -C "$OUT" imagenet-r && rm -r "$OUT/imagenet-r"
cd "$OUT" || exit 1
mkdir data && tar xf imagenet-r.tar -C data
"$CDL" data split data/imagenet-r --seed 1 --out splits; echo "split: exit code $?"
find data -maxdepth 3 -type d
