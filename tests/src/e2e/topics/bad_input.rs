//! Input that is wrong: the error names what is wrong, and nothing is left of it (which the runner checks).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::context::{BUSYBOX, Context, Needs, Test, expect, expect_part};
use crate::ctr::ctr;
use crate::shim::{Bundle, spec};

pub(crate) const TESTS: &[Test] = &[
    Test::new("bad_input::no_kvm", no_kvm).needs(Needs::Hull),
    Test::new("bad_input::config", config).needs(Needs::Hull),
    Test::new("bad_input::missing_binary", missing_binary),
    Test::new("bad_input::missing_directory", missing_directory).needs(Needs::Hull),
    Test::new("bad_input::missing_user", missing_user).needs(Needs::Ctr2),
    Test::new("bad_input::unknown_mount", unknown_mount),
    Test::new("bad_input::specification", specification).needs(Needs::Hull).seconds(150),
    Test::new("bad_input::bundle", bundle).needs(Needs::Hull),
    Test::new("bad_input::image_that_is_none", image_that_is_none).needs(Needs::Hull),
    Test::new("bad_input::full_disk", full_disk).needs(Needs::Hull),
];

/// Something moved away for as long as this value lives.
struct Away<'a>(&'a str, String);

impl<'a> Away<'a> {
    fn new(path: &'a str) -> Result<Self> {
        let aside = format!("{path}.away");
        fs::rename(path, &aside).with_context(|| format!("Moving {path} away"))?;
        Ok(Self(path, aside))
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        // The other tests of this node would fail loudly without it.
        let _ = fs::rename(&self.1, self.0);
    }
}

/// A container that can't be had: `ctr run` fails, names `part`, and the container object goes.
fn run_is_refused(context: &Context, flags: &[&str], words: &[&str], part: &str) -> Result<()> {
    let result = context.run(BUSYBOX, "bad").flags(flags).words(words).output();
    // `ctr run --rm` leaves the container object when the task could not be made.
    ctr(&["container", "delete", &context.id("bad")])?;
    result?.refused(part).map(drop)
}

fn works_again(context: &Context) -> Result<()> {
    let output = context.run(BUSYBOX, "good").words(&["echo", "works"]).output()?.ok()?;
    expect("afterwards", output.text().as_str(), "works")
}

fn no_kvm(context: &Context) -> Result<()> {
    let away = Away::new("/dev/kvm")?;
    run_is_refused(context, &[], &["true"], "/dev/kvm")?;
    drop(away);
    works_again(context)
}

fn config(context: &Context) -> Result<()> {
    let file = context.scratch().join("config.toml");
    let path = file.to_string_lossy().into_owned();
    let flags = ["--runtime-config-path", path.as_str()];
    run_is_refused(context, &flags, &["true"], &path).context("a file that does not exist")?;
    let good = fs::read_to_string("/etc/hull/config.toml").context("Reading the node's configuration")?;
    let cases = [
        (format!("{good}\nsurprise = 1\n"), "surprise"),
        (format!("{good}\nvcpus = \"many\"\n"), "many"),
        (good.replace("\"kvm\"", "\"abacus\""), "abacus"),
        (good.replace("vmlinux", "no-such-kernel"), "no-such-kernel"),
        (format!("{good}\nkernel_sha256 = \"{}\"\n", "0".repeat(64)), "sha"),
        ("[not toml".to_owned(), &path),
    ];
    for (text, part) in &cases {
        fs::write(&file, text).context("Writing a configuration")?;
        run_is_refused(context, &flags, &["true"], part)
            .with_context(|| format!("configuration {text:?}"))?;
    }
    let away = Away::new("/etc/hull/config.toml")?;
    run_is_refused(context, &[], &["true"], "/etc/hull/config.toml").context("no configuration")?;
    drop(away);
    works_again(context)
}

fn missing_binary(context: &Context) -> Result<()> {
    run_is_refused(context, &[], &["no-such-program"], "no-such-program")?;
    run_is_refused(context, &[], &["/etc/passwd"], "/etc/passwd")
}

fn missing_directory(context: &Context) -> Result<()> {
    run_is_refused(context, &["--cwd", "/no/such/directory"], &["true"], "/no/such/directory")
}

fn missing_user(context: &Context) -> Result<()> {
    run_is_refused(context, &["--user", "nobody-knows"], &["true"], "user")
}

fn unknown_mount(context: &Context) -> Result<()> {
    run_is_refused(context, &["--mount", "type=nosuchfs,src=none,dst=/mnt"], &["true"], "nosuchfs").or_else(
        |_| {
            run_is_refused(
                context,
                &["--mount", "type=nosuchfs,src=none,dst=/mnt"],
                &["true"],
                "no such device",
            )
        },
    )
}

/// Specifications that `ctr` would not write.
fn specification(context: &Context) -> Result<()> {
    let without = |kind: &str| -> Result<Value> {
        let mut spec = spec(&["true"])?;
        let namespaces = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
        namespaces.context("The spec has no namespaces")?.retain(|namespace| namespace["type"] != kind);
        Ok(spec)
    };
    let changed = |pointer: &str, value: Value| -> Result<Value> {
        let mut spec = spec(&["true"])?;
        *spec.pointer_mut(pointer).with_context(|| format!("The spec has no {pointer}"))? = value;
        Ok(spec)
    };
    let cases = [
        ("no-process", changed("/process", Value::Null)?, "process"),
        ("no-words", changed("/process/args", json!([]))?, "args"),
        ("host-network", without("network")?, "network"),
        ("host-pid", without("pid")?, "pid"),
        ("mount", changed("/mounts/0/type", json!("nosuchfs"))?, "nosuchfs"),
        ("directory", changed("/process/cwd", json!("relative"))?, "cwd"),
    ];
    for (name, spec, part) in cases {
        let bundle = Bundle::new(&context.runtime, context.scratch(), &context.id(name), &spec)?;
        let refusal = refusal(&bundle)?;
        bundle.clean_up()?;
        expect_part(name, &refusal.to_lowercase(), part)?;
    }
    Ok(())
}

/// What the shim says against a bundle: when it is started, or to Create.
fn refusal(bundle: &Bundle) -> Result<String> {
    let started = bundle.call("start")?;
    if started.code != 0 {
        return Ok(started.stderr);
    }
    let shim = crate::shim::Shim::connect(&crate::shim::address_in(&started.text())?)?;
    match shim.create(bundle)? {
        Ok(_) => bail!("{} was created although it is wrong", bundle.id),
        Err(status) => Ok(status.message),
    }
}

fn bundle(context: &Context) -> Result<()> {
    let bundle = Bundle::new(&context.runtime, context.scratch(), &context.id("none"), &spec(&["true"])?)?;
    fs::remove_file(bundle.path.join("config.json")).context("Removing config.json")?;
    expect_part("without config.json", &refusal(&bundle)?, "config.json")?;
    bundle.clean_up()?;

    let bundle = Bundle::new(&context.runtime, context.scratch(), &context.id("torn"), &spec(&["true"])?)?;
    fs::write(bundle.path.join("config.json"), "{\"ociVersion\":").context("Writing config.json")?;
    expect_part("with a torn config.json", &refusal(&bundle)?, "config.json")?;
    bundle.clean_up()?;

    let mut bundle =
        Bundle::new(&context.runtime, context.scratch(), &context.id("fifo"), &spec(&["true"])?)?;
    bundle.stdout = "/no/such/fifo".to_owned();
    expect_part("with a fifo that does not exist", &refusal(&bundle)?, "/no/such/fifo")?;
    bundle.clean_up()?;

    let mut bundle =
        Bundle::new(&context.runtime, context.scratch(), &context.id("root"), &spec(&["true"])?)?;
    for mount in &mut bundle.rootfs {
        mount.source = "/no/such/layer".to_owned();
    }
    expect_part("with a layer that does not exist", &refusal(&bundle)?, "/no/such/layer")?;
    bundle.clean_up()
}

/// The guest's root image, and a container's: neither is a file system.
fn image_that_is_none(context: &Context) -> Result<()> {
    let image = context.scratch().join("noise.erofs");
    fs::write(&image, crate::bytes::noise(3, 1 << 20)).context("Writing noise")?;
    let path = image.to_string_lossy().into_owned();
    let good = fs::read_to_string("/etc/hull/config.toml").context("Reading the node's configuration")?;
    let file = context.scratch().join("config.toml");
    fs::write(&file, good.replace("/usr/share/hull/rootfs.erofs", &path))
        .context("Writing a configuration")?;
    let flags = ["--runtime-config-path", &file.to_string_lossy()];
    run_is_refused(context, &flags, &["true"], "guest")?;
    fs::write(&file, good.replace("/usr/share/hull/vmlinux", &path)).context("Writing a configuration")?;
    run_is_refused(context, &flags, &["true"], "kernel")?;
    works_again(context)
}

/// No room for the image of the container's layers.
fn full_disk(context: &Context) -> Result<()> {
    let store = Path::new("/var/lib/hull");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"])
        .arg(store)
        .status()
        .context("Mounting a small disk")?;
    expect("a small disk over /var/lib/hull", &mounted.success(), &true)?;
    let result = run_is_refused(context, &[], &["true"], "space");
    let unmounted = Command::new("umount").arg("-l").arg(store).status().context("Unmounting it")?;
    expect("unmounting", &unmounted.success(), &true)?;
    result?;
    works_again(context)
}
