#!/usr/bin/env bash
# Train the cells of plan.py on all GPUs of a machine without a package index, and write their tables.
#
#     bash benchmarks/plan.sh DATA OUT [option of plan.py ...]
#
# from the repository's root. DATA: a folder with cifar10-jpeg.tar.xz, fashion-mnist.tar.xz (fashion_mnist.py makes it)
# and python-packages.tar.xz (corpus.py), or those of them that --cells needs. Rows go to OUT/plan.jsonl, tables to
# OUT/plan.md. What has a row is skipped; a later call on the same machine goes on with what this one has begun, and
# one on another machine begins it anew. MINUTES, WHEELS and WORK in the environment: see gpu_study.sh.
set -u -o pipefail

if [[ $# -lt 2 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/plan.sh DATA OUT [option of plan.py ...]" >&2
    exit 2
fi
archives=$1
. benchmarks/gpu_study.sh "$2"
shift 2

mkdir -p "$work/plan-data"
for archive in "$archives"/*.tar.xz; do
    [[ -f $archive ]] && unpack "$archive" "$work/plan-data"
done

await_mps
"$python" benchmarks/plan.py --data "$work/plan-data" --out "$out/plan.jsonl" --outputs "$work" \
    --minutes "$(minutes_left)" "$@" 2> >(tee "$out/plan.err" >&2)
status=$?
"$python" benchmarks/plan.py --out "$out/plan.jsonl" --report >"$out/plan.md" || status=1
exit "$status"
