//! `rootfs.toml`: the root image, entry by entry. Parsed into a tree that can be staged without further checks.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Set-uid, set-gid, sticky and the nine permission bits.
const MODE_BITS: u32 = 0o7777;

/// The parsed list: parents before their children, no path twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootList {
    /// The image's UUID, in the usual form.
    pub uuid: String,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the image's root; without `.` or `..`.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub content: Content,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An empty directory, or one whose entries are listed.
    Directory,
    /// A copy of a file that the builder is given under this name.
    File {
        /// `agent` for `--agent PATH`.
        input: String,
    },
}

/// The list is malformed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file is not there or not readable.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or a key that is unknown, missing or of the wrong type.
    #[error("The file list is malformed")]
    Parse(#[from] Box<toml::de::Error>),
    /// Not a UUID.
    #[error("{0:?} is not a UUID in lower-case hexadecimal digits")]
    BadUuid(String),
    /// Not a plain absolute path.
    #[error("{0:?} is not an absolute path without empty, '.' or '..' parts")]
    BadPath(String),
    /// Not octal permission bits.
    #[error("The mode {mode:?} of {path} is not four octal digits")]
    BadMode {
        /// The entry.
        path: String,
        /// What stands there.
        mode: String,
    },
    /// Somebody else than root.
    #[error("The owner {owner:?} of {path} is not \"0:0\": everything in the root image belongs to root")]
    BadOwner {
        /// The entry.
        path: String,
        /// What stands there.
        owner: String,
    },
    /// A file without `input`, a directory with one, or neither of the two.
    #[error("{path} is {kind:?} with{} input: an entry is a \"file\" with one or a \"directory\" without", if *input { "" } else { "out" })]
    BadKind {
        /// The entry.
        path: String,
        /// What stands there.
        kind: String,
        /// Whether an input is named.
        input: bool,
    },
    /// A path is listed twice.
    #[error("{0} is listed twice")]
    Twice(String),
    /// A path's directory is not listed before it.
    #[error("{0} is listed, but its directory is not listed before it")]
    NoParent(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    uuid: String,
    entry: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    path: String,
    kind: String,
    mode: String,
    owner: String,
    input: Option<String>,
}

impl RootList {
    /// Reads a list file.
    ///
    /// # Errors
    /// When it is unreadable or malformed.
    pub fn read(path: &Path) -> Result<Self, ListError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ListError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text)
    }

    /// Parses a list.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str) -> Result<Self, ListError> {
        let raw: RawList = toml::from_str(text).map_err(Box::new)?;
        if !is_uuid(&raw.uuid) {
            return Err(ListError::BadUuid(raw.uuid));
        }
        let mut directories = BTreeSet::from([PathBuf::new()]);
        let mut seen = BTreeSet::new();
        let mut entries = Vec::new();
        for raw in raw.entry {
            let name = raw.path.clone();
            let entry = Entry::parse(raw)?;
            if !seen.insert(entry.path.clone()) {
                return Err(ListError::Twice(name));
            }
            if !entry.path.parent().is_some_and(|parent| directories.contains(parent)) {
                return Err(ListError::NoParent(name));
            }
            if entry.content == Content::Directory {
                directories.insert(entry.path.clone());
            }
            entries.push(entry);
        }
        Ok(RootList { uuid: raw.uuid, entries })
    }
}

impl Entry {
    fn parse(raw: RawEntry) -> Result<Self, ListError> {
        let RawEntry { path: name, kind, mode, owner, input } = raw;
        let relative = name.strip_prefix('/').filter(|relative| relative.split('/').all(is_plain));
        let Some(path) = relative.map(PathBuf::from) else { return Err(ListError::BadPath(name)) };
        let octal = mode.len() == 4 && mode.bytes().all(|digit| digit.is_ascii_digit());
        let Some(bits) = u32::from_str_radix(&mode, 8).ok().filter(|_| octal) else {
            return Err(ListError::BadMode { path: name, mode });
        };
        if owner != "0:0" {
            return Err(ListError::BadOwner { path: name, owner });
        }
        let content = match (kind.as_str(), input) {
            ("directory", None) => Content::Directory,
            ("file", Some(input)) => Content::File { input },
            (_, input) => return Err(ListError::BadKind { path: name, kind, input: input.is_some() }),
        };
        Ok(Entry { path, mode: bits & MODE_BITS, content })
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains('\0')
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    lengths == [8, 4, 4, 4, 12] && groups.iter().all(|group| group.bytes().all(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "uuid = '00000000-0000-4000-8000-000000000001'\n";

    fn entry(path: &str, kind: &str, mode: &str, rest: &str) -> String {
        format!("[[entry]]\npath = '{path}'\nkind = '{kind}'\nmode = '{mode}'\nowner = '0:0'\n{rest}\n")
    }

    fn refused(entries: &str) -> String {
        RootList::parse(&format!("{UUID}{entries}")).unwrap_err().to_string()
    }

    #[test]
    fn a_good_list() {
        let text = [
            UUID,
            &entry("/run", "directory", "1777", ""),
            &entry("/run/agent", "file", "0755", "input = 'agent'"),
        ];
        let list = RootList::parse(&text.concat()).unwrap();
        let file = Content::File { input: "agent".to_owned() };
        assert_eq!(
            list.entries,
            [
                Entry { path: "run".into(), mode: 0o1777, content: Content::Directory },
                Entry { path: "run/agent".into(), mode: 0o755, content: file },
            ]
        );
    }

    #[test]
    fn bad_paths() {
        for path in ["", "/", "dev", "//dev", "/dev/", "/./dev", "/../dev", "/dev/../etc"] {
            let text = refused(&entry(path, "directory", "0755", ""));
            assert!(text.contains("is not an absolute path"), "{path}: {text}");
        }
    }

    #[test]
    fn bad_modes() {
        for mode in ["755", "0855", "rwxr", "+755", "07555", ""] {
            let text = refused(&entry("/dev", "directory", mode, ""));
            assert_eq!(text, format!("The mode {mode:?} of /dev is not four octal digits"));
        }
    }

    #[test]
    fn bad_kinds_owners_and_uuids() {
        let text = refused(&entry("/a", "file", "0755", ""));
        assert!(text.starts_with("/a is \"file\" without input"), "{text}");
        let text = refused(&entry("/a", "directory", "0755", "input = 'agent'"));
        assert!(text.starts_with("/a is \"directory\" with input"), "{text}");
        let text = refused(&entry("/a", "fifo", "0755", ""));
        assert!(text.starts_with("/a is \"fifo\" without input"), "{text}");
        let text = refused(&entry("/a", "directory", "0755", "").replace("0:0", "0:1"));
        assert!(text.starts_with("The owner \"0:1\" of /a"), "{text}");
        let text = RootList::parse("uuid = '1'\nentry = []\n").unwrap_err().to_string();
        assert_eq!(text, "\"1\" is not a UUID in lower-case hexadecimal digits");
    }

    #[test]
    fn order_and_repetition() {
        let directory = entry("/a", "directory", "0755", "");
        let below = entry("/a/b", "directory", "0755", "");
        assert_eq!(refused(&[directory.clone(), directory.clone()].concat()), "/a is listed twice");
        let no_parent = "/a/b is listed, but its directory is not listed before it";
        assert_eq!(refused(&[below.clone(), directory].concat()), no_parent);
        let file = entry("/a", "file", "0755", "input = 'agent'");
        assert_eq!(refused(&[file, below].concat()), no_parent);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = RootList::parse(&format!("{UUID}{}", entry("/a", "directory", "0755", "size = 1")));
        let ListError::Parse(source) = error.unwrap_err() else { panic!("not a parse error") };
        assert!(source.to_string().contains("line 7"), "{source}");
        assert!(source.to_string().contains("unknown field `size`"), "{source}");
    }

    #[test]
    fn the_repository_s_own_list_is_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs.toml");
        let list = RootList::read(&path).unwrap();
        assert!(list.entries.iter().any(|entry| entry.path == Path::new("agent")));
    }
}
