# Sourced with $folder and $version: an empty environment with torch in it, or the end of the script where all is there.
# Leaves $stamp, to be touched when the rest is installed.
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
