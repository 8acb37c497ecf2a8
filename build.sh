#!/usr/bin/env bash
# Builds and tests tattle. Needs Python 3.9 or newer with venv and pip, and installs nothing outside
# this checkout, except what system_packages does.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

PIP_AUDIT=pip-audit==2.10.1

usage() {
    cat <<'EOF'
Usage: ./build.sh [COMMAND]

  (none)              build dist/tattle, dist/tattle.sha256 and dist/tattle.cdx.json, the SBOM
  test                build, check style and types, run the tests
  test ARGUMENT …     build, and run some tests: names below tests/, such as unit, or pytest's options
  demo                build, then show a login and a logout arriving at a stand-in for EventBridge
  bench [ROUNDS]      build, then measure, by root: README's figures and more, some ten minutes;
                      --beside FILE: and another build of tattle, in the same run
  upgrades [SECONDS]  build, then upgrade from each version before, and back, while logins go on
  distros [SUITE …]   build, then log in to other releases of Debian, debootstrapped into .distros;
                      distros test [SUITE …]: run the tests in fresh ones, ten minutes each
  coverage [ARG …]    build, then say which lines and branches the tests reach, in any process
  lock                resolve requirements.lock, tests/'s and .ci/'s anew, from pyproject.toml
  audit               look for known vulnerabilities of what requirements.lock names, by pip-audit

PYTHON=… chooses the Python that builds and runs the tests. The bytes built are the same with any.
EOF
}

say() { printf 'build.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

can_build() { "$1" -Ic 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; }

# Sets $python: $PYTHON, or else the first of the machine's that will do.
look_for_python() {
    pythons=(python3 python3.13 python3.12 python3.11 python3.10 python3.9 /usr/bin/python3)
    if [[ -n ${PYTHON:-} ]]; then pythons=("$PYTHON"); fi
    for python in "${pythons[@]}"; do
        if can_build "$python"; then return; fi
    done
    return 1
}

find_python() {
    if look_for_python; then return; fi
    say "no Python 3.9 or newer that has venv and pip (looked for: ${pythons[*]}). Install one:"
    say "  Debian, Ubuntu:        apt-get install python3-venv"
    die "  Amazon Linux, Fedora:  dnf install python3 python3-pip"
}

# pip as the machine has it set up (index, proxy, CA), except what would install to another place.
pip() {
    env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_CONSTRAINT PIP_USER=0 \
        "$1/bin/python" -Im pip "$2" -qq --disable-pip-version-check "${@:3}"
}

# venv FOLDER LOCK WHAT: makes the venv, unless it stands and was made of this lock with this Python.
venv() {
    local folder=$1 lock=$2 what=$3 made_from
    made_from="$("$python" -Ic 'import sys; print(sys.executable, sys.version)'; cat "$lock")"
    local hashed=(--require-hashes --no-deps --only-binary :all: -r "$lock")
    if [[ -d $folder/wheels && -f $folder/made-from && $(<"$folder/made-from") == "$made_from" ]]; then
        return
    fi
    say "installing $what into $folder …"
    rm -rf "$folder"
    "$python" -Im venv "$folder"
    # --no-deps: the lock is complete; --only-binary: no setup.py runs, with tools that no hash names.
    # The wheels are kept: src/sbom.py tells which they were.
    pip "$folder" download "${hashed[@]}" --dest "$folder/wheels"
    pip "$folder" install "${hashed[@]}" --no-index --find-links "$folder/wheels"
    printf '%s\n' "$made_from" >"$folder/made-from"
}

build() {
    find_python
    venv .venv requirements.lock "build tools, some 70 MB,"
    .venv/bin/python -I src/pack.py
    .venv/bin/python -I src/sbom.py
}

# What every command needs that runs something.
prepare() {
    system_packages "$command"
    build
    venv .venv-test tests/requirements.lock "test tools, some 700 MB, which can take minutes,"
}

# The environment of the machine (AWS_*, *_PROXY, *_CA_BUNDLE, PYTHON*, …) must not reach the tests.
clean() {
    local name kept=()
    for name in PATH HOME USER LANG LC_ALL TERM TMPDIR CI; do
        if [[ -v $name ]]; then kept+=("$name=${!name}"); fi
    done
    env -i "${kept[@]}" "$@"
}

# system_packages COMMAND: what the demo or the tests use of the system: a real sshd, strace, … For
# root, what is missing is installed by apt, but no SSH server where systemd would start it.
system_packages() {
    local missing=()
    PATH=$PATH:/usr/sbin:/sbin
    need() { command -v "$1" >/dev/null || missing+=("${@:2}"); }
    [[ -n ${PYTHON:-} ]] || look_for_python || missing+=(python3-venv)
    [[ -d /run/systemd/system ]] || need sshd openssh-server
    need ssh openssh-client
    need ip iproute2
    if [[ $1 == distros ]]; then need debootstrap debootstrap; fi
    if [[ $1 != demo ]]; then
        need git git
        need curl curl
        need strace strace
        need sudo sudo
        need cc gcc libc6-dev
        need faketime faketime
        need unzip unzip
        need systemd-analyze systemd
        need mkfs.ext4 e2fsprogs
        need secilc secilc
        need sesearch setools
        [[ -d /usr/share/i18n/locales ]] || missing+=(locales)
    fi
    if [[ ${#missing[@]} == 0 ]]; then return; fi
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        say "not installed: ${missing[*]}. What needs them is skipped. On Debian and Ubuntu:"
        say "  apt-get install ${missing[*]}"
        return
    fi
    say "installing ${missing[*]} …"
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # 1: invoke-rc.d starts no service
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        apt-get update -qq >/dev/null
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    }
}

check_style() {
    local bin=$PWD/.venv-test/bin
    say "checking style and types …"
    clean "$bin/ruff" check --quiet src tests
    clean "$bin/ruff" format --check --quiet src tests
    clean "$bin/python" -m mypy --no-error-summary
    clean "$bin/shellcheck" build.sh .ci/run tests/standins/instance_*.sh tests/tools/*/*.sh
}

# run_tests [ARGUMENT …]: those tests or, without one, style, types and all tests.
run_tests() {
    local argument arguments=() processes=1
    if [[ $# == 0 ]]; then check_style; fi
    for argument in "$@"; do
        if [[ -e tests/${argument%%::*} ]]; then argument=tests/$argument; fi
        arguments+=("$argument")
    done
    # More processes than processors: most of the time they wait, for a time-out, a fault, a deliverer
    # that stays. Root's have a /var/cache each. Those of others would share ~/.cache/tattle, where
    # what one Python unpacks takes the place of another's.
    if [[ $EUID == 0 ]]; then processes=$(($(nproc) * 2)); fi
    # Each file's tests run in one process: they share an instance. In the order of their names, since
    # the long ones are in instance/.
    clean .venv-test/bin/python -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "${arguments[@]}"
}

# uv as its lock has it, by version and hash, in $work, which goes when this ends.
install_uv() {
    find_python
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    venv "$work/uv" .ci/requirements.lock uv
    export UV_CACHE_DIR=$work/cache
}

# resolve ARGUMENT …: the lock of what pyproject.toml asks for, for all Pythons at once.
resolve() {
    "$work/uv/bin/uv" pip compile --quiet --universal --python-version 3.9 \
        --generate-hashes --no-header --no-emit-index-url --python "$work/uv/bin/python" "$@"
}

# Writes the locks. The uv of the one that there is resolves the next.
lock() {
    install_uv
    say "resolving …"
    {
        cat <<'EOF'
# What dist/tattle is made of, and what makes it: `./build.sh` installs exactly these, with --no-deps.
# Written by `./build.sh lock` from pyproject.toml; review the difference before you commit it.
#
# urllib3 2.6 is deliberate. botocore's metadata asks for 1.26 on Python 3.9; 2.6 runs there as well,
# 2.x is the maintained series, and one artifact for all Pythons can hold but one urllib3.
#
# zopfli comes twice since no one version has wheels for 3.9 and for 3.13; both compress to the same
# bytes. (pip and setuptools, which shiv's metadata names, are not used: shiv installs nothing here.)
EOF
        resolve pyproject.toml --group build --no-emit-package pip --no-emit-package setuptools
    } >"$work/requirements.lock"
    mv "$work/requirements.lock" requirements.lock
    {
        cat <<'EOF'
# The tools that test tattle, with the very run-time packages of ../requirements.lock.
# Written by `./build.sh lock` from pyproject.toml; review the difference before you commit it.
EOF
        resolve pyproject.toml --group test --constraint requirements.lock
    } >"$work/tests.lock"
    mv "$work/tests.lock" tests/requirements.lock
    {
        cat <<'EOF'
# What resolves the locks, this one too.
# Written by `./build.sh lock` from pyproject.toml; review the difference before you commit it.
EOF
        resolve --group lock
    } >"$work/ci.lock"
    mv "$work/ci.lock" .ci/requirements.lock
}

# Looks up what dist/tattle is made of, and what makes it, among the known vulnerabilities.
audit() {
    install_uv
    "$work/uv/bin/uv" tool run "$PIP_AUDIT" --strict --require-hashes --disable-pip \
        --requirement requirements.lock
}

# run_python ARGUMENT …: runs a program of the tests.
run_python() {
    prepare
    cd tests
    clean ../.venv-test/bin/python "$@"
}

command=${1:-build}
if [[ $# -gt 0 ]]; then shift; fi
case $command in
build) build ;;
demo) run_python -m tools.demo "$@" ;;
bench) run_python -m tools.bench "$@" ;;
upgrades) run_python -m tools.bench.upgrades "$@" ;;
distros) run_python -m tools.distros "$@" ;;
coverage) run_python -m tools.cover "$@" ;;
lock) lock ;;
audit) audit ;;
help | -h | --help) usage ;;
test)
    prepare
    run_tests "$@"
    ;;
*)
    usage >&2
    exit 64
    ;;
esac
