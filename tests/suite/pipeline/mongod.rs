//! A MongoDB whose data is on a small disk of its own.

use crate::fleet::SOON;
use meepo_tests::{Process, Spec, TestDir, eventually, free_port, workspace_root};
use mongodb::bson::doc;
use std::{io::Write, path::PathBuf, time::Duration};

/// The server, in a mount namespace that goes with it: nothing has to be unmounted. The shell
/// that mounted the disk keeps it when the server dies of it, and starts another on demand.
pub(super) struct SmallDisk {
    process: Process,
    disk: PathBuf,
    again: PathBuf,
    port: u16,
    // Goes last.
    _dir: TestDir,
}

/// `$0` is the disk, `$1` the file that asks for another server.
const KEEPER: &str = r#"
mount -t tmpfs -o size=360m meepo-test "$0" || exit 1
again=$1; shift
while :; do
    "$@"
    until [ -e "$again" ]; do sleep 0.05; done
    rm "$again"
done
"#;

impl SmallDisk {
    pub(super) async fn start() -> Self {
        let script = workspace_root().join("scripts/fetch-mongod.sh");
        let out = std::process::Command::new(script).output().unwrap();
        let binary = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        let dir = TestDir::new();
        let (disk, again) = (dir.path().join("disk"), dir.path().join("again"));
        std::fs::create_dir_all(&disk).unwrap();
        let port = free_port();
        let user: &[&str] = match nix::unistd::geteuid().is_root() {
            true => &[],
            // Without root a user namespace gives the right to mount.
            false => &["--user", "--map-root-user"],
        };
        let (at, file, number) =
            (disk.display().to_string(), again.display().to_string(), port.to_string());
        let shell = ["--mount", "--propagation", "private", "sh", "-c", KEEPER, &at, &file];
        let server = [&binary, "--dbpath", &at, "--port", &number, "--bind_ip", "127.0.0.1"];
        let server = [
            server.as_slice(),
            &["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--setParameter"],
            // Without this it could write to its journal for a minute.
            &["diagnosticDataCollectionEnabled=false", "--syncdelay", "2"],
        ];
        let args = [user, &shell, &server.concat()].concat();
        let process = Process::start(Spec::new("mongod-on-disk", "unshare", &args, dir.path()));
        let server = Self { process, disk, again, port, _dir: dir };
        server.answers().await;
        server
    }

    pub(super) fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/meepo", self.port)
    }

    /// Writes until nothing goes in any more.
    pub(super) fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let block = vec![1; 1 << 20];
        for size in [block.len(), 4096] {
            let full =
                std::iter::repeat_with(|| file.write_all(&block[..size])).find_map(Result::err);
            assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
        }
    }

    /// Makes room, and starts the server again if it has died of it.
    pub(super) async fn free(&mut self) {
        std::fs::remove_file(self.filler()).unwrap();
        if !self.alive().await {
            std::fs::write(&self.again, "").unwrap();
        }
        self.answers().await;
    }

    /// The file that takes the room, as seen from here.
    fn filler(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.pid()));
        root.join(self.disk.strip_prefix("/").unwrap()).join("filler")
    }

    async fn alive(&self) -> bool {
        let uri = format!("{}?serverSelectionTimeoutMS=2000", self.uri());
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        client.database("admin").run_command(doc! { "ping": 1 }).await.is_ok()
    }

    async fn answers(&self) {
        eventually(SOON + Duration::from_secs(30), "MongoDB answers", async || {
            assert!(self.process.is_running(), "{}", self.process.log_tail());
            if self.alive().await { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
}
