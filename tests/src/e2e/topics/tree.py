import hashlib, os, stat, sys

# What the runtime puts over the image, and the directories that serve as mount points.
COVERED = {"/proc", "/sys", "/dev", "/run", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/tmp/.hull"}
root = sys.argv[1].rstrip("/")
whole = hashlib.sha256()
links = {}


def line(path, name):
    st = os.lstat(path)
    parts = [name, stat.filemode(st.st_mode), st.st_uid, st.st_gid, int(st.st_mtime)]
    if stat.S_ISREG(st.st_mode):
        # A file with several names is read once, and each of them must lead to it.
        first = links.setdefault((st.st_dev, st.st_ino), name) if st.st_nlink > 1 else name
        parts += [st.st_size, st.st_nlink, "same as " + first if first != name else digest(path)]
    elif stat.S_ISLNK(st.st_mode):
        parts.append(os.readlink(path))
    elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        parts += [os.major(st.st_rdev), os.minor(st.st_rdev)]
    for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
        # trusted.* is for root of the machine only; overlayfs keeps its own marks there
        if not attribute.startswith("trusted."):
            parts.append(attribute + "=" + os.getxattr(path, attribute, follow_symlinks=False).hex())
    return " ".join(ascii(part) if isinstance(part, str) else str(part) for part in parts)


def digest(path):
    h = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def walk(path, name):
    text = line(path, name or "/")
    whole.update(text.encode() + b"\n")
    print(text)
    if stat.S_ISDIR(os.lstat(path).st_mode) and name not in COVERED:
        for entry in sorted(os.listdir(path or "/")):
            if name + "/" + entry not in COVERED:
                walk(path + "/" + entry, name + "/" + entry)


sys.setrecursionlimit(10000)
for entry in sorted(os.listdir(root or "/")):
    if "/" + entry not in COVERED:
        walk(root + "/" + entry, "/" + entry)
print("all", whole.hexdigest())
