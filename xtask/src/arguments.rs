//! The command line of a verb: `--name value` pairs, switches and plain words, each taken once by who knows it.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

/// What is left of the command line.
#[derive(Debug)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn new(words: impl Iterator<Item = String>) -> Self {
        Self(words.collect())
    }

    /// Takes the verb.
    pub(crate) fn verb(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Takes `--name`, if it is there.
    pub(crate) fn switch(&mut self, name: &str) -> bool {
        let place = self.0.iter().position(|word| word == name);
        place.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes `--name VALUE`, if it is there.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        self.0.remove(at);
        if at == self.0.len() {
            bail!("{name} needs a value");
        }
        let value = self.0.remove(at);
        value.parse().map(Some).with_context(|| format!("{name} can't be {value:?}"))
    }

    /// The remaining plain words; an option among them is one that nobody knows.
    pub(crate) fn words(self) -> Result<Vec<String>> {
        match self.0.iter().find(|word| word.starts_with("--")) {
            Some(option) => bail!("Unknown option {option}"),
            None => Ok(self.0),
        }
    }

    /// Ends the parsing where no plain words are expected.
    pub(crate) fn none_left(self) -> Result<()> {
        match self.words()?.first() {
            Some(word) => bail!("Unexpected argument {word:?}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Arguments {
        Arguments::new(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn options_and_words_mix() {
        let mut arguments = words("e2e --memory 512 io --icount tty");
        assert_eq!(arguments.verb().as_deref(), Some("e2e"));
        assert_eq!(arguments.value::<u32>("--memory").unwrap(), Some(512));
        assert!(arguments.switch("--icount"));
        assert_eq!(arguments.words().unwrap(), ["io", "tty"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(words("--memory").value::<u32>("--memory").is_err());
        assert!(words("--memory much").value::<u32>("--memory").is_err());
        assert!(words("--wat").words().is_err());
        assert!(words("word").none_left().is_err());
    }
}
