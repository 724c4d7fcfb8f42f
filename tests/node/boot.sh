#!/bin/bash
# The node's start-up after its root is mounted: kernel interfaces, KVM, containerd's state, Hull, containerd;
# then the run's command. Ends by powering off. Written for PID 1: it must not exit.
exec </dev/null >/dev/console 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 HULL_NODE=1
export HULL_SHARE=/hull/share
. $HULL_SHARE/env

step() { read -r up _ </proc/uptime; echo "[$up] $*"; }
finish() { # exit code
    echo "$1" >$HULL_SHARE/exit-code.new
    mv $HULL_SHARE/exit-code.new $HULL_SHARE/exit-code
    step "command ended with $1"
    umount /hull/state 2>/dev/null
    sync
    echo o >/proc/sysrq-trigger
    while :; do sleep 60; done
}
trouble() { # text: a node that can't start says so where the caller looks
    step "$*"
    echo "node: $*" >>$HULL_SHARE/stderr
    finish 125
}

step "root mounted"
# A second guard beside the caller's: a node whose caller died doesn't stay.
(sleep "$((HULL_DEADLINE + 30))"; echo b >/proc/sysrq-trigger) &

# A checkout below /tmp or /run stays where it was.
mkdir -p /hull/top
mount --bind "$HULL_TOP" /hull/top
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777,size=90% tmpfs /tmp
[ -d "$HULL_TOP" ] || { mkdir -p "$HULL_TOP" && mount --bind /hull/top "$HULL_TOP"; }
mkdir -p /dev/pts /dev/shm /run/lock
ln -s /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${n%:*}" "/dev/${n#*:}"; done
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
hostname hull-node
ip link set lo up

if grep -qw svm /proc/cpuinfo; then modprobe kvm-amd; elif grep -qw vmx /proc/cpuinfo; then modprobe kvm-intel; fi
[ -c /dev/kvm ] || trouble "there is no /dev/kvm in the node"
step "KVM is there"

# Processes of the node itself live in a leaf, so that controllers can be turned on for containers.
mkdir /sys/fs/cgroup/node
echo $$ >/sys/fs/cgroup/node/cgroup.procs
for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done

. "$HULL_SHARE/containerd.sh"
if [ -n "${HULL_CONTAINERD:-}" ]; then
    mount_state || trouble "containerd's state can't be mounted"
    install_hull || trouble "Hull can't be installed in the node"
    start_containerd || trouble "containerd did not start: $(tail -n 5 $HULL_SHARE/containerd.log)"
    step "containerd answers"
fi

cd "$HULL_TOP" || trouble "no $HULL_TOP in the node"
# Pipes, so that the command may open /dev/stdout again without cutting the log. What the command left running may
# keep them open: they are waited for briefly.
exec 3> >(exec cat >>$HULL_SHARE/stdout); out=$!
exec 4> >(exec cat >>$HULL_SHARE/stderr); err=$!
setsid bash $HULL_SHARE/cmd.sh </dev/null >&3 2>&4 3>&- 4>&-
code=$?
exec 3>&- 4>&-
for _ in $(seq 40); do
    kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null || break
    sleep 0.05
done
finish $code
