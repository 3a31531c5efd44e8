#!/usr/bin/env bash
# Download the wheels for WHEELS of the other scripts: for a GPU machine without a package index, whose image has PyTorch
# and the scientific packages, but not what Esper needs besides.
#
#     bash benchmarks/wheels.sh FOLDER [PYTHON_VERSION]
#
# from the repository's root. PYTHON_VERSION is that of the GPU machine (3.12). With TRACKING=none in the environment,
# MLflow and what it needs, 33 of 43 MB, are left out, which the studies of growing and of plans do without.
set -eu -o pipefail

if [[ $# -lt 1 || $# -gt 2 || ! -f constraints.txt ]]; then
    echo "usage, in the repository's root: bash benchmarks/wheels.sh FOLDER [PYTHON_VERSION]" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd) version=${2:-3.12} python=${PYTHON:-python3}
all=$(mktemp -d)
trap 'rm -rf "$all"' EXIT
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip "$1" --quiet -c constraints.txt "${@:2}"; }

platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 28 27 24 17 12; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
binary=(--only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" -d "$all")
tracker=(mlflow)
[[ ${TRACKING:-} != none ]] || tracker=()
pip download "${binary[@]}" "${tracker[@]}" pydantic redis shtab simplejpeg sqlalchemy
# OmegaConf's parser has no wheel on the index, which --only-binary would stumble over.
pip download "${binary[@]}" --no-deps hydra-core hydra-submitit-launcher omegaconf submitit
pip wheel --no-deps antlr4-python3-runtime==4.9.3 -w "$all"
(cd "$all" && rm -f contourpy-* fonttools-* kiwisolver-* matplotlib-* numpy-* pandas-* pillow-* pyarrow-* scikit_learn-* \
    scipy-*)
mv "$all"/*.whl "$folder"
du -sh "$folder"
