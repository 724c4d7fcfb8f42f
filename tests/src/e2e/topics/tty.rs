//! Terminals: input and echo, size and its changes, signals from keys, hang-up at the end.

use std::time::Duration;

use anyhow::Result;

use crate::context::{BUSYBOX, Context, Test, expect, expect_part};
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] = &[
    Test::new("tty::size_and_resize", size_and_resize),
    Test::new("tty::keys", keys),
    Test::new("tty::exec", exec),
];

const LIMIT: Duration = Duration::from_secs(20);

/// What the shell shows when it reads the terminal. Before that, keys go to `ctr`'s side of the terminal.
const PROMPT: &str = "/ # ";

/// `ctr` tells the size after it has started the process, so it may take a moment.
fn has_size(terminal: &mut Terminal, size: &str) -> Result<()> {
    let ask =
        format!("for i in $(seq 50); do [ \"$(stty size 2>&1)\" = '{size}' ] && break; sleep 0.1; done");
    terminal.send(&format!("{ask}; echo \"size: $(stty size 2>&1).\"\n"))?;
    terminal.read_until("size: ", LIMIT)?;
    terminal.read_until(&format!("size: {size}."), LIMIT).map(drop)
}

fn size_and_resize(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "run").flags(&["--tty"]).words(&["sh"]);
    let mut terminal = Terminal::start(&run.attached(), 101, 41)?;
    terminal.read_until(PROMPT, LIMIT)?;
    terminal.send("tty; echo 'do'ne\n")?;
    expect_part("the terminal's name", &terminal.read_until("done", LIMIT)?, "/dev/")?;
    has_size(&mut terminal, "41 101")?;
    let watch =
        "sh -c 'trap \"echo got WI\"\"NCH; exit\" WINCH; echo rea\"\"dy; while :; do sleep 0.1; done'";
    terminal.send(&format!("{watch}\n"))?;
    terminal.read_until("ready", LIMIT)?;
    terminal.resize(93, 27)?;
    terminal.read_until("got WINCH", LIMIT)?;
    terminal.read_until(PROMPT, LIMIT)?;
    has_size(&mut terminal, "27 93")?;
    terminal.send("exit 7\n")?;
    let (code, _) = terminal.finish(LIMIT)?;
    expect("exit code", &code, &7)
}

fn keys(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "run").flags(&["--tty"]).words(&["sh"]);
    let mut terminal = Terminal::start(&run.attached(), 80, 24)?;
    terminal.read_until(PROMPT, LIMIT)?;
    terminal.send("sleep 500; echo code $?.\n")?;
    terminal.read_until("code $?", LIMIT)?;
    std::thread::sleep(Duration::from_secs(1));
    terminal.send("\x03")?; // control-C
    terminal.read_until(PROMPT, LIMIT)?;
    terminal.send("echo 'after'wards; cat\n")?;
    terminal.read_until("afterwards", LIMIT)?;
    terminal.send("typed\n")?;
    // echoed by the terminal, then printed by cat
    terminal.read_until("typed", LIMIT)?;
    terminal.read_until("typed", LIMIT)?;
    terminal.send("\x04")?; // end of file for cat
    terminal.send("echo 'to std'err >&2; exit\n")?;
    terminal.read_until("to stderr", LIMIT)?;
    let (code, _) = terminal.finish(LIMIT)?;
    expect("exit code", &code, &0)
}

fn exec(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let mut terminal = Terminal::start(&pod.exec_command(&["--tty"], &["sh"]), 66, 33)?;
    terminal.read_until(PROMPT, LIMIT)?;
    terminal.send("test -t 0 && test -t 1 && test -t 2 && echo 'all three'.\n")?;
    terminal.read_until("all three.", LIMIT)?;
    has_size(&mut terminal, "33 66")?;
    terminal.send("exit 9\n")?;
    let (code, _) = terminal.finish(LIMIT)?;
    expect("exit code", &code, &9)?;
    pod.remove()
}
