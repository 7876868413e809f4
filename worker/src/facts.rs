//! Facts about the host. What the host does not tell is left at its default.

use meepo_core::node::Facts;
use nix::sys::statvfs::statvfs;
use sysinfo::System;

/// What changes from moment to moment.
pub struct Moment {
    /// Load average over one minute.
    pub load1: f64,
    /// Memory in all.
    pub mem_total: u64,
    /// Memory a new process could get.
    pub mem_free: u64,
    /// Size of the file system at `/`.
    pub disk_total: u64,
    /// Free bytes of it.
    pub disk_free: u64,
}

/// How the host is now. Blocks for a moment.
pub fn moment() -> Moment {
    let (mem_total, mem_free) = System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    });
    // What an unprivileged process could use, as df(1) shows it.
    let (disk_total, disk_free) = statvfs("/").map_or((0, 0), |fs| {
        let unit = fs.fragment_size();
        (fs.blocks() * unit, fs.blocks_available() * unit)
    });
    let load1 = System::load_average().map_or(0.0, |load| load.one);
    Moment { load1, mem_total, mem_free, disk_total, disk_free }
}

/// Facts as of now. Blocks for a moment.
pub fn gather() -> Facts {
    let Moment { load1, mem_total, mem_free, disk_total, disk_free } = moment();
    Facts {
        hostname: System::host_name().unwrap_or_default(),
        os: System::distribution_id(),
        os_version: System::os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        arch: System::cpu_arch(),
        cpu_cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        load1,
        mem_total,
        mem_free,
        disk_total,
        disk_free,
        // These change too fast for a record: heartbeats tell them.
        cpu_use: None,
        running: None,
    }
}

/// Tells how busy the processors were since it was last asked.
#[derive(Debug, Default)]
pub struct CpuMeter {
    /// Ticks of all processors so far: in use, and in all.
    before: Option<(u64, u64)>,
}

impl CpuMeter {
    /// Per cent of all processors, since the last call; `None` the first time, and where
    /// hardly any time has passed.
    pub fn since_last(&mut self) -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        self.advance(ticks(&stat)?)
    }

    fn advance(&mut self, now: (u64, u64)) -> Option<f64> {
        let (busy, all) = self.before.replace(now)?;
        let (busy, all) = (now.0.saturating_sub(busy), now.1.saturating_sub(all));
        // A tenth of a second of one processor says nothing yet.
        (all >= 10).then(|| 100.0 * busy.min(all) as f64 / all as f64)
    }
}

/// The first line of proc_stat(5): ticks in use and in all. Time as a guest is counted
/// as time of the user already.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|f| f.parse().ok()).collect();
    let all: u64 = fields.iter().sum();
    let idle = fields.get(3)? + fields.get(4).unwrap_or(&0);
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_tells_what_was_used_since_it_was_last_asked() {
        let stat = "cpu  100 5 45 800 50 3 7 0 60 0\ncpu0 1 1 1 1\n";
        assert_eq!(ticks(stat), Some((160, 1010)));
        let mut meter = CpuMeter::default();
        assert_eq!(meter.advance((160, 1010)), None);
        assert_eq!(meter.advance((161, 1012)), None, "too soon");
        assert_eq!(meter.advance((186, 1112)), Some(25.0));
        assert_eq!(ticks("cpu 1 2\n"), None);
        let mut meter = CpuMeter::default();
        assert!(meter.since_last().is_none() && meter.before.is_some());
    }

    #[test]
    fn a_linux_host_has_these() {
        let facts = gather();
        assert!(facts.cpu_cores > 0 && facts.mem_total > 0 && !facts.kernel.is_empty());
        assert!(facts.disk_total > 0 && facts.disk_free <= facts.disk_total);
    }
}
