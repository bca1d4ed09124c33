#!/bin/bash
# SGLang for CPU in an environment of its own, without the CUDA packages it does not need for tests.
# An unsupported configuration: for `make test-engines`, not for serving anything.
#
#     scripts/engines/install_sglang.sh ~/.cache/limbeck/engines/sglang
set -euo pipefail
version=0.5.23
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
"$folder/bin/pip" install -q --no-deps "sglang==$version"
"$folder/bin/python" "$here/cpu_requirements.py" sglang > "$folder/requirements.txt"
"$folder/bin/pip" install -q -r "$folder/requirements.txt"
# sitecustomize stands in for two compiled packages that only a GPU needs.
cp "$here/sglang_cpu_stand_in.py" "$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py"
touch "$stamp"
