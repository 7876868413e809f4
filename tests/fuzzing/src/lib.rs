//! What fuzzers do with their bytes: each function reads them as something that comes from
//! outside, and panics where the code or what it promises is wrong.
//!
//! Used by the targets of cargo-fuzz in `fuzz/`, and by a test that replays `fuzz/seeds`,
//! where everything stands that was ever found.

mod stored;
mod texts;
mod wire;

/// A fuzzed input: its name, which is also that of its target and of its folder of seeds,
/// and what is done with it.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 7] = [
    ("cron", texts::cron),
    ("target", texts::target),
    ("crontab", texts::crontab),
    ("jobs", texts::jobs),
    ("etcd", stored::etcd),
    ("frames", wire::frames),
    ("api", wire::api),
];

/// Does what the target of this name does. Unknown names do nothing.
pub fn run(name: &str, data: &[u8]) {
    if let Some((_, target)) = TARGETS.iter().find(|(n, _)| *n == name) {
        target(data);
    }
}

/// The first byte chooses, the rest is the input.
fn chosen(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(choice, rest)| (*choice, rest))
}
