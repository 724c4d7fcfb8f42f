//! `manifest.json`: what was built, from what, with sizes and hashes.
//!
//! A copy lies beside the artefacts (always true), another in the repository (what the last recorded build gave).
//! Comparing a new build with the recorded one is how a difference between two machines is found.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{self, DigestError};
use crate::kernel::Kernel;

/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";

/// Everything that one build gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the kernel was built from.
    pub kernel: KernelInputs,
    /// What the root image was built from; absent if only the kernel was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_image: Option<RootImageInputs>,
    /// The files, in the order of their names.
    pub artefacts: Vec<Artefact>,
}

/// What the kernel's bytes depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelInputs {
    /// Linux's version.
    pub version: String,
    /// The source archive.
    pub source_sha256: String,
    /// The options that were asked for, without their reasons.
    pub options_sha256: String,
    /// The compiler, as it names itself.
    pub compiler: String,
    /// The linker, as it names itself.
    pub linker: String,
}

/// What the root image's bytes depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootImageInputs {
    /// The agent.
    pub agent_sha256: String,
    /// `rootfs.toml`.
    pub list_sha256: String,
    /// mkfs.erofs, as it names itself.
    pub packer: String,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// Its name in the output directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash.
    pub sha256: String,
}

/// How a new build compares with the recorded one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes.
    Same,
    /// Other bytes, from other inputs: these ones.
    OtherInputs(Vec<String>),
    /// Other bytes from the same inputs: the build is not reproducible.
    NotReproduced,
    /// Nothing is recorded for this file.
    NotRecorded,
}

/// A manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read or written.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold a manifest.
    #[error("{} is not a manifest", path.display())]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An artefact cannot be hashed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl From<&Kernel> for KernelInputs {
    fn from(kernel: &Kernel) -> Self {
        let recipe = &kernel.recipe;
        KernelInputs {
            version: recipe.source.version.clone(),
            source_sha256: recipe.archive.sha256.clone(),
            options_sha256: recipe.options_sha256.clone(),
            compiler: recipe.toolchain.compiler.clone(),
            linker: recipe.toolchain.linker.clone(),
        }
    }
}

impl Manifest {
    /// Describes files of a directory.
    ///
    /// # Errors
    /// When a file cannot be hashed.
    pub fn describe(
        directory: &Path,
        names: &[&str],
        kernel: KernelInputs,
        root_image: Option<RootImageInputs>,
    ) -> Result<Self, ManifestError> {
        let mut artefacts = names
            .iter()
            .map(|name| {
                let (bytes, sha256) = digest::of_file(&directory.join(name))?;
                Ok(Artefact { name: (*name).to_owned(), bytes, sha256 })
            })
            .collect::<Result<Vec<_>, DigestError>>()?;
        artefacts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Manifest { kernel, root_image, artefacts })
    }

    /// Reads a manifest; `None` if there is none.
    ///
    /// # Errors
    /// When the file is unreadable or holds something else.
    pub fn read(path: &Path) -> Result<Option<Self>, ManifestError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(ManifestError::File { action: "read", path: path.to_path_buf(), source });
            }
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| ManifestError::Parse { path: path.to_path_buf(), source })
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let failed = |source| ManifestError::File { action: "write", path: path.to_path_buf(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        fs::write(path, text + "\n").map_err(failed)
    }

    /// Compares one file of this build with the one in a recorded manifest.
    #[must_use]
    pub fn compare(&self, recorded: &Manifest, name: &str) -> Comparison {
        let hash = |manifest: &Manifest| {
            manifest.artefacts.iter().find(|artefact| artefact.name == name).map(|a| a.sha256.clone())
        };
        let Some(before) = hash(recorded) else { return Comparison::NotRecorded };
        if hash(self).as_ref() == Some(&before) {
            return Comparison::Same;
        }
        let changed: Vec<String> = recorded
            .inputs_of(name)
            .into_iter()
            .zip(self.inputs_of(name))
            .filter(|((_, before), (_, now))| before != now)
            .map(|((what, before), (_, now))| format!("{what} was {before:?}, is {now:?}"))
            .collect();
        if changed.is_empty() { Comparison::NotReproduced } else { Comparison::OtherInputs(changed) }
    }

    fn inputs_of(&self, name: &str) -> Vec<(&'static str, String)> {
        if name == crate::rootfs::ROOTFS {
            let inputs = self.root_image.clone().unwrap_or_default();
            return vec![
                ("agent", inputs.agent_sha256),
                ("list", inputs.list_sha256),
                ("packer", inputs.packer),
            ];
        }
        let inputs = self.kernel.clone();
        vec![
            ("version", inputs.version),
            ("source", inputs.source_sha256),
            ("options", inputs.options_sha256),
            ("compiler", inputs.compiler),
            ("linker", inputs.linker),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn manifest(directory: &Path) -> Manifest {
        fs::write(directory.join("vmlinux"), b"abc").unwrap();
        fs::write(directory.join("rootfs.erofs"), b"").unwrap();
        let kernel = KernelInputs {
            version: "6.12.1".to_owned(),
            compiler: "gcc 12".to_owned(),
            ..KernelInputs::default()
        };
        let image = RootImageInputs { agent_sha256: "aa".to_owned(), ..RootImageInputs::default() };
        Manifest::describe(directory, &["vmlinux", "rootfs.erofs"], kernel, Some(image)).unwrap()
    }

    #[test]
    fn every_artefact_has_size_and_hash() {
        let scratch = Scratch::new("manifest");
        let manifest = manifest(scratch.path());
        let path = scratch.path().join(MANIFEST);
        manifest.write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["kernel"]["version"], "6.12.1");
        assert_eq!(json["artefacts"][0]["name"], "rootfs.erofs");
        assert_eq!(json["artefacts"][0]["bytes"], 0);
        assert_eq!(json["artefacts"][1]["name"], "vmlinux");
        assert_eq!(json["artefacts"][1]["bytes"], 3);
        assert_eq!(
            json["artefacts"][1]["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest));
    }

    #[test]
    fn differences_are_told_apart() {
        let scratch = Scratch::new("manifest");
        let recorded = manifest(scratch.path());
        assert_eq!(recorded.compare(&recorded, "vmlinux"), Comparison::Same);
        assert_eq!(recorded.compare(&recorded, "other"), Comparison::NotRecorded);

        let mut now = recorded.clone();
        now.artefacts[1].sha256 = "00".to_owned();
        assert_eq!(now.compare(&recorded, "vmlinux"), Comparison::NotReproduced);
        now.kernel.compiler = "gcc 13".to_owned();
        let changed = "compiler was \"gcc 12\", is \"gcc 13\"".to_owned();
        assert_eq!(now.compare(&recorded, "vmlinux"), Comparison::OtherInputs(vec![changed]));

        now.artefacts[0].sha256 = "00".to_owned();
        assert_eq!(now.compare(&recorded, "rootfs.erofs"), Comparison::NotReproduced);
        now.root_image = Some(RootImageInputs { agent_sha256: "bb".to_owned(), ..Default::default() });
        let changed = "agent was \"aa\", is \"bb\"".to_owned();
        assert_eq!(now.compare(&recorded, "rootfs.erofs"), Comparison::OtherInputs(vec![changed]));
    }

    #[test]
    fn a_missing_manifest_is_none_and_a_broken_one_an_error() {
        let scratch = Scratch::new("manifest");
        let path = scratch.path().join(MANIFEST);
        assert_eq!(Manifest::read(&path).unwrap(), None);
        fs::write(&path, "{}").unwrap();
        assert!(matches!(Manifest::read(&path).unwrap_err(), ManifestError::Parse { .. }));
    }
}
