#!/usr/bin/env bash
# Download the wheels that a GPU machine without a network lacks, into one folder, and print what travels in all.
#
#   bash benchmarks/gpu/wheels.sh FOLDER [PYTHON_VERSION [CUDA_BACK_END]]      # 3.12 cuda130
#
# For a machine that has torch, transformers, peft, accelerate, pandas, pyarrow, scikit-learn, pytest and hypothesis
# already. Run it where there is a package index, with a python that has torch and setuptools (DeepSpeed's setup asks
# for them). DeepSpeed is built without compiled parts, which the GPU machine's compiler makes when they are needed;
# bitsandbytes keeps the libraries of the CPU and of one CUDA version.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?give the folder to fill}
version=${2:-3.12}
back_end=${3:-cuda130}
limit_mib=64
python=${PYTHON:-python3}
mkdir -p "$folder"

# What DeepSpeed (hjson, pydantic and its four) and datasets (dill, multiprocess) need beyond that list.
pure=(datasets==5.2.0 "dill>=0.4.1,<0.4.2" hjson annotated-types typing-inspection "typing-extensions>=4.16" pydantic==2.14.4)
compiled=(bitsandbytes==0.50.2 "multiprocess<0.70.20" pydantic-core==2.50.5)

platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${tag}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" \
    --python-version "$version" --implementation cp "${platforms[@]}" "${pure[@]}" "${compiled[@]}"
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" deepspeed==0.19.8
"$python" -m benchmarks.gpu.slim_wheel "$folder"/bitsandbytes-*.whl cpu "$back_end"

wheels=$(cat "$folder"/*.whl | wc -c)
checkout=$(git ls-files -z | xargs -0 cat | wc -c)
ls -l "$folder"
echo "wheels $((wheels / 1024)) KiB + checkout $((checkout / 1024)) KiB = $(((wheels + checkout) / 1024)) KiB," \
    "limit $((limit_mib * 1024)) KiB"
((wheels + checkout <= limit_mib * 1024 * 1024))
