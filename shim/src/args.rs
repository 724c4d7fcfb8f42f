//! The command line, in the syntax of Go's `flag` package, because that is what containerd writes.
//!
//! Called once, by `main`. Unknown flags are kept out of the way instead of refused: a later
//! containerd may send more of them.

/// What the shim was asked to do, with the values that containerd passed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// containerd's namespace.
    pub namespace: String,
    /// Id of the container or sandbox.
    pub id: String,
    /// Path of containerd's gRPC socket.
    pub address: String,
    /// Bundle directory; only with `delete`.
    pub bundle: String,
    /// Log at level debug.
    pub debug: bool,
    /// Print the version for people.
    pub version: bool,
    /// Print the RuntimeInfo message.
    pub info: bool,
    /// `start`, `delete`, one of our own helpers, or empty: serve.
    pub verb: String,
    /// What follows the verb; only our own helpers have it.
    pub rest: Vec<String>,
}

/// Parses everything after the program's name. Never fails: what is missing stays empty, and the
/// verbs complain about what they need.
pub fn parse(words: impl IntoIterator<Item = String>) -> Args {
    let mut args = Args::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            args.verb = word;
            args.rest = words.collect();
            return args;
        };
        if flag.is_empty() {
            continue;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "debug" => args.debug = truth(value),
            "v" | "version" => args.version = truth(value),
            "info" => args.info = truth(value),
            "namespace" => args.namespace = value.or_else(|| words.next()).unwrap_or_default(),
            "id" => args.id = value.or_else(|| words.next()).unwrap_or_default(),
            "address" => args.address = value.or_else(|| words.next()).unwrap_or_default(),
            "bundle" => args.bundle = value.or_else(|| words.next()).unwrap_or_default(),
            // Known, with a value, and of no use to us.
            "publish-binary" | "socket" => drop(value.or_else(|| words.next())),
            // A flag of a later containerd: assume that it carries its value behind `=`.
            _ => {}
        }
    }
    args
}

/// A boolean flag without a value is set; Go writes `-debug=false` to clear one.
fn truth(value: Option<String>) -> bool {
    value.is_none_or(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Args {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_start_line() {
        let args = words(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
             -id abc -debug start",
        );
        assert_eq!(args.namespace, "k8s.io");
        assert_eq!(args.address, "/run/containerd/containerd.sock");
        assert_eq!((args.id.as_str(), args.verb.as_str(), args.debug), ("abc", "start", true));
    }

    #[test]
    fn every_spelling_of_a_flag() {
        for line in ["-id x delete", "--id x delete", "-id=x delete", "--id=x delete"] {
            let args = words(line);
            assert_eq!((args.id.as_str(), args.verb.as_str()), ("x", "delete"), "{line}");
        }
    }

    #[test]
    fn unknown_flags_and_false_booleans() {
        let args = words("-future=1 -also -debug=false -v -id x start tail");
        assert!(!args.debug && args.version);
        assert_eq!((args.id.as_str(), args.verb.as_str()), ("x", "start"));
        assert_eq!(args.rest, ["tail"]);
    }
}
