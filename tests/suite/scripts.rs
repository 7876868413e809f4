//! The installer of what a build needs, on a machine made of stubs: a folder of fake
//! programs is the whole `PATH`, and every call that would change the machine is only
//! written down.

use meepo_tests::{TestDir, workspace_root};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

/// What the scripts use of any Linux.
const TOOLS: &[&str] = &[
    "bash", "cat", "chmod", "dirname", "env", "grep", "install", "mktemp", "rm", "sed", "sh",
    "sort",
];

/// What they look for, as it is on a machine where nothing is missing.
const COMPLETE: &[&str] =
    &["etcd", "etcdctl", "cc", "protoc", "setpriv", "nginx", "mongod", "cargo", "rustc"];

/// Installs by making stubs, as far as the test needs it.
const APT_GET: &str = r#"
echo "apt-get $*" >>"$CALLS"
case " $* " in *" -s "*) exit 0 ;; esac
for package in "$@"; do
    case $package in
    etcd-server) programs=etcd ;;
    etcd-client) programs=etcdctl ;;
    gcc) programs=cc ;;
    protobuf-compiler) programs=protoc ;;
    nginx) programs=nginx ;;
    *) programs= ;;
    esac
    for program in $programs; do
        printf '#!/bin/sh\nexit 0\n' >"$BIN/$program"
        chmod 755 "$BIN/$program"
    done
done"#;

/// Runs what reads or installs, writes down what would change the machine.
const SUDO: &str = r#"
echo "sudo $*" >>"$CALLS"
case "$*" in *apt-get*) exec "$@" ;; esac"#;

const RUSTUP: &str = r#"
echo "rustup $*" >>"$CALLS"
case $1 in
toolchain) : >"$BIN/../installed" ;;
run) [ -e "$BIN/../installed" ] || exit 1
    case $3 in
    rustc) echo "rustc $2.0 (stub)" ;;
    cargo) echo "the cargo of $2: $4" ;;
    esac ;;
esac"#;

struct Machine {
    dir: TestDir,
}

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
    /// Calls of apt-get, sudo and rustup, one a line.
    calls: String,
}

impl Machine {
    /// A machine on which nothing is missing, used by somebody who is not root.
    fn complete() -> Self {
        let machine = Self { dir: TestDir::new() };
        fs::create_dir(machine.path("bin")).unwrap();
        fs::create_dir(machine.path("scripts")).unwrap();
        fs::copy(workspace_root().join("Cargo.toml"), machine.path("Cargo.toml")).unwrap();
        for script in ["lib.sh", "cargo.sh", "install-deps.sh"] {
            let from = workspace_root().join("scripts").join(script);
            fs::copy(from, machine.path(&format!("scripts/{script}"))).unwrap();
        }
        for tool in TOOLS {
            let real = ["/usr/bin", "/bin"].map(|dir| PathBuf::from(dir).join(tool));
            let real = real.iter().find(|p| p.exists()).unwrap_or_else(|| panic!("no {tool}"));
            symlink(real, machine.path(&format!("bin/{tool}"))).unwrap();
        }
        for program in COMPLETE {
            machine.stub(program, "");
        }
        machine.stub("id", "echo 1000");
        machine.stub("rustc", "echo 'rustc 9.9.9 (stub)'");
        machine.stub("cargo", r#"echo "plain cargo: $*""#);
        machine.stub("apt-get", APT_GET);
        machine.stub("sudo", SUDO);
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn stub(&self, name: &str, script: &str) {
        let path = self.path(&format!("bin/{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn without(self, programs: &[&str]) -> Self {
        for program in programs {
            fs::remove_file(self.path(&format!("bin/{program}"))).unwrap();
        }
        self
    }

    fn run(&self, script: &str, arg: &str) -> Outcome {
        let calls = self.path("calls");
        let output = Command::new(self.path(&format!("scripts/{script}")))
            .arg(arg)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("BIN", self.path("bin"))
            .env("CALLS", &calls)
            // Not that of this machine, which the scripts would find in /usr/sbin.
            .env("MEEPO_TEST_NGINX", self.path("bin/nginx"))
            .env("CARGO_HOME", self.path("no-cargo-home"))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            calls: fs::read_to_string(calls).unwrap_or_default(),
        }
    }
}

#[test]
fn nothing_missing_needs_no_apt_no_root_and_no_words() {
    for mode in ["run", "test"] {
        let outcome = Machine::complete().run("install-deps.sh", mode);
        assert_eq!((outcome.code, &*outcome.stderr, &*outcome.calls), (0, "", ""), "{mode}");
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn a_run_needs_less_than_the_tests() {
    let machine = Machine::complete().without(&["mongod", "setpriv", "nginx"]);
    let outcome = machine.run("install-deps.sh", "run");
    assert_eq!((outcome.code, &*outcome.calls), (0, ""), "{}", outcome.stderr);
}

#[test]
fn what_is_missing_is_installed_once() {
    let machine = Machine::complete().without(&["etcd", "etcdctl", "protoc"]);
    let outcome = machine.run("install-deps.sh", "run");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let installs: Vec<&str> = outcome
        .calls
        .lines()
        .filter(|call| call.starts_with("apt-get") && !call.contains(" -s "))
        .collect();
    let [install] = installs[..] else { panic!("{}", outcome.calls) };
    assert!(
        install.ends_with("install etcd-server etcd-client protobuf-compiler libprotobuf-dev"),
        "{install}"
    );
    // Lists that know the packages are not fetched again.
    assert!(!outcome.calls.contains("update\n"), "{}", outcome.calls);
    let again = machine.run("install-deps.sh", "run");
    assert_eq!((again.code, again.calls), (0, outcome.calls));
}

/// Debian would start it on the port of meepo's own.
#[test]
fn a_fresh_etcd_is_not_left_running() {
    let outcome = Machine::complete().without(&["etcd"]).run("install-deps.sh", "run");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let disabled = ["systemctl --quiet disable --now etcd.service", "update-rc.d etcd disable"];
    assert!(disabled.iter().any(|d| outcome.calls.contains(d)), "{}", outcome.calls);
    // An etcd that is there already is left as it is.
    let outcome = Machine::complete().without(&["etcdctl"]).run("install-deps.sh", "run");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(!disabled.iter().any(|d| outcome.calls.contains(d)), "{}", outcome.calls);
}

/// Nor an nginx, which the tests need, on port 80.
#[test]
fn a_fresh_nginx_is_for_the_tests_only() {
    let outcome = Machine::complete().without(&["nginx"]).run("install-deps.sh", "test");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.calls.contains("install nginx\n"), "{}", outcome.calls);
    assert!(outcome.stderr.contains("nginx service is left disabled"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("etcd"), "{}", outcome.stderr);
    let machine = Machine::complete().without(&["nginx"]);
    machine.stub("apt-get", "exit 100");
    let outcome = machine.run("install-deps.sh", "test");
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("- nginx: the program nginx"), "{}", outcome.stderr);
}

#[test]
fn what_cannot_be_installed_is_named() {
    let cases = [
        (&["apt-get"][..], "not a Debian-like system"),
        (&["sudo"], "not root and there is no sudo"),
    ];
    for (absent, why) in cases {
        let machine = Machine::complete().without(absent).without(&["etcd", "cc"]);
        let outcome = machine.run("install-deps.sh", "run");
        assert_eq!(outcome.code, 1);
        for part in [why, "- etcd-server: the program etcd", "- gcc: ", "etcd-server gcc libc6-dev"]
        {
            assert!(outcome.stderr.contains(part), "{part:?} is not in:\n{}", outcome.stderr);
        }
    }
    // apt that fails, as without a network.
    let machine = Machine::complete().without(&["etcdctl"]);
    machine.stub("apt-get", "exit 100");
    let outcome = machine.run("install-deps.sh", "run");
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("etcd-client: the program etcdctl"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("is there a network?"), "{}", outcome.stderr);
}

#[test]
fn an_old_rust_is_replaced_by_rustup_or_explained() {
    let old = || {
        let machine = Machine::complete();
        machine.stub("rustc", "echo 'rustc 1.63.0 (stub)'");
        machine
    };
    let machine = old().without(&["apt-get"]);
    let outcome = machine.run("install-deps.sh", "run");
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("(found: 1.63.0)"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("https://rustup.rs"), "{}", outcome.stderr);
    assert_eq!(machine.run("cargo.sh", "build").code, 1);

    let machine = old();
    machine.stub("rustup", RUSTUP);
    let outcome = machine.run("install-deps.sh", "run");
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.calls.contains("rustup toolchain install "), "{}", outcome.calls);
    assert!(!outcome.calls.contains("sudo"), "{}", outcome.calls);
    let outcome = machine.run("cargo.sh", "build");
    assert!(outcome.stdout.starts_with("the cargo of "), "{}", outcome.stdout);
}

#[test]
fn a_new_rust_is_used_as_it_is() {
    let outcome = Machine::complete().run("cargo.sh", "build");
    assert_eq!((outcome.code, &*outcome.stdout), (0, "plain cargo: build\n"));
}

#[test]
fn an_unknown_mode_is_a_usage_error() {
    let outcome = Machine::complete().run("install-deps.sh", "rum");
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("run|test"), "{}", outcome.stderr);
}
