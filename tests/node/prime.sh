# Run once in a node whose state disk is kept: imports the test images into containerd's store.
set -e
for archive in $HULL_ARCHIVES; do
    ctr image import "$archive"
done
kill "$(cat /run/containerd.pid)"
while kill -0 "$(cat /run/containerd.pid)" 2>/dev/null; do sleep 0.1; done
umount /var/lib/containerd
