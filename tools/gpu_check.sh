#!/usr/bin/env bash
# All checks that need a GPU, in one command, on a machine without Rust and without a network:
#
#   tools/cuda.sh package                     here: makes target/cuda/package, to copy to that machine
#   ./gpu_check.sh [LOGS]                     there, in that folder
#
# Compares operations and a network with the CPU in every precision, reproduces recorded runs, runs the quickstart on
# CPU and GPU, times steps of the published sizes in every precision, and prints a table. Needs an NVIDIA driver and
# CUDA 13's libraries: python3 finds those of PyTorch's wheels; CDL_CUDA_LIBS names a folder with others.
#
# CDL_GOLDEN_DIR  further recorded runs
# PEER            a program that times the same steps in PyTorch: PEER --device cuda --teacher T --student S --batch B
#                 --mode M --precision P prints a JSON object with the keys of `cdl bench --json`
# SIZES           networks and batches of the timed steps: "base small 64,large base 32"
# STEPS           timed steps (10)
set -uo pipefail
cd "$(dirname "$0")"
for packed in ./*.gz; do
  [ ! -e "$packed" ] || gunzip -kf "$packed"
done
logs=$(mkdir -p "${1:-logs}" && cd "${1:-logs}" && pwd)
steps=${STEPS:-10}
IFS=, read -ra all_sizes <<< "${SIZES:-base small 64,large base 32}"
export CDL_REQUIRE_GPU=1 CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-$(nproc)}

wheels=$(python3 -c 'import nvidia.cu13 as m; print(list(m.__path__)[0] + "/lib")' 2>/dev/null || true)
export CDL_CUDA_LIBS=${CDL_CUDA_LIBS:-$wheels}
export LD_LIBRARY_PATH=${CDL_CUDA_LIBS:+$CDL_CUDA_LIBS:}${LD_LIBRARY_PATH:-}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$logs/device.txt"

: > "$logs/checks.txt"
check() { # check NAME COMMAND...: runs COMMAND, writes its output to NAME.log and its result to checks.txt
  local name=$1 begun=$SECONDS
  shift
  if "$@" > "$logs/$name.log" 2>&1; then result=passed; else result="FAILED, see $name.log"; fi
  printf '%-24s %s (%s s)\n' "$name" "$result" $((SECONDS - begun)) | tee -a "$logs/checks.txt"
}

check operations ./test-cuda --nocapture
CDL_TEST_DEVICE=cuda check golden ./test-golden --nocapture
for device in cpu cuda; do
  check "quickstart-$device" ./cdl run configs/quickstart.toml --set "device=$device" --run-dir "$logs/run-$device" --overwrite
done
check quickstart-bf16 ./cdl run configs/quickstart.toml --set device=cuda --set precision=bf16 \
  --run-dir "$logs/run-bf16" --overwrite
# One seed gives one result on a GPU too.
check again ./cdl run configs/quickstart.toml --set device=cuda --run-dir "$logs/run-again" --overwrite
check same-bytes cmp "$logs/run-cuda/models/task_5/student.safetensors" "$logs/run-again/models/task_5/student.safetensors"

: > "$logs/steps.jsonl"
for sizes in "${all_sizes[@]}"; do
  read -r teacher student batch <<< "$sizes"
  for precision in float32 tf32 bf16; do
    check "bench-$teacher-$precision" bash -c "./cdl -q bench --teacher $teacher --student $student --batch $batch \
      --steps $steps --warmup 3 --set device=cuda --set precision=$precision --json >> '$logs/steps.jsonl'"
    if [ -n "${PEER:-}" ]; then
      for mode in published tuned compiled; do
        check "peer-$teacher-$precision-$mode" bash -c "python3 '$PEER' --device cuda --teacher $teacher --student $student \
          --batch $batch --steps $steps --warmup 5 --mode $mode --precision ${precision/float32/fp32} >> '$logs/steps.jsonl'"
      done
    fi
  done
done

python3 - "$logs" <<'PYTHON' | tee "$logs/summary.txt"
import json, pathlib, sys

logs = pathlib.Path(sys.argv[1])
print((logs / "device.txt").read_text().strip())
print((logs / "checks.txt").read_text())
for run in ("cpu", "cuda", "bf16"):
    file = logs / f"run-{run}" / "results.json"
    if file.exists():
        results = json.loads(file.read_text())
        print(f"quickstart {run:<6}", *(f"{role} {results[role]['average_accuracy']:.2f} %" for role in ("teacher", "student")))
lines = [json.loads(line) for line in (logs / "steps.jsonl").read_text().splitlines() if line.startswith("{")]
# "times cdl": time of both steps, divided by cdl's. "of peak": operations per second, counted by formula, divided by
# the rate of a large matrix product.
print(f"\n{'networks':<16}{'precision':<10}{'program':<22}{'teacher ms':>11}{'student ms':>11}"
      f"{'times cdl':>11}{'of peak':>12}{'peak GB':>9}")
same = {"fp32": "float32"}
ours = {}
for line in lines:
    if line["peer"].startswith("cdl"):
        ours[line["teacher"], line["precision"]] = line["teacher_step_s"] + line["student_step_s"]
for line in lines:
    precision = same.get(line["precision"], line["precision"])
    both = line["teacher_step_s"] + line["student_step_s"]
    own = ours.get((line["teacher"], precision))
    share = ""
    if "kernel_gflops" in line:
        share = f"{100 * (line['teacher_gflop'] + line['student_gflop']) / both / line['kernel_gflops']:.1f} %"
    who = line["peer"].split("+")[0] + ("" if line["peer"].startswith("cdl") else f" {line['mode']}")
    print(f"{line['teacher'] + ' ' + line['student']:<16}{precision:<10}{who:<22}"
          f"{1e3 * line['teacher_step_s']:>11.2f}{1e3 * line['student_step_s']:>11.2f}"
          f"{both / own if own else float('nan'):>11.2f}{share:>12}{(line['peak_bytes'] or 0) / 1e9:>9.2f}")
PYTHON
[ -s "$logs/summary.txt" ] && ! grep -q FAILED "$logs/checks.txt"
