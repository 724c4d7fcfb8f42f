//! The code with which a container or a further process ends, as `ctr` gives it on.

use anyhow::{Context as _, Result};

use crate::context::{BUSYBOX, Context, Test};

pub(crate) const TESTS: &[Test] = &[
    Test::new("exit_codes::init", init),
    Test::new("exit_codes::exec", exec),
    Test::new("exit_codes::death_by_signal", death_by_signal),
];

fn init(context: &Context) -> Result<()> {
    for code in [0, 1, 42, 255] {
        let script = format!("exit {code}");
        context.run(BUSYBOX, &format!("c{code}")).sh(&script).output()?.ended(code)?;
    }
    Ok(())
}

fn exec(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    for code in [0, 1, 2, 3, 42, 99, 125, 126, 127, 128, 129, 137, 143, 200, 254, 255] {
        pod.sh(&format!("exit {code}"))?.ended(code).with_context(|| format!("exit {code}"))?;
    }
    pod.remove()
}

/// 128 + the signal's number, whoever sends it.
fn death_by_signal(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    for (signal, number) in [("HUP", 1), ("INT", 2), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
        pod.sh(&format!("kill -{signal} $$; sleep 60"))?.ended(128 + number).context(signal)?;
    }
    pod.remove()
}
