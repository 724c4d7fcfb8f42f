//! `kernel/config`: the options that differ from `make allnoconfig`, each group under a comment that says why.
//!
//! A group is a run of comment lines followed by a run of options; a blank line ends it. An option outside such a
//! group is refused, so that no option enters without a reason. The options alone (not the comments) count as input
//! of the build: rewording a reason does not rebuild the kernel.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The options, in the file's order, as kconfig reads them (`CONFIG_SMP=y`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    options: Vec<(String, String)>,
}

/// The fragment is malformed, or the kernel did not take it as written.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// The file is not there or not readable.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The fragment or the resulting configuration.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is neither blank, comment nor option.
    #[error("Line {line} is neither a comment nor CONFIG_NAME=value: {text:?}")]
    NotAnOption {
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// An option stands under no comment.
    #[error("{name} in line {line} has no reason: put a comment line right above it or its group")]
    NoReason {
        /// Counted from 1.
        line: usize,
        /// The option.
        name: String,
    },
    /// An option is given twice.
    #[error("{name} in line {line} was given already")]
    Twice {
        /// Counted from 1.
        line: usize,
        /// The option.
        name: String,
    },
    /// Kconfig dropped or changed options: a misspelt name, a dependency that is off, a name of another version.
    #[error("The kernel's configuration did not keep {} as written: {}", count(.0.len()), .0.join(", "))]
    NotKept(Vec<String>),
}

impl Fragment {
    /// Reads a fragment file.
    ///
    /// # Errors
    /// When it is unreadable or malformed, or an option has no reason.
    pub fn read(path: &Path) -> Result<Self, FragmentError> {
        read(path).and_then(|text| Self::parse(&text))
    }

    /// Parses a fragment.
    ///
    /// # Errors
    /// When it is malformed, or an option has no reason.
    pub fn parse(text: &str) -> Result<Self, FragmentError> {
        let mut options: Vec<(String, String)> = Vec::new();
        let mut has_reason = false;
        for (index, text) in text.lines().enumerate() {
            let (line, text) = (index + 1, text.trim_end());
            if text.is_empty() {
                has_reason = false;
            } else if let Some(comment) = text.strip_prefix('#') {
                // A heading between groups is no reason.
                has_reason = !comment.trim().is_empty() && !comment.trim().starts_with("===");
            } else {
                let (name, value) =
                    option(text).ok_or_else(|| FragmentError::NotAnOption { line, text: text.to_owned() })?;
                if !has_reason {
                    return Err(FragmentError::NoReason { line, name });
                }
                if options.iter().any(|(earlier, _)| *earlier == name) {
                    return Err(FragmentError::Twice { line, name });
                }
                options.push((name, value));
            }
        }
        Ok(Fragment { options })
    }

    /// The options without comments, one `NAME=value` per line: what kconfig gets.
    #[must_use]
    pub fn plain(&self) -> String {
        self.options.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    /// Checks that a finished configuration holds every option as written.
    ///
    /// # Errors
    /// Names the options that it does not hold.
    pub fn check_kept(&self, config: &Path) -> Result<(), FragmentError> {
        let text = read(config)?;
        let kept: BTreeMap<String, String> = text.lines().filter_map(option).collect();
        let lost = |(name, value): &&(String, String)| kept.get(name) != Some(value);
        let lost: Vec<String> =
            self.options.iter().filter(lost).map(|(name, value)| format!("{name}={value}")).collect();
        if lost.is_empty() { Ok(()) } else { Err(FragmentError::NotKept(lost)) }
    }
}

fn read(path: &Path) -> Result<String, FragmentError> {
    std::fs::read_to_string(path).map_err(|source| FragmentError::Read { path: path.to_path_buf(), source })
}

fn option(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let symbol = name.strip_prefix("CONFIG_")?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // `n` is what an option that is not named gets; writing it would suggest a choice.
    let good = !symbol.is_empty() && symbol.chars().all(word) && !value.is_empty() && value != "n";
    good.then(|| (name.to_owned(), value.to_owned()))
}

fn count(number: usize) -> String {
    if number == 1 { "1 option".to_owned() } else { format!("{number} options") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_group_shares_its_reason() {
        let text =
            "# === Heading ===\n# Why\n# at length.\nCONFIG_A=y\nCONFIG_B=\"x=1\"\n\n# Why.\nCONFIG_C=0x1\n";
        assert_eq!(Fragment::parse(text).unwrap().plain(), "CONFIG_A=y\nCONFIG_B=\"x=1\"\nCONFIG_C=0x1\n");
    }

    #[test]
    fn rewording_a_reason_is_no_new_input() {
        let one = Fragment::parse("# Why.\nCONFIG_A=y\n").unwrap();
        assert_eq!(one, Fragment::parse("# Because.\nCONFIG_A=y\n").unwrap());
    }

    #[test]
    fn options_without_reason_are_refused() {
        for text in [
            "CONFIG_A=y\n",
            "# Why.\n\nCONFIG_A=y\n",
            "# === Heading ===\nCONFIG_A=y\n",
            "# Why.\n#\nCONFIG_A=y\n",
        ] {
            let error = Fragment::parse(text).unwrap_err();
            assert!(matches!(error, FragmentError::NoReason { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn other_lines_are_refused_with_their_number() {
        for line in ["SMP=y", "CONFIG_SMP", "CONFIG_=y", "CONFIG_SMP=", "CONFIG_SMP=n", "CONFIG_S MP=y"] {
            let error = Fragment::parse(&format!("# Why.\n{line}\n")).unwrap_err();
            assert!(matches!(error, FragmentError::NotAnOption { line: 2, .. }), "{line}: {error}");
        }
    }

    #[test]
    fn an_option_stands_only_once() {
        let error = Fragment::parse("# Why.\nCONFIG_A=y\nCONFIG_A=y\n").unwrap_err();
        assert_eq!(error.to_string(), "CONFIG_A in line 3 was given already");
    }

    #[test]
    fn lost_options_are_named() {
        let fragment = Fragment::parse("# Why.\nCONFIG_A=y\nCONFIG_B=7\nCONFIG_C=y\n").unwrap();
        let good =
            Scratch::new("config").file(".config", b"CONFIG_C=y\nCONFIG_B=7\nCONFIG_A=y\nCONFIG_D=y\n");
        fragment.check_kept(good.path()).unwrap();
        let bad = Scratch::new("config").file(".config", b"CONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n");
        let text = fragment.check_kept(bad.path()).unwrap_err().to_string();
        assert_eq!(
            text,
            "The kernel's configuration did not keep 2 options as written: CONFIG_B=7, CONFIG_C=y"
        );
    }

    #[test]
    fn the_repository_s_own_fragment_is_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel/config");
        let plain = Fragment::read(&path).unwrap().plain();
        assert!(plain.contains("CONFIG_VIRTIO_MMIO=y\n"));
    }
}
