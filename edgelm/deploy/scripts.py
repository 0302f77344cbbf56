"""The shell scripts that run on the device. POSIX sh and the tools of Debian, BusyBox and Android's toybox only.

Values come as arguments and are never pasted into a script. What a step found is its exit status, one of the constants
below; the last line of stderr says more.
"""

from __future__ import annotations

__all__ = [
    "ANSWER_MARK",
    "BENCHMARK",
    "EXISTS",
    "LOOK",
    "MAKE_PART",
    "NOT_THERE",
    "NOT_VERIFIED",
    "NOT_WHOLE",
    "NOT_WRITABLE",
    "PLACE",
    "REMOVE_PART",
    "UNPACK",
]

EXISTS = 40
NOT_WRITABLE = 41
NOT_WHOLE = 42
NOT_VERIFIED = 43
NOT_THERE = 44

# Before the report of `edgelm verify`, or the runs of `edgelm benchmark`: a login script may print before it.
ANSWER_MARK = "edgelm-answer"

# $sums: "SHA256 NAME" lines, as the manifest has them. Older toybox knows no `sha256sum -c`.
_CHECK = r"""
whole() {
  printf '%s\n' "$sums" | while read -r wanted file; do
    found=$(sha256sum "$file" 2>/dev/null | cut -d ' ' -f 1)
    [ "$found" = "$wanted" ] || { echo "$file has the SHA-256 ${found:-(none)}, not $wanted" >&2; exit 1; }
  done
}
"""

# Tells what is there, as KEY=VALUE lines, and changes nothing.
LOOK = (
    _CHECK
    + r"""
folder=$1 name=$2 sums=$3 edgelm=$4
echo edgelm-look
echo "machine=$(uname -m)"
for tool in sha256sum tar cut; do command -v $tool >/dev/null 2>&1 || echo "missing=$tool"; done
case $edgelm in
  '') set -- edgelm "$HOME/edgelm/bin/edgelm" "$HOME/.local/bin/edgelm" "$HOME/.venv/bin/edgelm" ;;
  /*) set -- "$edgelm" ;;
  */*) set -- "$PWD/$edgelm" ;;
  *) set -- "$edgelm" ;;
esac
for candidate in "$@"; do
  if found=$(command -v "$candidate" 2>/dev/null); then
    echo "edgelm=$found"
    echo "version=$("$found" --version 2>/dev/null </dev/null | tail -n 1)"
    break
  fi
done
place=$folder
while [ ! -d "$place" ]; do place=$(dirname "$place"); done
[ -w "$place" ] && echo writable=yes
echo "df=$(df -Pk "$place" 2>/dev/null | tail -n 1)"
if cd "$folder" 2>/dev/null; then
  echo "path=$(pwd)/$name"
  if [ -d "$name" ] && [ ! -L "$name" ]; then
    if (cd "$name" && whole 2>/dev/null); then echo present=same
    elif [ -f "$name/manifest.json" ] || [ -z "$(ls -A "$name")" ]; then echo present=other
    else echo present=foreign; fi
  elif [ -L "$name" ]; then echo present=foreign
  elif [ -e "$name" ]; then echo present=other
  fi
fi
exit 0
"""
)

# Makes the hidden folder that the files go to. Parts older than an hour are of a line that was lost.
MAKE_PART = rf"""
folder=$1 part=$2 name=$3
umask 022
mkdir -p "$folder" && cd "$folder" || exit {NOT_WRITABLE}
find . -maxdepth 1 -name ".$name.*.part*" -mmin +60 -exec rm -rf '{{}}' + 2>/dev/null
mkdir "$part" || exit {NOT_WRITABLE}
"""

# Whatever ends the session before the bundle is in place, removes the part; a bundle that had stepped aside comes back.
_CLEAN_UP = r"""
clean_up() {
  [ -e "$name" ] || [ ! -e "$part.old" ] || mv "$part.old" "$name"
  rm -rf "$part" "$part.old"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM PIPE
"""

# Receives the files from stdin. -o and -m: this user's files, of now; the clock of a board without a battery is wrong.
UNPACK = MAKE_PART + _CLEAN_UP + rf"""tar -x -o -m -f - -C "$part" || exit {NOT_WRITABLE}
"""  # fmt: skip

# Begins in $folder after UNPACK, or anew after files were pushed. Arguments: FOLDER PART NAME SUMS EDGELM FORCE.
PLACE = (
    _CHECK
    + r"""
folder=$1 part=$2 name=$3 sums=$4 edgelm=$5 force=$6
[ -d "$part" ] || cd "$folder" || exit 41
"""
    + _CLEAN_UP
    + rf"""
(cd "$part" && whole) || exit {NOT_WHOLE}
if [ -n "$edgelm" ]; then
  echo {ANSWER_MARK}
  "$edgelm" verify --json "$part" </dev/null || exit {NOT_VERIFIED}
fi
if [ -e "$name" ] || [ -L "$name" ]; then
  [ "$force" = yes ] || exit {EXISTS}
  mv "$name" "$part.old" || exit {NOT_WRITABLE}
fi
mv "$part" "$name" || exit {NOT_WRITABLE}
sync
exit 0
"""
)

# Arguments: FOLDER PART.
REMOVE_PART = 'cd "$1" && rm -rf "$2"'

# Arguments: FOLDER NAME EDGELM COMMAND [OPTION …]. stdin ends when the other side is gone: then the command ends too, so
# that no forgotten benchmark disturbs the next one. It is started in the background, where a shell ignores interrupts.
BENCHMARK = rf"""
cd "$1" || exit {NOT_THERE}
name=$2 edgelm=$3 command=$4
shift 4
[ -e "$name" ] || exit {NOT_THERE}
echo {ANSWER_MARK}
exec 3<&0
"$edgelm" "$command" "$name" --json "$@" </dev/null 3<&- &
working=$!
{{ cat <&3 >/dev/null; kill "$working" 2>/dev/null; }} >/dev/null 2>&1 &
watching=$!
wait "$working"
status=$?
kill "$watching" 2>/dev/null
exit "$status"
"""
