# SPDX-License-Identifier: GPL-2.0-or-later
# Roots of other Debians, for tests/distro/compile and run. Sourced by them: `source_dir` is this tree.
#
# A root is made once by debootstrap and kept in ICP_DISTRO_DIR (default /var/tmp/slurm-icp-distro; 0.5 to 1.5 GB
# each): SUITE with what a build needs and the objects of the last one, SUITE-run with Slurm as it is packaged there.

roots=${ICP_DISTRO_DIR:-/var/tmp/slurm-icp-distro}
mirror=${ICP_DISTRO_MIRROR:-http://deb.debian.org/debian}
known=(bookworm trixie forky)

say() { printf 'distro: %s\n' "$*"; }
die() { printf 'distro: %s\n' "$*" >&2; exit 1; }
missing() { printf 'distro: %s\n' "$*" >&2; exit 77; }
is_known() { [[ " ${known[*]} " == *" $1 "* ]]; }

# Runs a command in the root; what is mounted for it goes with it. The sources are on /src, read-only.
in_root() {
    local root=$1
    shift
    unshare --mount --propagation private sh -c '
        root=$1 source=$2
        shift 2
        mkdir -p "$root/src" "$root/build"
        mount --bind "$source" "$root/src" && mount -o remount,bind,ro "$root/src" &&
            mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" || exit 1
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
            DEBIAN_FRONTEND=noninteractive TERM="${TERM:-dumb}" "$@"' sh "$root" "$source_dir" "$@"
}

# in_overlay ROOT DIR=PLACE,... SCRIPT ARGUMENT...: runs the script in the root, where directories of this machine are seen
# at other places. What it writes elsewhere is forgotten; its namespaces end with it, whatever it has started.
in_overlay() {
    local root=$1 work status=0
    work=$(mktemp -d "$roots/run-XXXXXX")
    nice -n 5 unshare --mount --propagation private --uts --ipc --pid --fork --kill-child \
        bash "$source_dir/tests/distro/enter" "$work" "$@" || status=$?
    rm -rf --one-file-system "$work"
    return "$status"
}

# Made under another name first: a root that is there is whole. ICP_DISTRO_CACHED=1: none is made, and none changed.
make_root() {
    local suite=$1 root=$2
    [[ -z ${ICP_DISTRO_CACHED-} ]] || missing "$suite: there is no $root; tests/distro/run $suite makes it"
    command -v debootstrap >/dev/null || missing "no debootstrap here (the package of that name)"
    say "$suite: making $root"
    local new=$root.new scripts=/usr/share/debootstrap/scripts script=()
    rm -rf --one-file-system "$new"
    # A debootstrap older than the suite knows how by unstable's script.
    [[ -e $scripts/$suite ]] || script=("$scripts/sid")
    nice -n 10 debootstrap --variant=minbase "$suite" "$new" "$mirror" "${script[@]}" >"$root.log" 2>&1 ||
        { tail -n 5 "$root.log" >&2; missing "$suite: debootstrap failed, see $root.log"; }
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d"
    mv "$new" "$root"
}

# install_packages SUITE ROOT PACKAGE...: once; asked again when the list has changed (of that name, if packages_of is set).
install_packages() {
    local suite=$1 root=$2 list=.packages${packages_of:+-$packages_of}
    shift 2
    [[ "$*" == "$(cat "$root/$list" 2>/dev/null)" ]] && return
    [[ -z ${ICP_DISTRO_CACHED-} ]] || missing "$suite: $root lacks packages; tests/distro/run $suite installs them"
    say "$suite: installing $# packages and what they need"
    # A mirror of a suite in the making may lag behind what its index promises.
    in_root "$root" sh -c 'apt-get -q -o Acquire::Check-Valid-Until=false update && exec nice -n 10 apt-get -q install -y --no-install-recommends "$@"' sh \
        "$@" >>"$root.log" 2>&1 </dev/null || { tail -n 15 "$root.log" >&2; die "$suite: apt-get failed, see $root.log"; }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    echo "$*" >"$root/$list"
}
