//! The wire formats around `start`: what containerd writes to stdin, and what it reads back.
//!
//! ```text
//! containerd   stdin                        reply
//! 1.6 - 2.2    nothing, or Any(options)     the plain address
//! 2.3 -        BootstrapParams              BootstrapResult{version 3}
//! ```
//! Pure functions over bytes; `start` and `-info` call them.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};

/// Largest request that is read from stdin: options carry a whole configuration file at most.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// What `start` was told.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    /// Whether the answer must be a BootstrapResult.
    pub protobuf_reply: bool,
    /// The runtime's options, if any were set.
    pub options: Option<RuntimeOptions>,
    /// Where to send events; empty: look into the environment.
    pub ttrpc_address: String,
    /// containerd's gRPC socket as the request names it; empty: `-address`.
    pub grpc_address: String,
    /// Where the socket belongs; empty: the default.
    pub socket_dir: String,
    /// containerd wants debug messages.
    pub debug: bool,
}

/// `runtimeoptions.v1.Options`: where the configuration is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// Path of a configuration file; empty: see the body.
    pub config_path: String,
    /// A configuration itself, as TOML.
    pub config_body: String,
}

/// Parses the stdin of `start`. Bytes that are neither format are taken for "no options", as
/// containerd's own shim does.
pub fn parse(stdin: &[u8], id: &str, namespace: &str) -> Request {
    // An Any parses as BootstrapParams too (type_url -> instance_id), so the ids decide.
    let params = BootstrapParams::parse_from_bytes(stdin)
        .ok()
        .filter(|params| params.instance_id == id && params.namespace == namespace);
    let Some(params) = params else {
        return Request { options: parse_options(stdin), ..Request::default() };
    };
    Request {
        protobuf_reply: true,
        options: params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref())
            .find_map(|any| options_of(&any.type_url, &any.value)),
        debug: params.log_level.value() < 0,
        ttrpc_address: params.containerd_ttrpc_address,
        grpc_address: params.containerd_grpc_address.trim_start_matches("unix://").to_owned(),
        socket_dir: params.socket_dir.unwrap_or_default(),
    }
}

/// Parses a serialised `Any` of runtime options, as `-info` and older `start`s get it.
pub fn parse_options(bytes: &[u8]) -> Option<RuntimeOptions> {
    let any = Any::parse_from_bytes(bytes).ok()?;
    options_of(&any.type_url, &any.value)
}

/// Options out of an `Any`, wherever it came from (`Create` carries one, too).
pub fn options_of(type_url: &str, value: &[u8]) -> Option<RuntimeOptions> {
    if type_url.rsplit('/').next() != Some("runtimeoptions.v1.Options") {
        return None;
    }
    read_options(value).ok()
}

/// The two fields that matter of three: 2 config_path, 3 config_body.
fn read_options(value: &[u8]) -> protobuf::Result<RuntimeOptions> {
    const CONFIG_PATH: u32 = 2 << 3 | 2;
    const CONFIG_BODY: u32 = 3 << 3 | 2;
    let mut options = RuntimeOptions::default();
    let mut input = CodedInputStream::from_bytes(value);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            CONFIG_PATH => options.config_path = input.read_string()?,
            CONFIG_BODY => {
                options.config_body = String::from_utf8_lossy(&input.read_bytes()?).into_owned();
            }
            _ => protobuf::rt::read_unknown_or_skip_group(
                tag,
                &mut input,
                &mut protobuf::UnknownFields::new(),
            )?,
        }
    }
    Ok(options)
}

/// The bytes that `start` prints: nothing else may reach stdout.
pub fn reply(request: &Request, address: &str) -> Vec<u8> {
    if !request.protobuf_reply {
        return address.as_bytes().to_vec();
    }
    let result = BootstrapResult {
        version: containerd_shim_protos::TASK_API_VERSION,
        address: address.to_owned(),
        protocol: "ttrpc".to_owned(),
        ..Default::default()
    };
    // Serialising to memory fails only for uninitialised proto2 messages; this is proto3.
    result.write_to_bytes().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::MessageField;

    use super::*;

    /// `runtimeoptions.v1.Options` by hand: field 1 is an unknown string, 2 path, 3 body.
    fn options_any() -> Any {
        let value = b"\x0a\x01t\x12\x06/c.tml\x1a\x05vcpus".to_vec();
        Any { type_url: "types.example/runtimeoptions.v1.Options".to_owned(), value, ..Any::new() }
    }

    fn expected() -> RuntimeOptions {
        RuntimeOptions { config_path: "/c.tml".to_owned(), config_body: "vcpus".to_owned() }
    }

    #[test]
    fn empty_stdin_is_no_options() {
        let request = parse(b"", "id", "ns");
        assert_eq!(request, Request::default());
        assert_eq!(reply(&request, "unix:///s"), b"unix:///s");
    }

    #[test]
    fn any_of_options() {
        let request = parse(&options_any().write_to_bytes().unwrap(), "id", "ns");
        assert_eq!(request.options, Some(expected()));
        assert!(!request.protobuf_reply);
    }

    #[test]
    fn bootstrap_params() {
        let params = BootstrapParams {
            instance_id: "id".to_owned(),
            namespace: "ns".to_owned(),
            containerd_ttrpc_address: "/t".to_owned(),
            containerd_grpc_address: "unix:///g".to_owned(),
            socket_dir: Some("/short".to_owned()),
            extensions: vec![Extension { value: MessageField::some(options_any()), ..Default::default() }],
            ..Default::default()
        };
        let request = parse(&params.write_to_bytes().unwrap(), "id", "ns");
        assert!(request.protobuf_reply);
        assert_eq!(request.options, Some(expected()));
        assert_eq!((request.grpc_address.as_str(), request.socket_dir.as_str()), ("/g", "/short"));
        let result = BootstrapResult::parse_from_bytes(&reply(&request, "unix:///s")).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, "unix:///s");
    }

    #[test]
    fn params_of_another_id_are_not_ours() {
        let params = BootstrapParams { instance_id: "other".to_owned(), ..Default::default() };
        assert!(!parse(&params.write_to_bytes().unwrap(), "id", "ns").protobuf_reply);
    }

    #[test]
    fn garbage_is_no_options() {
        assert_eq!(parse(b"\xff\xff\xff", "id", "ns"), Request::default());
    }
}
