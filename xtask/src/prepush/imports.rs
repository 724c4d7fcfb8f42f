//! Imports point down: which of our crates may use which.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::progress::output;

/// Every crate of the workspace and the ones of ours that it may use. A new crate needs a line here.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("containerd-shim-hull-v2", &["hull-vmm", "hull-protocol"]),
    ("hull-agent", &["hull-protocol"]),
    ("hull-guest-image", &[]),
    ("hull-protocol", &[]),
    ("hull-tests", &["hull-vmm", "hull-protocol"]),
    ("hull-vmm", &[]),
    ("xtask", &["hull-tests"]),
];

/// Gives a line for each import that the table doesn't allow.
pub(super) fn check(top: &Path) -> Result<Vec<String>> {
    let json = output(Command::new("cargo").current_dir(top).args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))?;
    let metadata: Value = serde_json::from_str(&json).context("cargo metadata is not JSON")?;
    let packages =
        metadata.get("packages").and_then(Value::as_array).context("cargo metadata has no packages")?;
    Ok(complaints(packages))
}

fn complaints(packages: &[Value]) -> Vec<String> {
    let name_of = |value: &Value| value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ours: Vec<String> = packages.iter().map(name_of).collect();
    let mut complaints = Vec::new();
    for package in packages {
        let name = name_of(package);
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            complaints.push(format!("Crate {name} has no line in xtask/src/prepush/imports.rs"));
            continue;
        };
        let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        for dependency in dependencies.map(name_of) {
            if ours.contains(&dependency) && !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("Crate {name} imports {dependency}, which does not lie below it"));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_that_points_up_is_found() {
        let packages = serde_json::json!([
            {"name": "hull-vmm", "dependencies": [{"name": "hull-agent"}, {"name": "libc"}]},
            {"name": "hull-agent", "dependencies": [{"name": "hull-protocol"}]},
            {"name": "hull-protocol", "dependencies": []},
            {"name": "hull-new", "dependencies": []},
        ]);
        let found = complaints(packages.as_array().unwrap());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("hull-vmm imports hull-agent"));
        assert!(found[1].contains("hull-new has no line"));
    }
}
