#!/usr/bin/env bash
# Train a study of growing.py on all GPUs of a machine without a package index, and write its tables.
#
#     bash benchmarks/growing.sh STUDY DATA OUT [option of growing.py ...]
#
# from the repository's root. DATA: a folder of images (of text for gpt), or a tar archive with one. Rows go to
# OUT/growing.jsonl, tables to OUT/tables.md; cells whose rows are there already are skipped. MINUTES, WHEELS and WORK
# in the environment: see gpu_study.sh.
set -u -o pipefail

if [[ $# -lt 3 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/growing.sh STUDY DATA OUT [option of growing.py ...]" >&2
    exit 2
fi
study=$1 data=$2
. benchmarks/gpu_study.sh "$3"
shift 3

if [[ -f $data ]]; then
    unpacked="$work/data/$(basename "$data")"
    unpack "$data" "$unpacked"
    train=$(find "$unpacked" -maxdepth 3 -type d -name train | head -n 1)
    data=$(dirname "${train:-$unpacked/train}")
fi

await_mps
"$python" benchmarks/growing.py "$study" --data "$data" --out "$out/growing.jsonl" --outputs "$work/outputs" \
    --minutes "$(minutes_left)" "$@" 2> >(tee "$out/growing.err" >&2)
status=$?
"$python" benchmarks/growing_report.py "$out/growing.jsonl" >"$out/tables.md" 2>"$out/report.err" \
    || { tail -n 3 "$out/report.err" >&2; status=1; }
cat "$out/tables.md"
exit "$status"
