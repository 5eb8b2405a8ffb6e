#!/bin/bash
# Checks on a cluster with Slurm that stopped and requeued jobs write the same bytes as undisturbed runs.
#
#   tools/check_slurm.sh [CDL]      CDL: the program (default: cdl)
#
# A sweep of three cells runs twice: on this computer, and as jobs with one processor each. The first job gets the
# signal that Slurm sends before the time limit, and requeues itself. The script requeues the second job, as Slurm does
# after a failure of its node.
# Slurm waits two minutes before it starts a requeued job again. Files are written into a new folder in the working
# directory, which all nodes must see.
#
# EPOCHS            epochs of each task (20); a job must not end before it is disturbed
# SBATCH_PARTITION  and other variables of sbatch apply
set -euo pipefail
cdl="$(command -v "${1:-cdl}")"
repository="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d "$PWD/slurm-check-XXXXXX")"
fail() { echo "error: $1 (files are in $work)" >&2; exit 1; }
sweep() {
    "$cdl" --quiet --threads 1 sweep "$repository/configs/quickstart.toml" --seeds 1,2,3 --out "$1" \
        --set "epochs=${EPOCHS:-20}" --set batch_size=10 --set stream.tasks=2 --set stream.train_per_class=8 \
        --set stream.test_per_class=2 "${@:2}"
}

echo "undisturbed runs ..."
sweep "$work/whole/grid" > "$work/whole.txt"

# Arrays of at most two jobs, so that the last cell is in a second array.
sweep "$work/jobs/grid" --emit slurm --array-limit 2 > "$work/emitted.txt"
mapfile -t starts < <(sed -n 's/^.*\bsbatch /--parsable /p' "$work/emitted.txt")
[ "${#starts[@]}" = 2 ] || fail "expected two arrays in $work/emitted.txt"
ids=()
for start in "${starts[@]}"; do
    ids+=("$(eval "sbatch --time=20 --cpus-per-task=1 --output='$work/%A_%a.out' $start")")
done
jobs=("${ids[0]}_0" "${ids[0]}_1" "${ids[1]}_0")
echo "jobs ${jobs[*]}"
trap 'scancel "${ids[@]}" 2>/dev/null || true' EXIT

output() { echo "$work/${jobs[$1]}.out"; }
cell() { echo "$work/jobs/grid/cells/seed-$(($1 + 1))"; }
is_running() { [ "$(squeue --noheader --format=%t --job="${jobs[$1]}" 2>/dev/null)" = R ]; }

# Each is disturbed during its training, after the first epoch.
for number in 0 1; do
    until [ -s "$(cell "$number")/metrics.jsonl" ]; do
        sleep 0.2
    done
    is_running "$number" || fail "job ${jobs[$number]} ended before it could be disturbed"
    case "$number" in
        0) scancel --batch --signal=TERM "${jobs[0]}" ;;
        1) scontrol requeue "${jobs[1]}" ;;
    esac
    echo "disturbed ${jobs[$number]}"
done
while [ -n "$(squeue --noheader --job="$(IFS=,; echo "${ids[*]}")" 2>/dev/null)" ]; do
    sleep 2
done
trap - EXIT

for number in 0 1; do
    grep -q "resuming at" "$(output "$number")" || fail "job ${jobs[$number]} was not continued: $(output "$number")"
done
grep -q "stopped by SIGTERM and saved" "$(output 0)" || fail "job ${jobs[0]} did not save its run: $(output 0)"
"$cdl" --quiet sweep --resume "$work/jobs/grid" --collect > "$work/jobs.txt"
compared=0
while read -r file; do
    cmp "$work/whole/grid/$file" "$work/jobs/grid/$file" || fail "$file differs"
    compared=$((compared + 1))
done < <(cd "$work/whole/grid" && find sweep.csv sweep.md sweep.tex summary.json accuracy.svg cells -type f \
    \( -path '*/models/*' -o -name '*.csv' -o -name '*.toml' -o ! -path 'cells/*' \))
[ "$compared" -gt 20 ] || fail "only $compared files were compared"
echo "$compared files of the requeued jobs equal those of undisturbed runs"
rm -rf "$work"
