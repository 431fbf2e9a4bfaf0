#!/bin/sh
# Print the Python to make the virtual environment with; say on standard error what to do when there is none.
#
#   tools/choose_python.sh [PYTHON]             PYTHON, or the first one on this machine that will do
#   tools/choose_python.sh --usable PYTHON      nothing; the exit status tells whether this one will do
#
# One that will do is new enough, can make virtual environments, and, where root works, can be run by the user that
# PostgreSQL's servers run as: a server runs our restore_command. Below a home directory of mode 0700, as Debian makes
# them, that user can run nothing, and neither can it read a checkout there.

checkout=$(cd "$(dirname "$0")/.." && pwd -P)

# Prints what is wrong with the interpreter that runs it; nothing if it will do. Any Python since 3.6 can read it.
judge='
import os, pwd, subprocess, sys
if sys.version_info < (3, 11):
    sys.exit("is %d.%d, and 3.11 or newer is needed" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv module (Debian: apt-get install python3-venv)")
if os.geteuid() == 0:
    # The same choice as polarvault.instance.account makes.
    uid, gid, name = 65534, 65534, "nobody"
    for known in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(known)
        except KeyError:
            continue
        uid, gid, name = entry.pw_uid, entry.pw_gid, known
        break
    def can(*words):
        try:
            return subprocess.call(
                words, cwd="/", user=uid, group=gid, extra_groups=[],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ) == 0
        except OSError:
            return False
    if not can(sys.executable, "-I", "-c", "import ctypes, ensurepip, ssl, venv"):
        sys.exit("cannot be run by user %s, as which root starts servers (is it in a closed home directory?)" % name)
    here = sys.argv[1]
    if not can(sys.executable, "-I", "-c", "import os, sys; os.listdir(sys.argv[1])", os.path.join(here, "src")):
        sys.exit("!user %s, as which root starts servers, cannot enter %s" % (name, here))
'

look() {  # PYTHON: print what is wrong with it
    "$1" -c "$judge" "$checkout" 2>&1
}

if [ "$1" = --usable ]; then
    look "$2" >/dev/null && exit 0
    exit 1
fi

found=
tried=
for python in ${1:-python3 python3.14 python3.13 python3.12 python3.11 \
    /usr/bin/python3 /usr/local/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 \
    /usr/bin/python3.11}; do
    path=$(command -v "$python" 2>/dev/null) || continue
    # A shim (pyenv) is there for versions that are not.
    "$path" -c '' 2>/dev/null || continue
    # The interpreter itself: what a shim starts may change with the directory.
    path=$("$path" -c 'import sys; print(sys.executable)')
    case " $tried " in *" $path "*) continue ;; esac
    tried="$tried $path"
    if problem=$(look "$path"); then
        echo "$path"
        exit 0
    fi
    case $problem in
    !*)
        echo "error: ${problem#!}" >&2
        echo "hint: move the checkout to where every user can read it, or do this as an ordinary user:" >&2
        echo "      mv $checkout /opt/ && cd /opt/$(basename "$checkout")" >&2
        exit 1
        ;;
    esac
    found="$found
  $path $problem"
done
if [ -n "$1" ] && [ -z "$found" ]; then
    echo "error: $1 is no Python that can be run" >&2
    exit 1
fi
echo "error: no Python was found that will do:${found:-
  (none on the PATH)}" >&2
echo "hint: install Debian's: apt-get install python3 python3-venv" >&2
echo "      or name another one: make PYTHON=/path/to/python3" >&2
exit 1
