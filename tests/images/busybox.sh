#!/bin/bash
# busybox.sh OUT.tar: an image with Debian's static busybox under all its names, users and groups to run as.
. "$(dirname "$0")/common.sh"
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

root=$work/root
mkdir -p "$root"/{bin,dev,etc,home/user,proc,root,sys,tmp,usr,var/tmp}
chmod 755 "$root"
chmod 1777 "$root"/tmp "$root"/var/tmp
cp /bin/busybox "$root/bin/busybox"
for name in $(/bin/busybox --list); do
    [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"
done
cat >"$root/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/sh
user:x:1000:1000:user:/home/user:/bin/sh
EOF
cat >"$root/etc/group" <<'EOF'
root:x:0:
daemon:x:1:
user:x:1000:
extra:x:2000:user
more:x:2001:user,root
EOF
chown 1000:1000 "$root/home/user"
pack "$root" "$work/layer.tar"
archive hull.test/busybox:latest sh "$out" "$work/layer.tar"
