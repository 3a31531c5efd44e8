#!/usr/bin/env bash
# All benchmarks of speed and cost, and the CUDA tests, on a bare GPU machine, in under nine minutes:
#
#     bash benchmarks/gpu.sh OUT [DATA]
#
# from the repository's root, with Esper's dependencies importable. Results go to the folder OUT: one JSON file per
# program, summary.txt with the printed output, logs.tar.gz. DATA is an image folder (DATA/train/CLASS/*,
# DATA/test/CLASS/*) for the start-up time; everything else uses synthetic images. A program that fails does not stop
# the others; the exit code is then 1. Larger batches: throughput.py --batch-sizes 512,1024 takes a few minutes more.
set -u -o pipefail

if [[ $# -lt 1 || $# -gt 2 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/gpu.sh OUT [DATA]" >&2
    exit 2
fi
images=(--files 0)
[[ $# -lt 2 ]] || images=(--data "$2")
source benchmarks/gpu_run.sh "$1" "${GPU_SH_SECONDS:-535}"

run throughput 205 "$python" benchmarks/throughput.py --out "$out/throughput.json" --rounds 3 --batch-sizes 128 \
    --budget-seconds 165
run overhead 42 "$python" benchmarks/overhead.py --out "$out/overhead.json" --parts seeds --devices cuda --pairs 14
run growth_latency 65 "$python" benchmarks/growth_latency.py --out "$out/growth_latency.json" \
    --compiled-growths 3 --budget-seconds 50
run startup 70 "$python" benchmarks/startup.py --out "$out/startup.json" --repetitions 2 --budget-seconds 30 "${images[@]}"
# In parallel: neither is timed, and each of memory.py's five processes imports torch, which may take 10 s.
# The tests ignore the project's pytest configuration, whose plug-ins a bare machine may lack.
run memory_and_cuda_tests 190 bash -c '
    "$1" benchmarks/memory.py --out "$2/memory.json" >"$3/memory.out" 2>&1 & memory=$!
    "$1" -m pytest -c /dev/null --rootdir "$PWD" --import-mode=importlib -p no:cacheprovider -q tests/cuda
    tests=$?
    wait "$memory"; status=$?
    cat "$3/memory.out"
    exit $((tests | status))' bash "$python" "$out" "$logs"

end_with_summary
