# Sourced by the scripts beside it, each of which makes Python environments in the cache.
#
#   QVL_CACHE   where they go; ~/.cache/qvl if unset
#   QVL_PYTHON  the Python to use; /usr/bin/python3 if unset
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${QVL_CACHE:-$HOME/.cache/qvl}
python=${QVL_PYTHON:-/usr/bin/python3}

fail() {
    echo "error: $1" >&2
    echo "  hint: $2" >&2
    exit 1
}

# lock NAME: waits until no other process holds it, and holds it until this one ends.
lock() {
    mkdir -p "$cache"
    exec 9>"$cache/$1.lock"
    flock 9
}

# environment NAME MADE_OF FILL [OPTION OF VENV ..]: one in the cache, which the function FILL fills. What it
# is made of is kept in it as `complete`; if that is the same as before, nothing is done.
environment() {
    local made_of=$2 fill=$3
    folder=$cache/$1
    shift 3
    if [[ -x $folder/bin/python && $(cat "$folder/complete" 2>/dev/null) == "$made_of" ]]; then
        echo "$folder is up to date"
        return
    fi
    echo "making $folder"
    rm -rf "$folder"
    "$python" -m venv "$@" "$folder" ||
        fail "$python cannot make an environment" "apt-get install python3-venv, or set QVL_PYTHON"
    "$fill"
    echo "$made_of" >"$folder/complete"
}

# install ARGUMENTS: with pip, into the environment that is being filled.
install() {
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes "$@" ||
        fail "pip could not install ${*: -1}" "is the package index reachable?"
}

# starts MODULES: whether Python can import them there.
starts() {
    "$folder/bin/python" -c "import $1" >/dev/null || fail "$1 does not start in $folder" "delete the folder and try again"
}
