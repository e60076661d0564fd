#!/usr/bin/env bash
# Runs the matrix of real.py on one GPU: nine tasks, three seeds, every row, in the time there is.
#
#   DATA=<folder of Fine-tune-CoT's <task>.json> MODEL=<folder, or .gguf file> OUT=<folder of results> \
#     benchmarks/evidence/run_gpu.sh [options of real.py]
#
# LIMIT (seconds, default 1500) ends it; OUT is complete but for the last half minute at any moment.
# WORK (default: in memory where that has 48 GiB left, else /tmp) takes up to 40 GB of weights.
# WORKERS (default 3) runs go side by side; each takes up to 16 GB of GPU memory and 4 GB of memory.
# Without NVIDIA's Multi-Process Service more of them gain nothing: eight took 13 steps a second
# together on an H200, because the GPU serves one process after another.
# The same command goes on where the last one stopped.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
free_gib() { df --output=avail -BG "$1" 2>/dev/null | tail -1 | tr -dc 0-9; }
if [ -z "${WORK:-}" ]; then
  memory=$(free_gib /dev/shm)
  if [ "${memory:-0}" -ge 48 ]; then WORK=/dev/shm/cwt-evidence; else WORK=/tmp/cwt-evidence; fi
fi
mkdir -p "$WORK" "$OUT"
echo "runs in $WORK, $(free_gib "$WORK") GiB free; $(nproc) cores"

student=$MODEL
if [ -f "$MODEL" ]; then # load_student wants a folder
  student=$WORK/gguf
  mkdir -p "$student"
  ln -sf "$(realpath "$MODEL")" "$student/model.gguf"
fi

export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$here:$root:$root/python
export PYTORCH_ALLOC_CONF=expandable_segments:True # batches differ in length: less is lost between
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python3 "$here/real.py" --data "$DATA" --student "$student" --work "$WORK" --results "$OUT" \
  --seconds "${LIMIT:-1500}" --workers "${WORKERS:-3}" "$@" 2>&1 | tee -a "$OUT/real.log"
