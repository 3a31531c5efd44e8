# Shared by gpu.sh and gpus.sh, which source it from the repository's root with the results folder and the time limit in
# seconds. WHEELS in the environment: a folder of wheels (wheels.sh) to use besides what is installed. Defines `out`,
# `python`, `run` and `end_with_summary`.
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
logs=$(mktemp -d)
caches=$(mktemp -d)  # fresh, so that nothing compiled in an earlier run is reused
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
export TORCHINDUCTOR_CACHE_DIR="$caches/inductor" TRITON_CACHE_DIR="$caches/triton"
if [[ -n ${WHEELS:-} ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$caches/site" \
        "$WHEELS"/*.whl >"$out/pip.log" 2>&1 || { tail -n 5 "$out/pip.log" >&2; exit 1; }
    export PYTHONPATH="$PYTHONPATH:$caches/site"
fi
end=$(($2))  # of SECONDS, since the script began
failed=0
verdicts=()

finish() {
    tar -czf "$out/logs.tar.gz" -C "$logs" .
    rm -rf "$logs" "$caches"
}
trap finish EXIT

# run NAME SECONDS COMMAND...: stdout is shown and saved, stderr goes to the logs only.
run() {
    local name=$1 limit=$2 started=$SECONDS status=0
    shift 2
    (( limit > end - SECONDS )) && limit=$((end - SECONDS))
    if (( limit < 1 )); then
        status=124
    else
        timeout --kill-after=15 "$limit" "$@" >"$logs/$name.out" 2>"$logs/$name.err" || status=$?
    fi
    {
        echo "== $name"
        cat "$logs/$name.out" 2>/dev/null
        (( status == 0 )) || tail -n 30 "$logs/$name.err" 2>/dev/null
    } | tee -a "$out/summary.txt"
    local verdict="ok"
    (( status == 0 )) || { verdict="FAILED ($status)"; failed=1; }
    (( status != 124 && status != 137 )) || verdict="FAILED (timed out)"
    verdicts+=("$name: $verdict, $((SECONDS - started)) s")
}

end_with_summary() {
    printf '%s\n' "== summary" "${verdicts[@]}" | tee -a "$out/summary.txt"
    exit "$failed"
}

: >"$out/summary.txt"
