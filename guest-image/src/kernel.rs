//! The guest kernel: from the pinned source archive and the option fragment to a packed `vmlinux`.
//!
//! Everything that reaches the bytes is either an input (archive, options, compiler, linker: the cache's key) or fixed
//! here (time, user, host and number of the build; an empty environment). The cache entry holds `vmlinux`,
//! `System.map` (addresses to names, for reading a panic: the kernel carries no symbols) and `config` (what kconfig
//! made of the fragment).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cache::{Cache, CacheError, WorkDir};
use crate::command::{self, CommandError};
use crate::digest::{self, DigestError};
use crate::fragment::{Fragment, FragmentError};
use crate::inputs::{Archive, Inputs, InputsError, KernelSource};
use crate::pack::{self, PackError};
use crate::progress::say;
use crate::toolchain::Toolchain;

/// The bootable kernel's name, in the cache and where it is installed.
pub const VMLINUX: &str = "vmlinux";
/// Its symbol table's name.
pub const SYSTEM_MAP: &str = "System.map";
const CONFIG: &str = "config";

/// What would otherwise be this machine's and this moment's.
const BUILD_IDENTITY: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "2025-01-01 00:00:00 UTC"),
    ("KBUILD_BUILD_USER", "hull"),
    ("KBUILD_BUILD_HOST", "hull"),
    ("KBUILD_BUILD_VERSION", "1"),
];
/// Changes when this file builds the same inputs differently.
const RECIPE: &str = "1";
/// Steps that make announces, for the progress line; it need not be exact.
const STEPS: usize = 1650;

/// 1.6 GB of small files on a slow disk.
const UNPACK_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Builds kconfig's own programs first.
const CONFIGURE_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// Six minutes on two idle cores; a loaded machine takes several times that.
const BUILD_DEADLINE: Duration = Duration::from_secs(90 * 60);
/// Between two progress lines.
const PROGRESS: Duration = Duration::from_secs(20);

/// What a kernel is built from.
#[derive(Debug)]
pub struct Recipe {
    /// The kernel's version and the archives that hold it.
    pub source: KernelSource,
    /// The archive to build from; verified before it is unpacked.
    pub archive: Archive,
    /// Hash of the options that were asked for.
    pub options_sha256: String,
    /// Compiler and linker.
    pub toolchain: Toolchain,
    fragment: Fragment,
}

/// A built kernel in the cache.
#[derive(Debug)]
pub struct Kernel {
    /// What it was built from.
    pub recipe: Recipe,
    /// The cache entry.
    pub directory: PathBuf,
}

/// The kernel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The source archive is missing or not the pinned one.
    #[error("The kernel's source is not usable")]
    Inputs(#[from] InputsError),
    /// The option fragment is malformed, or kconfig did not keep it.
    #[error("The kernel's options are not usable")]
    Fragment(#[from] FragmentError),
    /// A tool failed.
    #[error("Building the kernel failed")]
    Command(#[from] CommandError),
    /// What was built is not bootable.
    #[error("The kernel that was built cannot be booted")]
    Pack(#[from] PackError),
    /// The cache's directories cannot be used.
    #[error("The kernel cannot be cached")]
    Cache(#[from] CacheError),
    /// A result cannot be hashed.
    #[error("The kernel cannot be hashed")]
    Digest(#[from] DigestError),
    /// A file of the build tree cannot be handled.
    #[error("Cannot handle {} in the build tree", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive holds another version than the lock file says.
    #[error("The source archive holds Linux {found}, inputs.lock says {expected}")]
    WrongVersion {
        /// What the source says.
        found: String,
        /// What the lock file says.
        expected: String,
    },
    /// Two builds of the same inputs differ.
    #[error("Two builds of the same inputs differ: {} is {cached} in the cache and {rebuilt} now", VMLINUX)]
    NotReproducible {
        /// Hash of the kernel in the cache.
        cached: String,
        /// Hash of the kernel that was just built.
        rebuilt: String,
    },
}

impl Recipe {
    /// Collects the inputs. `room` is this crate's directory; `source` overrides where the archive lies.
    ///
    /// # Errors
    /// When an input is missing or malformed, or `source` is not a pinned archive.
    pub fn collect(room: &Path, source: Option<&Path>) -> Result<Self, KernelError> {
        let inputs = Inputs::read(&room.join("inputs.lock"))?;
        let fragment = Fragment::read(&room.join("kernel/config"))?;
        let archive = inputs.kernel.candidate(source)?;
        let options_sha256 = digest::of_inputs(&[("options", &fragment.plain())]);
        let toolchain = Toolchain::installed()?;
        Ok(Recipe { source: inputs.kernel, archive, options_sha256, toolchain, fragment })
    }

    fn key(&self) -> String {
        let mut inputs = vec![
            ("recipe", RECIPE),
            ("version", &self.source.version),
            ("archive", &self.archive.sha256),
            ("options", &self.options_sha256),
            ("compiler", &self.toolchain.compiler),
            ("linker", &self.toolchain.linker),
        ];
        inputs.extend(BUILD_IDENTITY);
        digest::of_inputs(&inputs)
    }
}

/// Gives the kernel from the cache, building it first if it is not there.
///
/// # Errors
/// When an input is not usable or the build fails.
pub fn build(recipe: Recipe, cache: &Cache) -> Result<Kernel, KernelError> {
    let key = recipe.key();
    let entry = cache.entry("kernel", &key)?;
    if entry.is_present() {
        say(&format!("kernel: Linux {} from the cache ({})", recipe.source.version, entry.path.display()));
    } else {
        let result = entry.work_dir("result")?;
        compile(&recipe, entry.work_dir("build")?, result.path())?;
        entry.keep(result)?;
    }
    Ok(Kernel { recipe, directory: entry.path })
}

/// Builds the kernel again, from an empty directory, and compares it with the one in the cache.
///
/// # Errors
/// When it differs, and when the build fails.
pub fn rebuild(kernel: &Kernel, cache: &Cache) -> Result<(), KernelError> {
    // A kind of its own: nobody who wants the cached kernel waits for this, and the tree lies at another path than the
    // first build's, so that a path that leaks into the bytes shows.
    let entry = cache.entry("kernel-rebuilt", &kernel.recipe.key())?;
    let result = entry.work_dir("result")?;
    compile(&kernel.recipe, entry.work_dir("build")?, result.path())?;
    let (_, cached) = digest::of_file(&kernel.directory.join(VMLINUX))?;
    let (_, rebuilt) = digest::of_file(&result.path().join(VMLINUX))?;
    if cached != rebuilt {
        return Err(KernelError::NotReproducible { cached, rebuilt });
    }
    say(&format!("kernel: a second build gave the same bytes ({rebuilt})"));
    Ok(())
}

/// A tree that failed stays for somebody to look at: the error quotes only the end of the log in it.
fn compile(recipe: &Recipe, work: WorkDir, result: &Path) -> Result<(), KernelError> {
    let built = compile_in(recipe, &work, result);
    if built.is_err() {
        say(&format!("kernel: failed; log and tree are in {} until the next attempt", work.path().display()));
        work.leave();
    }
    built
}

fn compile_in(recipe: &Recipe, work: &WorkDir, result: &Path) -> Result<(), KernelError> {
    let source = unpack(recipe, work)?;
    configure(recipe, work, &source)?;
    make_vmlinux(work, &source)?;
    let linked = source.join("vmlinux");
    let bytes = fs::read(&linked).map_err(|source| KernelError::Tree { path: linked.clone(), source })?;
    let packed = result.join(VMLINUX);
    fs::write(&packed, pack::pack(&bytes)?).map_err(|source| KernelError::Tree { path: packed, source })?;
    for (from, to) in [("System.map", SYSTEM_MAP), (".config", CONFIG)] {
        let from = source.join(from);
        fs::copy(&from, result.join(to)).map_err(|source| KernelError::Tree { path: from, source })?;
    }
    Ok(())
}

fn unpack(recipe: &Recipe, work: &WorkDir) -> Result<PathBuf, KernelError> {
    recipe.source.verify(&recipe.archive)?;
    say(&format!("kernel: unpacking {}", recipe.archive.path.display()));
    let source = work.path().join("source");
    fs::create_dir(&source).map_err(|error| KernelError::Tree { path: source.clone(), source: error })?;
    let mut tar = tool("tar");
    tar.arg("--extract").arg("--strip-components=1").arg("--no-same-owner");
    tar.arg("--file").arg(&recipe.archive.path).arg("--directory").arg(&source);
    command::run(&mut tar, &work.path().join("log"), UNPACK_DEADLINE, PROGRESS, |_| {})?;
    let found = command::first_line(tool("make").args(["--silent", "-C"]).arg(&source).arg("kernelversion"))?;
    if found != recipe.source.version {
        return Err(KernelError::WrongVersion { found, expected: recipe.source.version.clone() });
    }
    Ok(source)
}

fn configure(recipe: &Recipe, work: &WorkDir, source: &Path) -> Result<(), KernelError> {
    let options = work.path().join("options");
    fs::write(&options, recipe.fragment.plain())
        .map_err(|source| KernelError::Tree { path: options.clone(), source })?;
    let mut make = kernel_make(source);
    make.env("KCONFIG_ALLCONFIG", &options).arg("allnoconfig");
    command::run(&mut make, &work.path().join("log"), CONFIGURE_DEADLINE, PROGRESS, |_| {})?;
    recipe.fragment.check_kept(&source.join(".config"))?;
    Ok(())
}

fn make_vmlinux(work: &WorkDir, source: &Path) -> Result<(), KernelError> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    say(&format!("kernel: compiling with {jobs} jobs (about 7 minutes on 2 idle cores)"));
    let start = Instant::now();
    let mut make = kernel_make(source);
    make.arg(format!("--jobs={jobs}")).arg("vmlinux");
    command::run(&mut make, &work.path().join("log"), BUILD_DEADLINE, PROGRESS, |log| {
        let done = fs::read_to_string(log).map_or(0, |text| text.lines().count());
        say(&format!("kernel: compiling, {}%", (done * 100 / STEPS).min(99)));
    })?;
    say(&format!("kernel: compiled in {} s", start.elapsed().as_secs()));
    Ok(())
}

fn kernel_make(source: &Path) -> Command {
    // The build yields to whatever else the machine does.
    let mut nice = tool("nice");
    nice.args(["-n", "5", "make", "ARCH=x86_64", "-C"]).arg(source);
    nice.envs(BUILD_IDENTITY);
    nice
}

/// A tool without this process's environment: KCFLAGS, LOCALVERSION, MAKEFLAGS and their like change kernels.
fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn recipe(options: &str) -> Recipe {
        let fragment = Fragment::parse(options).unwrap();
        let archive = Archive { origin: "test".to_owned(), path: "/a".into(), sha256: "00".to_owned() };
        Recipe {
            source: KernelSource::pinning("6.12.1", archive.clone()),
            archive,
            options_sha256: digest::of_inputs(&[("options", &fragment.plain())]),
            toolchain: Toolchain { compiler: "gcc 12".to_owned(), linker: "ld 2".to_owned() },
            fragment,
        }
    }

    #[test]
    fn every_input_is_part_of_the_key() {
        let first = recipe("# Why.\nCONFIG_A=y\n");
        assert_eq!(first.key(), recipe("# Because.\nCONFIG_A=y\n").key());
        assert_ne!(first.key(), recipe("# Why.\nCONFIG_B=y\n").key());
        let changes: [fn(&mut Recipe); 4] = [
            |r| r.source.version.push('1'),
            |r| r.archive.sha256.push('1'),
            |r| r.toolchain.compiler.push('1'),
            |r| r.toolchain.linker.push('1'),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = recipe("# Why.\nCONFIG_A=y\n");
            change(&mut other);
            assert_ne!(first.key(), other.key(), "input {index}");
        }
    }

    #[test]
    fn a_cached_kernel_is_not_built_again() {
        let scratch = Scratch::new("kernel");
        let cache = Cache::at(scratch.path());
        let recipe = recipe("# Why.\nCONFIG_A=y\n");
        let entry = scratch.path().join("kernel").join(recipe.key());
        fs::create_dir_all(&entry).unwrap();
        // The archive of this recipe does not exist: unpacking it would fail.
        assert_eq!(build(recipe, &cache).unwrap().directory, entry);
    }

    #[test]
    fn an_archive_of_another_version_is_refused() {
        let scratch = Scratch::new("kernel");
        let tree = scratch.path().join("linux");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("Makefile"), "kernelversion:\n\t@echo 6.12.2\n").unwrap();
        let archive = scratch.path().join("linux.tar");
        let packed = tool("tar").arg("-cf").arg(&archive).arg("-C").arg(scratch.path()).arg("linux").status();
        assert!(packed.unwrap().success());
        let mut recipe = recipe("# Why.\nCONFIG_A=y\n");
        recipe.archive.sha256 = digest::of_file(&archive).unwrap().1;
        recipe.archive.path = archive;
        let error = build(recipe, &Cache::at(&scratch.path().join("cache"))).unwrap_err();
        assert_eq!(error.to_string(), "The source archive holds Linux 6.12.2, inputs.lock says 6.12.1");
        let left = fs::read_dir(scratch.path().join("cache/kernel")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        // The lock and the tree to look at, but nothing under an entry's name.
        assert!(left.iter().all(|name| name.ends_with(".lock") || name.ends_with(".build")), "{left:?}");
    }
}
