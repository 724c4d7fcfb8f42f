//! The operator's configuration: read and checked by `start`, handed to the daemon as a value.
//!
//! Sources, first wins: the file or the text that the runtime's options carry, then
//! `$HULL_CONFIG`, then `/etc/hull/config.toml`. A key that nobody knows is an error, not a guess.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bootstrap::RuntimeOptions;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/hull/config.toml";
/// Names another default file; containerd passes its shims whatever environment it is told to.
pub const PATH_VARIABLE: &str = "HULL_CONFIG";
/// Largest configuration: it has a dozen keys; the rest is room for comments.
pub const MAX_CONFIG_BYTES: usize = 64 << 10;
/// How much of a wrong line an error repeats.
const MAX_QUOTED_CHARS: usize = 80;
/// Most virtual CPUs that a machine can have.
pub const MAX_VCPUS: u8 = 64;
/// Least memory in which the guest's kernel and agent run and leave room for a container.
pub const MIN_MEMORY_MIB: u32 = 64;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("The configuration {path} cannot be read")]
    Unreadable {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// More text than a configuration can have.
    #[error("The configuration {path} has {length} bytes; at most {MAX_CONFIG_BYTES} are allowed")]
    TooLong {
        /// The file.
        path: String,
        /// Its size.
        length: usize,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("The configuration {path} is wrong in line {line} ({text}): {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// The line itself: it names the key.
        text: String,
        /// What the parser found.
        message: String,
    },
    /// A value that parses but makes no sense.
    #[error("The configuration {path} has {key} = {value}; allowed is {allowed}")]
    Value {
        /// The file.
        path: String,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that would be right.
        allowed: &'static str,
    },
}

/// The parsed configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Kind of machine.
    pub machine: MachineChoice,
    /// The guest's kernel, an ELF image.
    pub kernel: PathBuf,
    /// The guest's root image.
    pub image: PathBuf,
    /// Expected SHA-256 of the kernel.
    pub kernel_sha256: Option<Sha256Hex>,
    /// Expected SHA-256 of the root image.
    pub image_sha256: Option<Sha256Hex>,
    /// Virtual CPUs of a pod without CPU limits.
    pub vcpus: u8,
    /// Memory of a pod without memory limits.
    pub memory_mib: u32,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Give the guest a serial console and log what it prints.
    pub debug_console: bool,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// Kinds of machine that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineChoice {
    /// Plain KVM.
    Kvm,
}

/// Log levels by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What a developer wants.
    Debug,
    /// What an operator wants.
    Info,
    /// What went wrong and was survived.
    Warn,
    /// What failed.
    Error,
}

/// `[timeouts]`, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    boot_s: u64,
    request_s: u64,
    image_s: u64,
    drain_s: u64,
    unused_s: u64,
    idle_s: u64,
}

impl Timeouts {
    /// From machine start to the agent's first answer.
    pub fn boot(&self) -> Duration {
        Duration::from_secs(self.boot_s)
    }
    /// A request that makes or runs something in the guest.
    pub fn request(&self) -> Duration {
        Duration::from_secs(self.request_s)
    }
    /// Making an image of a container's layers.
    pub fn image(&self) -> Duration {
        Duration::from_secs(self.image_s)
    }
    /// Output that is still to be read when a task is deleted.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }
    /// A started shim in which nothing is ever created.
    pub fn unused(&self) -> Duration {
        Duration::from_secs(self.unused_s)
    }
    /// A shim whose last task is gone and that nobody shuts down.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_s)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            boot_s: hull_protocol::limits::HELLO_DEADLINE.as_secs(),
            request_s: hull_protocol::limits::HEAVY_DEADLINE.as_secs(),
            image_s: 300,
            drain_s: 10,
            unused_s: 120,
            idle_s: 10,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            machine: MachineChoice::Kvm,
            kernel: "/usr/share/hull/vmlinux".into(),
            image: "/usr/share/hull/rootfs.erofs".into(),
            kernel_sha256: None,
            image_sha256: None,
            vcpus: 1,
            memory_mib: 256,
            log_level: LogLevel::Info,
            debug_console: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// A SHA-256 written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hex(pub [u8; 32]);

impl TryFrom<String> for Sha256Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "a SHA-256 has 64 hexadecimal digits";
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(EXPECTED);
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            let pair = text.get(index * 2..index * 2 + 2).ok_or(EXPECTED)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| EXPECTED)?;
        }
        Ok(Sha256Hex(digest))
    }
}

impl From<Sha256Hex> for String {
    fn from(digest: Sha256Hex) -> Self {
        crate::address::hex(&digest.0)
    }
}

/// Text of the configuration and the name by which errors call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A path, or a description of where the text came from.
    pub name: String,
    /// TOML.
    pub text: String,
}

/// Finds the configuration's text.
///
/// # Errors
/// [`ConfigError::Unreadable`] or [`ConfigError::TooLong`].
pub fn load(options: Option<&RuntimeOptions>) -> Result<Source, ConfigError> {
    let named = options.map(|options| options.config_path.as_str()).filter(|path| !path.is_empty());
    let body = options.map(|options| options.config_body.as_str()).filter(|body| !body.is_empty());
    let source = match (named, body) {
        (Some(path), _) => read(Path::new(path))?,
        (None, Some(body)) => Source { name: "in the runtime's options".to_owned(), text: body.to_owned() },
        (None, None) => match std::env::var_os(PATH_VARIABLE) {
            Some(path) => read(Path::new(&path))?,
            None => read(Path::new(DEFAULT_PATH))?,
        },
    };
    if source.text.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLong { path: source.name, length: source.text.len() });
    }
    Ok(source)
}

fn read(path: &Path) -> Result<Source, ConfigError> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Source { name, text }),
        Err(source) => Err(ConfigError::Unreadable { path: name, source }),
    }
}

/// Parses and checks a configuration.
///
/// # Errors
/// [`ConfigError::Syntax`] or [`ConfigError::Value`].
pub fn parse(source: &Source) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(&source.text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = source.text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count();
        let text = source.text.lines().nth(line).unwrap_or_default();
        ConfigError::Syntax {
            path: source.name.clone(),
            line: line + 1,
            text: text.trim().chars().take(MAX_QUOTED_CHARS).collect(),
            message: error.message().to_owned(),
        }
    })?;
    let refuse = |key, value: String, allowed| {
        Err(ConfigError::Value { path: source.name.clone(), key, value, allowed })
    };
    if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
        return refuse("vcpus", config.vcpus.to_string(), "1 to 64");
    }
    if config.memory_mib < MIN_MEMORY_MIB {
        return refuse("memory_mib", config.memory_mib.to_string(), "64 or more");
    }
    if config.timeouts.boot_s == 0 || config.timeouts.request_s == 0 || config.timeouts.image_s == 0 {
        return refuse("timeouts", "0".to_owned(), "1 second or more");
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, String> {
        parse(&Source { name: "/c".to_owned(), text: text.to_owned() }).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_text_gives_the_defaults() {
        assert_eq!(parsed(""), Ok(Config::default()));
    }

    #[test]
    fn every_key() {
        let digest = "ab".repeat(32);
        let config = parsed(&format!(
            "machine = \"kvm\"\nkernel = \"/k\"\nimage = \"/i\"\nkernel_sha256 = \"{digest}\"\n\
             image_sha256 = \"{digest}\"\nvcpus = 2\nmemory_mib = 512\nlog_level = \"debug\"\n\
             debug_console = true\n[timeouts]\nboot_s = 1\nrequest_s = 2\nimage_s = 3\ndrain_s = 4\n\
             unused_s = 5\nidle_s = 6\n"
        ))
        .unwrap();
        assert_eq!((config.vcpus, config.memory_mib, config.debug_console), (2, 512, true));
        assert_eq!(config.kernel_sha256, Some(Sha256Hex([0xab; 32])));
        assert_eq!(config.timeouts.boot(), Duration::from_secs(1));
        assert_eq!(config.timeouts.idle(), Duration::from_secs(6));
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let error = parsed("vcpus = 1\n\nmemory = 3\n").unwrap_err();
        assert!(error.contains("line 3") && error.contains("`memory`"), "{error}");
        let error = parsed("[timeouts]\nboot = 3\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("`boot`"), "{error}");
        let error = parsed("vcpus = 1\nmemory_mib = \"many\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("memory_mib"), "{error}");
    }

    #[test]
    fn wrong_values_are_refused() {
        for text in [
            "vcpus = 0",
            "vcpus = 65",
            "vcpus = 300",
            "memory_mib = 8",
            "machine = \"snp\"",
            "kernel_sha256 = \"12\"",
            "log_level = \"loud\"",
            "[timeouts]\nboot_s = 0",
            "vcpus =",
            "vcpus = \"a\"",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_name_a_file_or_carry_the_text() {
        let missing = RuntimeOptions { config_path: "/nonexistent/x".to_owned(), ..Default::default() };
        assert!(load(Some(&missing)).unwrap_err().to_string().contains("/nonexistent/x"));
        let body = RuntimeOptions { config_body: "vcpus = 3".to_owned(), ..Default::default() };
        assert_eq!(parse(&load(Some(&body)).unwrap()).unwrap().vcpus, 3);
    }
}
