//! Generates the Rust types and services and the descriptor set for reflection.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("meepo.bin"))
        .bytes(".meepo.internal.v1")
        .compile_protos(&["meepo/v1/meepo.proto", "meepo/internal/v1/worker.proto"], &["."])?;
    println!("cargo:rerun-if-changed=meepo");
    Ok(())
}
