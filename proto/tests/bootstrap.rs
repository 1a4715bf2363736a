//! Regenerates `src/gen/*.rs` from `api.proto` and `node.proto` and fails when a checked-in file differs.
//!
//! `UPDATE_PROTO=1 cargo test -p cri-proto` writes the new file instead of comparing it. Generated code is checked in so
//! that nobody needs a protobuf compiler to build cricket, and so that a change of the contract shows in a review.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Messages that are stored in records or shown in verbose answers; all that they contain gets serde as well.
const STORED: [&str; 6] =
    ["PodSandboxConfig", "ContainerConfig", "ContainerStatus", "PodSandboxStatus", "RuntimeHandler", "RuntimeFeatures"];

/// The type names of every message reachable from [`STORED`], enums included.
fn reachable(file: &protox::prost_reflect::DescriptorPool) -> BTreeSet<String> {
    let mut todo: Vec<_> = STORED
        .iter()
        .map(|name| file.get_message_by_name(&format!("runtime.v1.{name}")).expect("a stored message is in api.proto"))
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(message) = todo.pop() {
        if message.is_map_entry() || !seen.insert(message.full_name().to_owned()) {
            if message.is_map_entry() {
                todo.extend(message.fields().filter_map(|f| f.kind().as_message().cloned()));
            }
            continue;
        }
        todo.extend(message.fields().filter_map(|f| f.kind().as_message().cloned()));
    }
    assert!(!seen.contains("runtime.v1.AuthConfig"), "credentials must never be serialised");
    seen
}

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root]).expect("the include path is readable");
    compiler.include_source_info(true).open_files(["api.proto", "node.proto"]).expect("the protos compile");
    let pool = compiler.descriptor_pool();
    let mut config = tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .skip_debug(["runtime.v1.AuthConfig"])
        .out_dir(out);
    for name in reachable(&pool) {
        config = config
            .type_attribute(&name, "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(&name, "#[serde(default)]");
    }
    config.compile_fds(compiler.file_descriptor_set()).expect("code generation succeeds");
}

#[test]
fn generated_code_is_what_api_proto_says() {
    let out = std::env::temp_dir().join(format!("cri-proto-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("the temporary folder can be made");
    generate(&out);
    for name in ["runtime.v1.rs", "cricket.v1.rs"] {
        let checked_in: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen").join(name);
        let fresh = std::fs::read_to_string(out.join(name)).expect("the generator wrote its file");
        if std::env::var_os("UPDATE_PROTO").is_some() {
            std::fs::write(&checked_in, &fresh).expect("the generated file is writable");
        }
        let stored = std::fs::read_to_string(&checked_in).unwrap_or_default();
        assert!(stored == fresh, "{name}: run UPDATE_PROTO=1 cargo test -p cri-proto and commit the result");
    }
    std::fs::remove_dir_all(&out).expect("the temporary folder is ours");
}
