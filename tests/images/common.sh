# Shared by the image scripts: deterministic tars and the docker-archive form that `ctr image import` reads.
set -euo pipefail
export LC_ALL=C

# Nothing in an image is younger: packages' own times stay, ours are cut.
EPOCH=1700000000

# pack DIR TAR: a layer. Same tree, same bytes.
pack() {
    tar --create --file="$2" --directory="$1" --sort=name --format=pax --numeric-owner \
        --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' \
        --mtime="@$EPOCH" --clamp-mtime --xattrs --xattrs-include='*' .
}

# archive NAME COMMAND OUT LAYER...: an image of these layers, lowest first.
archive() {
    local name=$1 command=$2 out=$3 work layers='' diff_ids='' sum
    shift 3
    work=$(mktemp -d)
    for layer in "$@"; do
        sum=$(sha256sum "$layer" | cut -d' ' -f1)
        ln "$layer" "$work/$sum.tar" 2>/dev/null || cp "$layer" "$work/$sum.tar"
        layers+="${layers:+,}\"$sum.tar\""
        diff_ids+="${diff_ids:+,}\"sha256:$sum\""
    done
    cat >"$work/config.json" <<EOF
{"architecture":"amd64","os":"linux","created":"2023-11-14T22:13:20Z","config":{"Cmd":["$command"],"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":[$diff_ids]}}
EOF
    printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":[%s]}]\n' "$name" "$layers" >"$work/manifest.json"
    pack "$work" "$out"
    rm -rf "$work"
}
