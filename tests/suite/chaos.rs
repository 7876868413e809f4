//! The fault suite in short: the program that `make chaos` runs for long, with seeds of its
//! own, for as long as a test may take.

use meepo_tests::{Process, Spec, TestDir, binary, secs};

/// Draws that have faults of masters, workers, etcd, the database, disk and clock among them.
const SEEDS: [u64; 2] = [3, 5];

#[tokio::test]
async fn whatever_fails_nothing_is_doubled_lost_or_left_over() {
    let dir = TestDir::new();
    for seed in SEEDS {
        let name = format!("chaos-{seed}");
        let seed = seed.to_string();
        let args = ["--seed", &seed, "--duration", "10s", "--at-least", "6"];
        let mut spec = Spec::new(&name, binary("meepo-chaos"), &args, dir.path());
        spec.split_output = true;
        let chaos = Process::start(spec);
        let status = chaos.wait_exit(secs(540)).await;
        let report = chaos.stdout();
        assert!(status.success(), "{status}\n{report}\n{}", chaos.log());
        // It has looked at something.
        assert!(report.contains("| `tick` | run |") && report.contains("| accepted |"), "{report}");
    }
}
