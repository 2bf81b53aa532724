#!/usr/bin/env bash
# Installs what a build and its tests need and this machine lacks (Debian and Ubuntu, as root or with sudo); does
# nothing when all is there. Rust itself is yours to install: https://rustup.rs.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }
# bindgen loads libclang at build time to read RocksDB's header.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -qE 'libclang(-[0-9.]+)?\.so' && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null
}
# etcd's messages import google/protobuf/*.proto, which protoc finds beside itself or in /usr/include.
have_protos() {
    local bin
    bin="$(command -v protoc)" || return 1
    [ -f "$(dirname "$(readlink -f "$bin")")/../include/google/protobuf/descriptor.proto" ] \
        || [ -f /usr/include/google/protobuf/descriptor.proto ]
}

need=() want=()
have g++ || need+=(g++)
have make || need+=(make)
have protoc || need+=(protobuf-compiler)
have_protos || need+=(libprotobuf-dev)
have_libclang || need+=(libclang-dev)
PATH="$PATH:/sbin:/usr/sbin" have mkfs.ext4 || want+=(e2fsprogs) # tests with disks of their own
have ccache || want+=(ccache) # RocksDB compiles once, not once per profile
have mold || want+=(mold)     # links in a second what takes ld ten
have etcd || want+=(etcd-server) # tests run schedulers on it

if ! have cargo; then
    echo "bootstrap: cargo is missing; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi
[ ${#need[@]} -eq 0 ] && [ ${#want[@]} -eq 0 ] && exit 0

root=()
if [ "$(id -u)" -ne 0 ]; then
    if have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then root=(sudo); else root=(no-root); fi
fi
if ! have apt-get || [ "${root[*]:-}" = no-root ]; then
    [ ${#want[@]} -eq 0 ] || echo "bootstrap: going on without ${want[*]}: builds are slower without ccache and mold, tests of schedulers fail without etcd-server" >&2
    [ ${#need[@]} -eq 0 ] && exit 0
    echo "bootstrap: install these packages (Debian names) and run again: ${need[*]}" >&2
    exit 1
fi

# RUNLEVEL=1: etcd-server would start a service of its own, on the scheduler's port.
apt() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 -qq "$@" </dev/null; }
echo "bootstrap: apt-get install ${need[*]:-} ${want[*]:-}"
apt update || echo "bootstrap: apt-get update failed; going on with the lists that are here" >&2
[ ${#need[@]} -eq 0 ] || apt install -y --no-install-recommends "${need[@]}" >/dev/null
for package in ${want[@]+"${want[@]}"}; do
    apt install -y --no-install-recommends "$package" >/dev/null || echo "bootstrap: no $package here; going on without" >&2
done
# Nor shall that service start with the machine.
if [[ " ${want[*]:-} " == *" etcd-server "* ]] && have systemctl; then
    "${root[@]}" systemctl disable etcd >/dev/null 2>&1 || true
fi
