//! The checked-in Rust code is what the protos say. `UPDATE_GENERATED=1` writes it anew.

use std::path::{Path, PathBuf};

use prost::Message;

fn generate(into: &Path) {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut descriptors = protox::compile(["storage/ingestion.proto"], [&protos]).expect("the protos are right");
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .bytes(".storage.DataRecord.payload")
        .out_dir(into)
        .compile_fds(descriptors.clone())
        .expect("code can be made of the protos");
    // Reflection tells names and types; the comments stay in the protos.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(into.join("storage.descriptors.bin"), descriptors.encode_to_vec())
        .expect("the folder can be written");
}

#[test]
fn the_generated_code_is_what_the_protos_say() {
    let checked_in = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/grpc/generated");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        generate(&checked_in);
        return;
    }
    let fresh = tempfile::tempdir().expect("a temporary folder");
    generate(fresh.path());
    for name in ["storage.rs", "storage.descriptors.bin"] {
        let (found, right) = (std::fs::read(checked_in.join(name)), std::fs::read(fresh.path().join(name)));
        let same = found.expect("checked in") == right.expect("made");
        assert!(
            same,
            "{name} is older than the protos; run: UPDATE_GENERATED=1 cargo test -p lakegate-sources generated_code"
        );
    }
}
