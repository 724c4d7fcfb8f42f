# Part of tests/node/boot.sh: containerd's state, Hull's installation, containerd itself.

mount_state() {
    mkdir -p /hull/state /var/lib/containerd
    if [ "$HULL_STATE" = disk ]; then
        modprobe virtio_blk
        modprobe ext4
        mount -t ext4 -o noatime /dev/vda /hull/state || return
        mkdir -p /hull/state/containerd
        mount --bind /hull/state/containerd /var/lib/containerd || return
        HULL_CONTAINERD_BIN=/hull/state/bin
    else
        # The root is an overlay, which can't carry another one.
        mount -t tmpfs -o mode=700 tmpfs /var/lib/containerd || return
    fi
    export PATH=$HULL_CONTAINERD_BIN:$PATH
}

# Puts what has been built where a package would: nothing is fine, a node also tests other runtimes.
install_hull() {
    shim=$HULL_TOP/target/static/x86_64-unknown-linux-gnu/release/containerd-shim-hull-v2
    guest=$HULL_TOP/target/guest
    mkdir -p /var/lib/hull /run/hull /etc/hull /usr/share/hull
    mount -t tmpfs -o mode=700 tmpfs /var/lib/hull
    [ -e "$shim" ] && [ -e "$guest/rootfs.erofs" ] || return 0
    cp "$shim" /usr/local/bin/ &&
        cp "$guest/vmlinux" "$guest/rootfs.erofs" /usr/share/hull/ &&
        cat >/etc/hull/config.toml <<EOF
machine = "kvm"
kernel = "/usr/share/hull/vmlinux"
image = "/usr/share/hull/rootfs.erofs"
${HULL_CONFIG:-}
EOF
}

start_containerd() {
    mkdir -p /etc/containerd /opt/containerd
    mount -t tmpfs tmpfs /opt/containerd
    cp "$HULL_TOP/tests/node/containerd-$HULL_CONTAINERD.toml" /etc/containerd/config.toml || return
    containerd >>$HULL_SHARE/containerd.log 2>&1 &
    echo $! >/run/containerd.pid
    for _ in $(seq 600); do
        [ -S /run/containerd/containerd.sock ] && ctr version >/dev/null 2>&1 && return 0
        kill -0 "$(cat /run/containerd.pid)" 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}
