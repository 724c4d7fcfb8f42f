//! Generates the protobuf messages and the ttrpc service from `proto/agent.proto`.
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out_dir = std::env::var("OUT_DIR")?;
    Codegen::new()
        .out_dir(&out_dir)
        .input("proto/agent.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files carry inner attributes, so they must be modules with a path of their own.
    let modules = ["agent", "agent_ttrpc"]
        .map(|name| format!("#[path = \"{out_dir}/{name}.rs\"]\npub mod {name};\n"))
        .concat();
    std::fs::write(format!("{out_dir}/hull_protocol.rs"), modules)?;
    Ok(())
}
