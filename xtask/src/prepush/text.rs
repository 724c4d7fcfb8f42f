//! Checks on the text of files.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// The only places where `unsafe` may be written. CONTRIBUTING.md says why each of them.
const UNSAFE_ROOMS: [&str; 5] =
    ["vmm/src/kvm", "vmm/src/memory", "vmm/src/sys", "agent/src/sys", "shim/src/sys"];

/// How many of the longest files are shown.
const LONGEST: usize = 10;

/// Top-level directories of the running system: a path that begins with one is not in the checkout.
const SYSTEM: [&str; 8] = ["dev", "etc", "hull", "proc", "run", "sys", "usr", "var"];

/// Back-quoted paths in ARCHITECTURE.md that don't exist.
pub(super) fn architecture_paths(top: &Path) -> Result<Vec<String>> {
    let file = top.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&file).with_context(|| format!("Reading {}", file.display()))?;
    let missing = quoted_paths(&text).into_iter().filter(|path| !top.join(path).exists());
    Ok(missing.map(|path| format!("ARCHITECTURE.md names {path}, which does not exist")).collect())
}

/// What stands between back-quotes and looks like a path in the checkout: a slash, no blank, no pattern.
fn quoted_paths(text: &str) -> Vec<&str> {
    let mut paths: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|word| word.contains('/') && !word.starts_with('/'))
        .filter(|word| word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)))
        .filter(|word| !SYSTEM.contains(&word.split('/').next().unwrap_or_default()))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// Files with `unsafe` code outside the rooms that may have it.
pub(super) fn unsafe_outside_rooms(top: &Path, files: &[String]) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| !in_unsafe_room(file)) {
        let text = read(top, file)?;
        if let Some((number, _)) = text.lines().enumerate().find(|(_, line)| is_unsafe(line)) {
            complaints.push(format!("{file}:{}: unsafe code outside the rooms for it", number + 1));
        }
    }
    Ok(complaints)
}

fn in_unsafe_room(file: &str) -> bool {
    UNSAFE_ROOMS
        .iter()
        .any(|room| file.strip_prefix(room).is_some_and(|rest| rest.starts_with('/') || rest == ".rs"))
}

/// A line with the keyword in code, or that allows it. Built from parts, so that this file passes its own check.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let forms = [" {", " fn", " impl", " extern"].map(|after| format!("{}{after}", "unsafe"));
    forms.iter().any(|form| code.contains(form.as_str())) || code.contains(concat!("allow(", "unsafe_code"))
}

/// The longest files: long is allowed, unnoticed is not.
pub(super) fn longest(top: &Path, files: &[String]) -> Result<Vec<(usize, String)>> {
    let mut lengths = Vec::new();
    for file in files {
        lengths.push((read(top, file)?.lines().count(), file.clone()));
    }
    lengths.sort_by(|one, other| other.cmp(one));
    lengths.truncate(LONGEST);
    Ok(lengths)
}

fn read(top: &Path, file: &str) -> Result<String> {
    fs::read_to_string(top.join(file)).with_context(|| format!("Reading {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_quoted_words() {
        let text =
            "See `vmm/src/lib.rs` and `cargo xtask node`, `/dev/kvm`, `etc/hull/config.toml`, `a/*.rs`.\n";
        assert_eq!(quoted_paths(text), ["vmm/src/lib.rs"]);
    }

    #[test]
    fn rooms_are_directories_or_files() {
        assert!(in_unsafe_room("shim/src/sys.rs"));
        assert!(in_unsafe_room("agent/src/sys/mount.rs"));
        assert!(!in_unsafe_room("agent/src/system.rs"));
    }

    #[test]
    fn the_keyword_is_found_in_code_only() {
        assert!(is_unsafe(concat!("    let x = ", "unsafe", " { y };")));
        assert!(!is_unsafe("// an unsafe { block } in a comment"));
        assert!(!is_unsafe("deny(unsafe_code)"));
    }
}
