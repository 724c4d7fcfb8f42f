//! Lines that say what is being done, with the time since the program's start. On stderr: the program's standard
//! output stays free for what a caller may want to read.

#![allow(clippy::print_stderr, reason = "a build tool talks to the person who waits for it")]

use std::sync::OnceLock;
use std::time::Instant;

/// Prints a line on stderr, with the time since the first one.
pub fn say(text: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    eprintln!("[{elapsed:7.1} s] {text}");
}
