#!/bin/bash
# debian.sh OUT.tar [MIRROR]: a Debian image of four layers with bash, python3, redis-server and redis-tools, and
# with everything between layers that a file system has to get right: see features() and changes().
. "$(dirname "$0")/common.sh"
out=$1
mirror=${2:-http://deb.debian.org/debian}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Layer 1: a bootstrapped system without what only people read or what differs from one bootstrap to the next.
base() {
    SOURCE_DATE_EPOCH=$EPOCH debootstrap --variant=minbase \
        --include=python3-minimal,redis-server,redis-tools bookworm "$1" "$mirror" >"$work/debootstrap.log" 2>&1 ||
        { tail -n 20 "$work/debootstrap.log" >&2; return 1; }
    rm -rf "$1"/usr/share/{doc,man,info,locale,zoneinfo,lintian,bash-completion,bug,gcc,pixmaps}
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt "$1"/var/cache/debconf "$1"/var/cache/ldconfig
    rm -rf "$1"/var/log/* "$1"/var/lib/redis/* "$1"/tmp/* "$1"/run/* "$1"/dev/* "$1"/debootstrap
    rm -f "$1"/etc/{machine-id,hostname,resolv.conf} "$1"/etc/*- "$1"/var/lib/dpkg/*-old
    # The day on which the passwords (none) were last changed.
    sed -i -E 's/^([^:]*:[^:]*):[0-9]*:/\1:19675:/' "$1/etc/shadow"
}

# Layer 2: one of each kind of file, and what the next layer will hide.
features() {
    local d=$1/srv/features
    mkdir -p "$d"/{links,opaque/inner,hidden/deep,swap-dir,kinds,modes}
    echo "with attributes" >"$d/xattr"
    setfattr -n user.hull -v one "$d/xattr"
    setfattr -n user.empty "$d/xattr"
    setfattr -n user.binary -v 0x00ff0a00 "$d/xattr"
    setfattr -n trusted.hull -v two "$d/xattr"
    cp /bin/busybox "$d/capable"
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 "$d/capable" # cap_net_raw+ep
    echo "three names" >"$d/links/one"
    ln "$d/links/one" "$d/links/two"
    mkdir "$d/links/further"
    ln "$d/links/one" "$d/links/further/three"
    ln -s one "$d/links/relative"
    ln -s /srv/features/links/one "$d/links/absolute"
    ln -s nowhere "$d/links/dangling"
    mknod "$d/kinds/null" c 1 3
    mknod "$d/kinds/loop0" b 7 0
    mknod "$d/kinds/large-minor" c 240 70000
    mkfifo "$d/kinds/fifo"
    : >"$d/kinds/empty"
    truncate -s 1M "$d/kinds/sparse"
    printf 'end' | dd of="$d/kinds/sparse" bs=1 seek=900000 conv=notrunc status=none
    seq 1 200000 >"$d/kinds/big"
    echo name >"$d/kinds/$(printf 'n%.0s' $(seq 200))"
    echo name >"$d/kinds/"$'sp ace \xc3\xbc \\ "quote"'
    for mode in 0000 0400 0644 0755 2755 4755; do echo "$mode" >"$d/modes/$mode"; done
    chown 1234:70000 "$d/modes/0644"
    chmod 1777 "$d/modes"
    for mode in 0000 0400 0644 0755 2755 4755; do chmod "$mode" "$d/modes/$mode"; done
    echo hidden >"$d/hidden/file"
    echo hidden >"$d/hidden/deep/file"
    echo gone >"$d/removed"
    echo lower >"$d/opaque/lower"
    echo lower >"$d/opaque/inner/lower"
    echo file >"$d/swap-file"
    echo child >"$d/swap-dir/child"
    echo "version 1" >"$d/replaced"
}

# Layer 3: whiteouts of a file and of a tree, an opaque directory, kinds swapped, contents replaced.
changes() {
    local d=$1/srv/features
    mkdir -p "$d"/{opaque,swap-file}
    : >"$d/.wh.removed"
    : >"$d/.wh.hidden"
    : >"$d/opaque/.wh..wh..opq"
    echo upper >"$d/opaque/upper"
    echo child >"$d/swap-file/child"
    echo file >"$d/swap-dir"
    echo "version 2" >"$d/replaced"
}

# Layer 4: a name comes back after its whiteout.
return_of_names() {
    local d=$1/srv/features
    mkdir -p "$d/hidden"
    echo "back again" >"$d/removed"
    echo new >"$d/hidden/new"
}

n=0
layers=()
for layer in base features changes return_of_names; do
    n=$((n + 1))
    mkdir -p "$work/$n"
    chmod 755 "$work/$n"
    $layer "$work/$n"
    pack "$work/$n" "$work/$n.tar"
    rm -rf "${work:?}/$n"
    layers+=("$work/$n.tar")
done
archive hull.test/debian:latest bash "$out" "${layers[@]}"
