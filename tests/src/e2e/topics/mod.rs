//! The tests, one file a topic. The order here is the order in which they run: simple things first.

mod bad_input;
mod direct;
mod exec;
mod exit_codes;
mod faults;
mod group;
mod io;
mod lifecycle;
mod limits;
mod pause;
mod process;
mod redis;
mod rootfs;
mod signals;
mod tty;

use crate::context::Test;

/// Every test.
pub(crate) fn all() -> Vec<Test> {
    [
        lifecycle::TESTS,
        exit_codes::TESTS,
        process::TESTS,
        io::TESTS,
        tty::TESTS,
        exec::TESTS,
        signals::TESTS,
        pause::TESTS,
        limits::TESTS,
        rootfs::TESTS,
        group::TESTS,
        redis::TESTS,
        direct::TESTS,
        bad_input::TESTS,
        faults::TESTS,
    ]
    .concat()
}
