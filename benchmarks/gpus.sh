#!/usr/bin/env bash
# What several GPUs of one machine are measured with, in under nine minutes: the benchmark of scaling, and with what is
# left of the time the test that two GPUs train and grow as one does.
#
#     bash benchmarks/gpus.sh OUT
#
# from the repository's root, with Esper's dependencies importable. Results go into the folder OUT: scaling.json, which is
# written after every part of the benchmark, summary.txt with what was printed, logs.tar.gz. The exit code is 1 if
# something failed. All sizes, as many GPUs as there are, without a limit of time: benchmarks/scaling.py --out FILE.
set -u -o pipefail

if [[ $# -ne 1 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/gpus.sh OUT" >&2
    exit 2
fi
seconds=${GPUS_SH_SECONDS:-520}
source benchmarks/gpu_run.sh "$1" "$seconds"

# What has begun when the budget is over is finished: hence the difference between budget and limit.
run scaling $((seconds * 83 / 100)) "$python" benchmarks/scaling.py --out "$out/scaling.json" \
    --rounds 6 --block-seconds 0.6 --budget-seconds $((seconds * 75 / 100)) --cell-seconds 150
run tests_with_two_gpus "$seconds" "$python" -m pytest -c /dev/null --rootdir "$PWD" --import-mode=importlib \
    -p no:cacheprovider -v tests/cuda/test_ranks.py
end_with_summary
