#!/usr/bin/env bash
# Benchmarks of several GPUs of one machine, in under four minutes: scaling, with gradients summed during the backward
# pass and after it, then the tests of these sums.
#
#     bash benchmarks/gpus.sh OUT
#
# from the repository's root. Results go to the folder OUT: scaling.json, updated after each cell, summary.txt with the
# printed output, logs.tar.gz. The exit code is 1 if anything failed. In the environment: GPUS_SH_SECONDS, the time
# limit (230; from 520 on, two more networks and all tests of two GPUs), and WHEELS, a folder of wheels to use besides
# what is installed. All sizes on all GPUs, without a time limit: benchmarks/scaling.py --out FILE --budget-seconds inf.
set -u -o pipefail

if [[ $# -ne 1 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/gpus.sh OUT" >&2
    exit 2
fi
seconds=${GPUS_SH_SECONDS:-230}
source benchmarks/gpu_run.sh "$1" "$seconds"

networks=(resnet50:224:128 resnet18:32:512)
(( seconds < 520 )) || networks+=(resnet50:32:256 resnet18:224:128)
pytest=("$python" -m pytest -c /dev/null --rootdir "$PWD" --import-mode=importlib -p no:cacheprovider -v)
# A cell that has started is finished after the budget: hence the difference between budget and limit.
run scaling $((seconds * 75 / 100)) "$python" benchmarks/scaling.py --out "$out/scaling.json" --arms late \
    --networks "${networks[@]}" --rounds 6 --block-seconds 0.5 --budget-seconds $((seconds * 60 / 100)) --cell-seconds 90
run tests_of_sums "$seconds" "${pytest[@]}" tests/cuda/test_ranks_gradients.py
(( seconds < 520 )) || run tests_of_two_gpus "$seconds" "${pytest[@]}" tests/cuda/test_ranks.py
end_with_summary
