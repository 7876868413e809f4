//! How this process is, under the names that Prometheus' own libraries use. Read when it is
//! asked for; where there is no `/proc`, or a value in it is not understood, it is left out.

use jiff::Timestamp;
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use std::{fmt, fs};

/// Ticks of the kernel's accounting in a second, as programs see them (`USER_HZ`): the same
/// on every machine that Linux runs on today.
const TICKS: f64 = 100.0;

/// Reads the figures when they are asked for.
#[derive(Debug)]
pub(super) struct Collector {
    started: Timestamp,
}

impl Default for Collector {
    fn default() -> Self {
        // Metrics are among the first that a service makes.
        Self { started: Timestamp::now() }
    }
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| -> Result<(), fmt::Error> {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(metric)
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let memory = field(&status, "VmRSS:").map(|kib| kib * 1024.0);
        gauge("process_resident_memory_bytes", "Memory in use", memory)?;
        gauge("process_threads", "Threads", field(&status, "Threads:"))?;
        // One of them is the listing itself.
        let fds = fs::read_dir("/proc/self/fd").ok().map(|all| all.count().saturating_sub(1));
        gauge("process_open_fds", "Open file descriptors", fds.map(|n| n as f64))?;
        let started = self.started.as_millisecond() as f64 / 1000.0;
        gauge("process_start_time_seconds", "When the process started, since 1970", Some(started))?;
        if let Some(seconds) = cpu_seconds() {
            let (name, help) = ("process_cpu_seconds", "Processor time, of user and system");
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        Ok(())
    }
}

/// The number after a word at the beginning of a line.
fn field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}
