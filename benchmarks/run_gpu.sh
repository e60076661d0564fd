#!/usr/bin/env bash
# Builds cwt_ext if it has no CUDA kernels yet, tests and measures them on this machine's GPU, and
# writes everything into one folder. About 15 minutes on an H100.
#
#   benchmarks/run_gpu.sh OUT              everything
#   PARTS="tests bench" benchmarks/run_gpu.sh OUT
#   PARTS="quick" benchmarks/run_gpu.sh OUT
#
# Parts: tests (tests/test_cuda_gpu.py), bench (bench_chunk_loss_gpu.py), quick (the same, 40 s),
# sanitizer (a few tests under compute-sanitizer, if that is installed). PYTHON names the interpreter.
# Ends with status 1 if a part failed; the others run all the same.
set -u
out=${1:?usage: benchmarks/run_gpu.sh OUT}
parts=${PARTS:-tests bench sanitizer}
python=${PYTHON:-python}
mkdir -p "$out" && out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" CWT_REQUIRE_CUDA=1
failed=""

part() { # NAME SECONDS COMMAND...: runs one part, its output to OUT/NAME.txt
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  status=$?
  echo "$name: status $status, $((SECONDS - start)) s" | tee -a "$out/summary.txt"
  [ $status -eq 0 ] || failed="$failed $name"
}

: >"$out/summary.txt"
nvidia-smi >"$out/machine.txt" 2>&1
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda)' >>"$out/machine.txt" 2>&1
if ! "$python" -c 'from cwt_ext import _ops; assert "cuda" in _ops.backends()' 2>/dev/null; then
  part build 600 "$python" setup.py -q build_ext --inplace
fi
"$python" -m cwt_ext.doctor >"$out/doctor.txt" 2>&1

for name in $parts; do
  case $name in
  tests) part tests 300 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_cuda_gpu.py ;;
  bench) part bench 600 "$python" benchmarks/bench_chunk_loss_gpu.py --json "$out/bench.json" ;;
  quick) part quick 120 "$python" benchmarks/bench_chunk_loss_gpu.py --quick --json "$out/quick.json" ;;
  sanitizer)
    if ! command -v compute-sanitizer >/dev/null; then
      echo "sanitizer: not run, there is no compute-sanitizer on PATH" | tee -a "$out/summary.txt"
      continue
    fi
    for tool in memcheck racecheck synccheck; do
      part "$tool" 240 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q \
        -m gpu -p no:cacheprovider tests/test_cuda_gpu.py -k "plain and (13-1031 or 7-50257)"
    done
    ;;
  *)
    echo "run_gpu.sh: PARTS names $name; known are tests, bench, quick and sanitizer." >&2
    exit 2
    ;;
  esac
done
cat "$out/summary.txt"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
