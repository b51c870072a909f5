//! The checked-in stubs are what proto/ generates. `MEDKG_PROTO_WRITE=1 cargo test -p medkg-proto` (or `make proto`)
//! rewrites them; without it the test compares. protox compiles the files, so no protoc has to be installed.

// A test may fail loudly; clippy knows that of #[test] functions only.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = ["types", "gpu", "embedding", "reranking", "model", "vector", "backup"];
const STUBS: &str = "medkg.v1.rs";
const DESCRIPTOR: &str = "medkg.v1.descriptor.bin";

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let files: Vec<PathBuf> = FILES
        .iter()
        .map(|name| root.join(format!("medkg/v1/{name}.proto")))
        .collect();
    let descriptors = protox::compile(files, [root]).expect("proto/ compiles");
    tonic_prost_build::configure()
        .out_dir(out)
        .codec_path("crate::codec::NamingCodec")
        .bytes(".medkg.v1")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors.clone())
        .expect("stubs are generated");
    // Without comments: the set is embedded to find field numbers by name, and compared byte by byte.
    let mut bare = descriptors;
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join(DESCRIPTOR), bare.encode_to_vec()).expect("descriptor is written");
}

#[test]
fn stubs_match_the_proto_files() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    if std::env::var_os("MEDKG_PROTO_WRITE").is_some() {
        generate(&checked_in);
        return;
    }
    let fresh = tempfile::tempdir().expect("a temporary directory");
    generate(fresh.path());
    for name in [STUBS, DESCRIPTOR] {
        let want = std::fs::read(fresh.path().join(name)).expect("generated file");
        let have = std::fs::read(checked_in.join(name)).expect("checked-in file");
        assert!(
            want == have,
            "src/gen/{name} is not what proto/ generates: run `make proto` and commit the result"
        );
    }
}
