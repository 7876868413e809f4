//! What the figures were taken on.

use std::{fs, process::Command, thread};

/// CPUs this process may use.
pub(crate) fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Load average over the last minute; 0 where it is not known.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Kind of CPU, from `/proc/cpuinfo`.
pub(crate) fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    let model = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim());
    model.unwrap_or("unknown CPU").to_owned()
}

/// Release of the running kernel.
pub(crate) fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Version of the etcd that the harness starts.
pub(crate) fn etcd() -> String {
    let program = std::env::var_os("MEEPO_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let version = text.lines().next().and_then(|l| l.rsplit(' ').next());
    version.filter(|v| !v.is_empty()).unwrap_or("unknown").to_owned()
}

/// Size of one of the binaries under test, in bytes.
pub(crate) fn size(binary: &str) -> u64 {
    meepo_tests::binary(binary).metadata().map_or(0, |m| m.len())
}
