#!/bin/bash
# SGLang for CPU in an environment of its own, without the CUDA packages it does not need for tests.
# An unsupported configuration: for `make test-engines`, not for serving anything.
#
#     scripts/engines/install_sglang.sh ~/.cache/limbeck/engines/sglang
set -euo pipefail
version=0.5.23
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
"$folder/bin/pip" install -q --no-deps "sglang==$version"
"$folder/bin/python" "$here/cpu_requirements.py" sglang > "$folder/requirements.txt"
"$folder/bin/pip" install -q -r "$folder/requirements.txt"
# sitecustomize stands in for two compiled packages that only a GPU needs.
cp "$here/sglang_cpu_stand_in.py" "$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py"
touch "$stamp"
