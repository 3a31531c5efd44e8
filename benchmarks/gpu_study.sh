# Shared by growing.sh and plan.sh, which source it from the repository's root with the folder of the results. In the
# environment: MINUTES, the time limit with unpacking and tables (9); WHEELS, a folder of wheels to use besides what is
# installed; WORK, the folder for data and runs (/tmp/esper-growing), which a later call uses again. Defines `out`,
# `work`, `python`, `unpack`, `await_mps` and `minutes_left`; starts MPS, and ends it when the script exits.
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
minutes=${MINUTES:-9} work=${WORK:-/tmp/esper-growing} python=${PYTHON:-python3}
mkdir -p "$work" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore

# MPS lets several processes compute on one GPU at the same time; without it they take turns. Whether it works is tried
# while packages are installed and data unpacked.
mps_check=
if command -v nvidia-cuda-mps-control >/dev/null; then
    mps=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$mps/pipe" CUDA_MPS_LOG_DIRECTORY="$mps/log"
    mkdir "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    nvidia-cuda-mps-control -d
    trap 'echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1; rm -rf "$mps"' EXIT
    timeout 60 "$python" -c "import torch; torch.ones(1, device='cuda').sum().item()" &
    mps_check=$!
fi

# await_mps: before CUDA is used.
await_mps() {
    [[ -n $mps_check ]] || return 0
    if wait "$mps_check"; then
        echo "MPS: on"
    else
        echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1
        trap 'rm -rf "$mps"' EXIT
        unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
        echo "MPS: does not work here"
    fi
}

if [[ -n ${WHEELS:-} ]]; then
    site="$work/site-$(cd "$WHEELS" && ls | cksum | cut -d ' ' -f 1)"  # that of an earlier call has the same wheels
    if [[ ! -f $site/.complete ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
            "$WHEELS"/*.whl >"$out/pip.log" 2>&1 || { tail -n 5 "$out/pip.log" >&2; exit 1; }
        touch "$site/.complete"
    fi
    export PYTHONPATH="$PYTHONPATH:$site"
fi

# unpack ARCHIVE FOLDER: unless an earlier call has.
unpack() {
    if [[ ! -f $2/.complete-$(basename "$1") ]]; then
        mkdir -p "$2"
        tar -xf "$1" -C "$2" && touch "$2/.complete-$(basename "$1")" || exit 1
    fi
}

minutes_left() {
    awk -v minutes="$minutes" -v seconds="$SECONDS" 'BEGIN { print minutes - (seconds + 10) / 60 }'
}
