//! Facts about the host.

use meepo_core::node::Facts;
use sysinfo::{Disks, System};

/// Facts as of now. Blocks for some milliseconds.
pub fn gather() -> Facts {
    let mut system = System::new();
    system.refresh_memory();
    let (disk_total, disk_free) = root_disk();
    Facts {
        hostname: System::host_name().unwrap_or_default(),
        os: System::distribution_id(),
        os_version: System::os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        arch: System::cpu_arch(),
        cpu_cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        load1: System::load_average().one,
        mem_total: system.total_memory(),
        mem_free: system.available_memory(),
        disk_total,
        disk_free,
    }
}

/// Size and free bytes of the file system at `/`.
fn root_disk() -> (u64, u64) {
    let disks = Disks::new_with_refreshed_list();
    let root = disks.iter().find(|d| d.mount_point() == std::path::Path::new("/"));
    root.or_else(|| disks.iter().next())
        .map_or((0, 0), |d| (d.total_space(), d.available_space()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_linux_host_has_these() {
        let facts = super::gather();
        assert!(facts.cpu_cores > 0 && facts.mem_total > 0 && !facts.kernel.is_empty());
        assert!(facts.mem_free <= facts.mem_total && facts.disk_free <= facts.disk_total);
    }
}
