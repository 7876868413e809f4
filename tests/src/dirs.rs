//! Where things are: the workspace, the binaries under test, the files of a test.

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn workspace_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate lies in the workspace").to_path_buf()
}

/// The path of one of the workspace's binaries, built in the same profile as the
/// running test.
pub fn binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the test binary");
    let mut dir = exe.parent().expect("a file lies in a folder");
    if dir.ends_with("deps") {
        dir = dir.parent().expect("deps lies in the profile's folder");
    }
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make test` or `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

/// A temporary folder: removed at the end of a test that passes, kept for reading
/// when it fails or `MEEPO_TEST_KEEP` is set.
#[derive(Debug)]
pub struct TestDir(Option<tempfile::TempDir>);

impl TestDir {
    /// Creates it.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("meepo-test-").tempdir();
        Self(Some(dir.expect("a temporary folder")))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("taken by drop only").path()
    }

    /// Keeps it beyond its end, for reading.
    pub fn keep(&mut self) {
        if let Some(dir) = &mut self.0 {
            dir.disable_cleanup(true);
        }
    }
}

impl Default for TestDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let keep = std::thread::panicking() || std::env::var_os("MEEPO_TEST_KEEP").is_some();
        if let Some(dir) = self.0.take().filter(|_| keep) {
            eprintln!("kept for reading: {}", dir.keep().display());
        }
    }
}
