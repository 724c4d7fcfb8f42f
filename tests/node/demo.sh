# What `make demo` shows, run in a test node.
R="--runtime io.containerd.hull.v2"
title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

title "1. A container from a Debian image, in a machine of its own"
show ctr run --rm $R hull.test/debian:latest hello bash -c 'echo "Hello from $(. /etc/os-release; echo $PRETTY_NAME), process $$"' || exit

title "2. Its kernel is not the host's"
echo "host:      $(uname -r)"
echo "container: $(ctr run --rm $R hull.test/busybox:latest kernel uname -r)"

title "3. A pod stays: redis, asked from inside its machine"
show ctr run -d $R hull.test/debian:latest redis redis-server --save '' --daemonize no || exit
for _ in $(seq 40); do ctr task exec --exec-id ping redis redis-cli ping 2>/dev/null | grep -q PONG && break; sleep 0.25; done
show ctr task exec --exec-id bench redis redis-benchmark -q -n 1000 -c 5 -t set,get | tr '\r' '\n' | grep 'per second'

title "4. What the host runs for it: one shim with the machine inside, no other VMM"
ps -eo pid,rss,nlwp,args --sort=start_time | awk 'NR == 1 || $4 ~ /containerd-shim|qemu|firecracker|cloud-hyper/' | cut -c1-130
shim=$(pgrep -f containerd-shim-hull-v2 | head -n 1)
echo "its threads: $(cat /proc/"$shim"/task/*/comm | sort | uniq -c | awk '{printf "%s%s ", $2, ($1 > 1 ? " (" $1 ")" : "")}')"

title "5. How long it took to boot (in an emulated host; silicon is many times faster)"
grep -h 'msg="machine booted"' "$HULL_SHARE/containerd.log" | tr ' ' '\n' | grep '_ms=' |
    awk -F= '{ if (!($1 in all)) names[++n] = $1; all[$1] = all[$1] sprintf("%10s", $2) }
             END { for (i = 1; i <= n; i++) printf "%-26s%s\n", names[i], all[names[i]] }'

title "6. Memory of the running pod"
# The guest's RAM is the one large mapping; everything else is the shim's own.
awk '/^Size:/ { size = $2 } /^Pss:/ { if (size >= 65536) ram += $2; else own += $2 }
     END { printf "shim beyond guest RAM: %.1f MiB; guest RAM touched: %.1f MiB\n", own / 1024, ram / 1024 }' "/proc/$shim/smaps"

title "7. And gone"
ctr task delete --force redis >/dev/null 2>&1; ctr container delete redis
sleep 1
left=$(pgrep -fc '[c]ontainerd-shim-hull-v2')
echo "shims left: ${left:-0}; files in /run/hull: $(ls /run/hull 2>/dev/null | wc -l)"
