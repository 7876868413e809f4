//! Everything that was ever found by a fuzzer, once more.

use meepo_fuzzing::{TARGETS, run};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

#[test]
fn seeds_do_no_harm() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut failed = Vec::new();
    for (name, _) in TARGETS {
        let folder = std::fs::read_dir(seeds.join(name));
        let folder = folder.unwrap_or_else(|e| panic!("fuzz/seeds/{name}: {e}"));
        let files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "fuzz/seeds/{name} is empty");
        for file in files {
            let data = std::fs::read(&file).unwrap();
            if catch_unwind(AssertUnwindSafe(|| run(name, &data))).is_err() {
                failed.push(file);
            }
            // And what is near it.
            for cut in 0..data.len().min(64) {
                let mut near = data.clone();
                near.remove(cut);
                if catch_unwind(AssertUnwindSafe(|| run(name, &near))).is_err() {
                    panic!("{name}: {:?}", String::from_utf8_lossy(&near));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_has_a_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(programs.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let program = programs.join(format!("fuzz_targets/{name}.rs"));
        let text = std::fs::read_to_string(&program).unwrap();
        assert!(text.contains(&format!("run(\"{name}\", data)")), "{}", program.display());
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} in fuzz/Cargo.toml");
    }
}
