#!/usr/bin/env bash
# Train a study of growing.py on all GPUs of a machine without a package index, and write its tables.
#
#     bash benchmarks/growing.sh STUDY DATA OUT [option of growing.py ...]
#
# from the repository's root. DATA: a folder of images (of text for gpt), or a tar archive with one. Rows go to
# OUT/growing.jsonl, tables to OUT/tables.md; cells whose rows are there already are skipped. In the environment:
# MINUTES, the time limit with unpacking and tables (9); WHEELS, a folder of wheels to use besides what is installed;
# WORK, the folder for data and runs (/tmp/esper-growing), which a later call uses again.
set -u -o pipefail

if [[ $# -lt 3 || ! -d esper || ! -d benchmarks ]]; then
    echo "usage, in the repository's root: bash benchmarks/growing.sh STUDY DATA OUT [option of growing.py ...]" >&2
    exit 2
fi
study=$1 data=$2
mkdir -p "$3" || exit 2
out=$(cd "$3" && pwd)
shift 3
minutes=${MINUTES:-9} work=${WORK:-/tmp/esper-growing} python=${PYTHON:-python3}
mkdir -p "$work" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore

if [[ -n ${WHEELS:-} ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" \
        "$WHEELS"/*.whl >"$out/pip.log" 2>&1 || { tail -n 5 "$out/pip.log" >&2; exit 1; }
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi

if [[ -f $data ]]; then
    unpacked="$work/data/$(basename "$data")"
    if [[ ! -f $unpacked/.complete ]]; then
        rm -rf "$unpacked"
        mkdir -p "$unpacked"
        tar -xf "$data" -C "$unpacked" && touch "$unpacked/.complete" || exit 1
    fi
    train=$(find "$unpacked" -maxdepth 3 -type d -name train | head -n 1)
    data=$(dirname "${train:-$unpacked/train}")
fi

# MPS lets several processes compute on one GPU at the same time; without it they take turns.
if command -v nvidia-cuda-mps-control >/dev/null; then
    mps=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$mps/pipe" CUDA_MPS_LOG_DIRECTORY="$mps/log"
    mkdir "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    nvidia-cuda-mps-control -d
    trap 'echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1; rm -rf "$mps"' EXIT
    if timeout 60 "$python" -c "import torch; torch.ones(1, device='cuda').sum().item()"; then
        echo "MPS: on"
    else
        echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1
        trap 'rm -rf "$mps"' EXIT
        unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
        echo "MPS: does not work here"
    fi
fi

left=$(awk -v minutes="$minutes" -v seconds="$SECONDS" 'BEGIN { print minutes - (seconds + 10) / 60 }')
"$python" benchmarks/growing.py "$study" --data "$data" --out "$out/growing.jsonl" --outputs "$work/outputs" \
    --minutes "$left" "$@" 2> >(tee "$out/growing.err" >&2)
status=$?
"$python" benchmarks/growing_report.py "$out/growing.jsonl" >"$out/tables.md" 2>"$out/report.err" \
    || { tail -n 3 "$out/report.err" >&2; status=1; }
cat "$out/tables.md"
exit "$status"
