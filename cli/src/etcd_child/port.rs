//! Who holds a port, as far as `/proc` tells.

use std::{fmt, fs, os::unix::ffi::OsStrExt};

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// Its pid.
    pub(super) pid: u32,
    /// Its name, at most 15 bytes of it.
    pub(super) name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// Who listens on `port`. `None` also if the process is another user's.
pub(super) fn holder(port: u16) -> Option<Holder> {
    let inodes: Vec<Vec<u8>> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listeners(&table, port))
        .map(|inode| format!("socket:[{inode}]").into_bytes())
        .collect();
    if inodes.is_empty() {
        return None;
    }
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|to| inodes.iter().any(|i| to.as_os_str().as_bytes() == i))
        });
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        holds.then(|| Holder { pid, name: name.trim().to_owned() })
    })
}

/// The inodes of the sockets in a `/proc/net/tcp` that listen on `port`.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            let matches = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == LISTEN;
            matches.then(|| fields.get(9)?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(holder(port).unwrap().pid, std::process::id());
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n\
            1: 0100007F:094B 0100007F:A0F2 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n\
            2: 0100007F:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1\n";
        assert_eq!(listeners(table, 2379), [4711]);
    }
}
