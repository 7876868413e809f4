//! Facts about the host. What the host does not tell is left at its default.

use meepo_core::node::Facts;
use nix::sys::statvfs::statvfs;
use sysinfo::System;

/// Facts as of now. Blocks for a moment.
pub fn gather() -> Facts {
    let (mem_total, mem_free) = System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.total_memory(), system.available_memory())
    });
    // What an unprivileged process could use, as df(1) shows it.
    let (disk_total, disk_free) = statvfs("/").map_or((0, 0), |fs| {
        let unit = fs.fragment_size();
        (fs.blocks() * unit, fs.blocks_available() * unit)
    });
    Facts {
        hostname: System::host_name().unwrap_or_default(),
        os: System::distribution_id(),
        os_version: System::os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        arch: System::cpu_arch(),
        cpu_cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        load1: System::load_average().map_or(0.0, |load| load.one),
        mem_total,
        mem_free,
        disk_total,
        disk_free,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_linux_host_has_these() {
        let facts = super::gather();
        assert!(facts.cpu_cores > 0 && facts.mem_total > 0 && !facts.kernel.is_empty());
        assert!(facts.disk_total > 0 && facts.disk_free <= facts.disk_total);
    }
}
