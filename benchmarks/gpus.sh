#!/usr/bin/env bash
# Benchmarks of several GPUs of one machine, in under nine minutes: scaling, then, in the remaining time, the test that
# two GPUs train and grow like one.
#
#     bash benchmarks/gpus.sh OUT
#
# from the repository's root, with Esper's dependencies importable. Results go to the folder OUT: scaling.json, updated
# after each cell, summary.txt with the printed output, logs.tar.gz. The exit code is 1 if anything failed. All sizes on
# all GPUs, without a time limit: benchmarks/scaling.py --out FILE --budget-seconds inf.
set -u -o pipefail

if [[ $# -ne 1 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/gpus.sh OUT" >&2
    exit 2
fi
seconds=${GPUS_SH_SECONDS:-520}
source benchmarks/gpu_run.sh "$1" "$seconds"

# A cell that has started is finished after the budget: hence the difference between budget and limit.
run scaling $((seconds * 83 / 100)) "$python" benchmarks/scaling.py --out "$out/scaling.json" \
    --rounds 6 --block-seconds 0.6 --budget-seconds $((seconds * 75 / 100)) --cell-seconds 150
run tests_with_two_gpus "$seconds" "$python" -m pytest -c /dev/null --rootdir "$PWD" --import-mode=importlib \
    -p no:cacheprovider -v tests/cuda/test_ranks.py
end_with_summary
