//! The shim's own interface, where `ctr` doesn't reach: every exit code, updates, orders of calls.

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use ttrpc::Code;

use crate::context::{BUSYBOX, Context, Needs, Test, expect};
use crate::shim::{Bundle, Shim, accepted, address_in, refused, spec};

pub(crate) const TESTS: &[Test] = &[
    Test::new("direct::every_exit_code", every_exit_code).seconds(240).needs(Needs::Ctr2),
    Test::new("direct::update", update).needs(Needs::Ctr2),
    Test::new("direct::life_of_a_task", life_of_a_task).needs(Needs::Hull),
    Test::new("direct::start_twice", start_twice).needs(Needs::Hull),
    Test::new("direct::deleted_before_start", deleted_before_start).needs(Needs::Hull),
];

/// 0 to 255, one process each.
fn every_exit_code(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let shim = Shim::of_task(&pod.id)?;
    for code in 0..=255 {
        let got = shim.exec_code(&pod.id, &format!("code{code}"), &format!("exit {code}"))?;
        expect("exit code", &got, &code)?;
    }
    pod.remove()
}

/// A limit that is raised and lowered while the container runs.
fn update(context: &Context) -> Result<()> {
    let pod = context
        .run(BUSYBOX, "pod")
        .flags(&["--memory-limit", "33554432"])
        .words(&["sleep", "600"])
        .detach()?;
    let shim = Shim::of_task(&pod.id)?;
    let grow = "dd if=/dev/zero of=/dev/null bs=40000000 count=1";
    if shim.exec_code(&pod.id, "before", grow)? == 0 {
        bail!("40 MB fit into a limit of 32 MiB");
    }
    accepted("Update", shim.update(&pod.id, &json!({"memory": {"limit": 100_000_000}}))?)?;
    expect("under the raised limit", &shim.exec_code(&pod.id, "raised", grow)?, &0)?;
    accepted("Update", shim.update(&pod.id, &json!({"memory": {"limit": 20_000_000}}))?)?;
    if shim.exec_code(&pod.id, "lowered", grow)? == 0 {
        bail!("40 MB fit into a limit of 20 MB");
    }
    pod.remove()
}

/// The right codes in every state, without containerd in between.
fn life_of_a_task(context: &Context) -> Result<()> {
    let id = context.id("pod");
    let bundle = Bundle::new(&context.runtime, context.scratch(), &id, &spec(&["sleep", "600"])?)?;
    let shim = bundle.start_shim()?;
    refused("State of an unknown task", shim.state(&id)?, Code::NOT_FOUND, "")?;
    refused("Start of an unknown task", shim.start(&id, "")?, Code::NOT_FOUND, "")?;
    accepted("Create", shim.create(&bundle)?)?;
    refused("a second Create", shim.create(&bundle)?, Code::ALREADY_EXISTS, &id)?;
    accepted("Start", shim.start(&id, "")?)?;
    refused("a second Start", shim.start(&id, "")?, Code::FAILED_PRECONDITION, "")?;
    refused("Delete while running", shim.delete(&id, "")?, Code::FAILED_PRECONDITION, "")?;
    refused("Start of an unknown exec", shim.start(&id, "nobody")?, Code::NOT_FOUND, "nobody")?;
    accepted("Exec", shim.exec(&id, "one", "exit 3")?)?;
    refused("a second Exec of one id", shim.exec(&id, "one", "true")?, Code::ALREADY_EXISTS, "one")?;
    accepted("Start of the exec", shim.start(&id, "one")?)?;
    expect("its code", &accepted("Wait", shim.wait(&id, "one")?)?, &3)?;
    accepted("Kill", shim.kill(&id, 9)?)?;
    expect("code of the task", &accepted("Wait", shim.wait(&id, "")?)?, &137)?;
    refused("Kill after the end", shim.kill(&id, 9)?, Code::NOT_FOUND, "")?;
    refused("Exec after the end", shim.exec(&id, "two", "true")?, Code::FAILED_PRECONDITION, "")?;
    let state = accepted("State after the end", shim.state(&id)?)?;
    expect("exit status in the state", &state.exit_status, &137)?;
    let deleted = accepted("Delete", shim.delete(&id, "")?)?;
    expect("exit status in the answer to Delete", &deleted.exit_status, &137)?;
    refused("a second Delete", shim.delete(&id, "")?, Code::NOT_FOUND, "")?;
    bundle.clean_up()
}

/// The second `start` finds the first one's shim; the second container of a group would.
fn start_twice(context: &Context) -> Result<()> {
    let bundle =
        Bundle::new(&context.runtime, context.scratch(), &context.id("pod"), &spec(&["sleep", "600"])?)?;
    let first = address_in(&bundle.call("start")?.ok()?.text())?;
    let second = address_in(&bundle.call("start")?.ok()?.text())?;
    expect("the address", &second, &first)?;
    let shim = Shim::connect(&second)?;
    accepted("Create", shim.create(&bundle)?)?;
    accepted("Kill", shim.kill(&bundle.id, 9)?)?;
    accepted("Wait", shim.wait(&bundle.id, "")?)?;
    accepted("Delete", shim.delete(&bundle.id, "")?)?;
    bundle.clean_up()
}

fn deleted_before_start(context: &Context) -> Result<()> {
    let bundle =
        Bundle::new(&context.runtime, context.scratch(), &context.id("pod"), &spec(&["sleep", "600"])?)?;
    let shim = bundle.start_shim()?;
    accepted("Create", shim.create(&bundle)?).context("the first time")?;
    accepted("Delete", shim.delete(&bundle.id, "")?)?;
    accepted("Create", shim.create(&bundle)?).context("again with the same id")?;
    accepted("Delete", shim.delete(&bundle.id, "")?)?;
    bundle.clean_up()
}
