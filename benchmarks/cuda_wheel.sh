#!/usr/bin/env bash
# Installs Shoal as on a PC with a card (PyTorch for CUDA, 3 GB) on any machine, imports, plans, and runs the doctor:
#
#     bash benchmarks/cuda_wheel.sh            writes benchmarks/results/cuda_wheel.txt; 6 minutes, 8 GB in $TMPDIR
#
# Needs no GPU, so it is no proof for one: it shows what installs, how large it is, and that nothing asks for CUDA early.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
torch=${1:-torch===2.13.0} # three equal signs: a build for CPUs that the index offers too would do for two
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$checkout"
export SHOAL_CACHE=$place/cache RAY_USAGE_STATS_ENABLED=0
bin=$place/venv/bin

say() { # a command as a user would type it, and what came of it, without the places of this machine
    printf '\n$ %s\n' "$1"
    shift
    local status=0
    "$@" 2>&1 | sed -e "s#$place/venv/bin/##g; s#$place#/tmp#g; s#$checkout#shoal#g; s#$HOME#~#g; s#$(hostname)#pc#g" || status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || printf '(exit status %s)\n' "$status"
}

install() {
    python3 -m venv "$place/venv"
    "$bin/pip" install --progress-bar off --no-cache-dir "$torch" -e . >"$place/pip.log" 2>&1
    "$bin/python" - "$place" <<'EOF'
import pathlib, re, sys, urllib.parse

place = pathlib.Path(sys.argv[1])
sizes = {}
units = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
for line in (place / "pip.log").read_text().splitlines():
    if found := re.search(r"Downloading (?:\S*/)?(\S+\.(?:whl|gz)) \(([\d.]+) (\w+)\)", line):
        sizes[found[1]] = float(found[2]) * units[found[3]]
    elif (found := re.search(r"Processing (\S+\.whl)", line)) and pathlib.Path(found[1]).is_file():
        sizes[pathlib.Path(found[1]).name] = pathlib.Path(found[1]).stat().st_size
disk = sum(file.lstat().st_size for file in (place / "venv").rglob("*") if file.is_file())
print(f"{len(sizes)} packages, {sum(sizes.values()) / 1e9:.1f} GB of wheels, {disk / 1e9:.1f} GB on disk; the largest:")
for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:6]:
    print(f"    {size / 1e6:6.0f} MB  {urllib.parse.unquote(name).split('-cp3')[0].split('-py')[0]}")
EOF
}

imports() {
    "$bin/python" - <<'EOF' | grep -v -i warning
import inspect

import bitsandbytes
import deepspeed
import torch
from torch.nn.attention.varlen import varlen_attn

from training.cuda.torch_build import installed_torch

print(f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, bitsandbytes {bitsandbytes.__version__}")
print(f"built for CUDA {torch.version.cuda}, {torch._C._cuda_getArchFlags()}; available: {torch.cuda.is_available()}")
print("varlen_attn", inspect.signature(varlen_attn))
print("without importing it:", installed_torch())
EOF
}

shoal() { "$bin/shoal" "$@"; }
on_a_pc_with() {
    SHOAL_STAND_INS="nvml=$1" PYTHONPATH=tests/stand_ins/site "$bin/shoal" "${@:2}"
}

main() {
    say "pip install '$torch' -e ." install
    say "python -c 'import bitsandbytes, deepspeed, torch ...'" imports
    say "shoal plan studies/demo.yaml" shoal plan studies/demo.yaml
    say "shoal plan studies/demo.yaml --cards 3060" shoal plan studies/demo.yaml --cards 3060
    say "shoal plan studies/demo.yaml    # NVML as of a PC with a RTX 3060 and an older driver" \
        on_a_pc_with 3060@535.54.03 plan studies/demo.yaml
    say "shoal plan studies/demo.yaml    # ... with a GTX 1080" on_a_pc_with 1080 plan studies/demo.yaml
    say "shoal doctor" shoal doctor
}
main | tee benchmarks/results/cuda_wheel.txt
