#!/bin/busybox sh
# First program of a test node: loads the modules that reach the root, puts a writable layer in RAM over it, and
# hands over to tests/node/boot.sh. See tests/src/node/mod.rs for the picture.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /m/*.ko; do $b insmod "$module"; done

# Loose caching: nothing that a node reads changes while it runs.
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 root /low
$b mount -t tmpfs -o mode=755,size=90% tmpfs /upper
$b mkdir /upper/u /upper/w
$b mount -t overlay -o lowerdir=/low,upperdir=/upper/u,workdir=/upper/w root /root
$b mkdir -p /root/hull/share
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /root/hull/share
for d in proc sys dev; do $b mount --move /$d /root/$d; done
exec $b switch_root /root /bin/bash /hull/share/boot.sh
