//! What the node boots from: Debian's kernel, unpacked, and an initramfs with the modules that reach the root.
//!
//! The kernel is unpacked here because QEMU can start an ELF directly and unpacking it inside an emulated machine
//! takes seconds. Modules are loaded in the order that `modules.dep` gives. Both files are cached by what they
//! were made from.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use crate::cache::{self, Key};

/// Modules that the root file system needs; everything else is loaded from there.
const ROOT_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// The node's kernel and initramfs on this machine.
#[derive(Debug, Clone)]
pub(super) struct BootFiles {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// Finds or makes them.
pub(super) fn prepare(top: &Path) -> Result<BootFiles> {
    let version = kernel_version()?;
    let packed = PathBuf::from(format!("/boot/vmlinuz-{version}"));
    let modules = PathBuf::from(format!("/lib/modules/{version}"));
    let busybox = busybox()?;
    let init = top.join("tests/node/init.sh");
    let init = fs::read(&init).with_context(|| format!("Reading {}", init.display()))?;
    let mut key = Key::new("node boot files 1");
    key.add("init", &init).add("modules", ROOT_MODULES.join(" ").as_bytes());
    key.add_system_file(&packed)?.add_system_file(&modules.join("modules.dep"))?.add_system_file(&busybox)?;
    let entry = cache::entry("node", &key, |work| {
        write(&work.join("vmlinux"), &unpack(&packed)?)?;
        write(&work.join("initramfs.cpio"), &initramfs(&modules, &busybox, &init)?)
    })?;
    Ok(BootFiles { kernel: entry.join("vmlinux"), initramfs: entry.join("initramfs.cpio") })
}

/// The newest installed kernel that has an image and modules.
fn kernel_version() -> Result<String> {
    let mut versions: Vec<(Vec<u32>, String)> = fs::read_dir("/lib/modules")
        .context("Listing /lib/modules (is linux-image-amd64 installed?)")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Path::new(&format!("/boot/vmlinuz-{name}")).exists())
        .map(|name| (name.split(['.', '-']).map_while(|part| part.parse().ok()).collect(), name))
        .collect();
    versions.sort();
    match versions.pop() {
        Some((_, name)) => Ok(name),
        None => bail!("No kernel with modules in /boot and /lib/modules: install linux-image-amd64"),
    }
}

fn busybox() -> Result<PathBuf> {
    // busybox-static installs over /bin/busybox; the initramfs has no libraries.
    let path = PathBuf::from("/bin/busybox");
    if !path.exists() {
        bail!("/bin/busybox is missing: install busybox-static");
    }
    Ok(path)
}

/// The ELF inside a bzImage: the boot header says where the packed kernel lies, its magic how it was packed.
fn unpack(bzimage: &Path) -> Result<Vec<u8>> {
    let image = fs::read(bzimage).with_context(|| format!("Reading {}", bzimage.display()))?;
    let long = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let payload = || -> Option<&[u8]> {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        let start = (setup_sectors + 1) * 512 + long(0x248)?;
        image.get(start..start + long(0x24c)?)
    };
    let payload = payload().with_context(|| format!("{} is not a bzImage", bzimage.display()))?;
    let (tool, payload) = match payload {
        [0xfd, b'7', b'z', ..] => ("xz", payload),
        // zstd's own frame; the kernel appends the unpacked size, which zstd would take for another frame
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", payload.get(..payload.len() - 4).unwrap_or(payload)),
        _ => bail!("{} is packed in a way that is neither xz nor zstd", bzimage.display()),
    };
    let elf = pipe(tool, payload)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("{} holds no ELF kernel", bzimage.display());
    }
    Ok(elf)
}

/// `tool -dc`, fed from memory. Its complaint about what follows the stream (the kernel's size) is not an error.
fn pipe(tool: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("Starting {tool}"))?;
    let mut stdin = child.stdin.take().context("No pipe to the unpacker")?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The unpacker stops reading at the stream's end; its exit is judged by what came out.
            let _ = stdin.write_all(input);
        });
        Ok(child.wait_with_output().with_context(|| format!("Running {tool}"))?.stdout)
    })
}

fn initramfs(modules: &Path, busybox: &Path, init: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "low", "m", "proc", "root", "sys", "upper"] {
        archive.directory(name);
    }
    archive.file("init", 0o755, init);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    for (number, module) in load_order(&read_text(&modules.join("modules.dep"))?)?.iter().enumerate() {
        archive.file(&format!("m/{number:02}.ko"), 0o644, &read(&modules.join(module))?);
    }
    Ok(archive.finish())
}

/// The files to load, dependencies first. A line of modules.dep is "module: nearest-dependency … farthest".
fn load_order(modules_dep: &str) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for wanted in ROOT_MODULES {
        let line = modules_dep
            .lines()
            .find(|line| line.split(".ko").next().and_then(|path| path.rsplit('/').next()) == Some(wanted))
            .with_context(|| format!("The node's kernel has no module {wanted}"))?;
        for file in line.replace(':', " ").split_whitespace().rev() {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Reading {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("Reading {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("Writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_loaded_first() {
        let dep = "k/drivers/virtio/virtio_pci.ko: k/legacy.ko k/virtio.ko k/ring.ko\n\
                   k/net/9p/9pnet_virtio.ko: k/9pnet.ko k/virtio.ko k/ring.ko\n\
                   k/fs/9p/9p.ko: k/9pnet.ko\nk/fs/overlay.ko:\n";
        let order = load_order(dep).unwrap();
        let place = |name: &str| order.iter().position(|file| file.ends_with(name)).unwrap();
        assert!(place("ring.ko") < place("virtio.ko"));
        assert!(place("virtio.ko") < place("virtio_pci.ko"));
        assert!(place("9pnet.ko") < place("9pnet_virtio.ko"));
        assert_eq!(order.len(), 8);
        assert!(load_order("").is_err());
    }
}
