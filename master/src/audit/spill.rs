//! Where records wait while the log store takes none: a file of JSON lines in the data
//! directory, locked by this process.

use anyhow::Context;
use meepo_core::audit::AuditRecord;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tracing::{error, warn};

/// Largest file, in bytes: some ten thousand records. Beyond that they are dropped, counted
/// and in the log alone.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// Masters that may share a data directory.
const MAX_FILES: usize = 16;

/// The file; opened when it is first needed or there already.
pub(super) struct Spill {
    dir: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl Spill {
    /// That of a data directory, with what an earlier life has left there.
    pub(super) fn open(dir: &Path) -> Self {
        let mut spill = Self { dir: dir.to_owned(), file: None, bytes: 0 };
        if spill.path(0).exists()
            && let Err(e) = spill.file()
        {
            error!(error = format!("{e:#}"), "what waits of the audit cannot be read");
        }
        spill
    }

    fn path(&self, n: usize) -> PathBuf {
        match n {
            0 => self.dir.join("audit.jsonl"),
            n => self.dir.join(format!("audit-{n}.jsonl")),
        }
    }

    fn file(&mut self) -> anyhow::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(self.lock_one()?);
        }
        self.file.as_mut().context("just opened")
    }

    /// The first file that no other master has.
    fn lock_one(&mut self) -> anyhow::Result<File> {
        meepo_runtime::files::private_dir(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        for n in 0..MAX_FILES {
            let path = self.path(n);
            let options =
                OpenOptions::new().read(true).append(true).create(true).mode(0o600).clone();
            let file =
                options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {
                    self.bytes = file.metadata()?.len();
                    return Ok(file);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        anyhow::bail!("{MAX_FILES} masters use {} already", self.dir.display())
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps records; `Ok` means that they survive a loss of power. Answers how many there
    /// was no room for.
    pub(super) fn push(&mut self, records: &[AuditRecord]) -> anyhow::Result<usize> {
        let mut lines = Vec::new();
        let mut refused = 0;
        self.file()?;
        for record in records {
            let before = lines.len();
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
            if self.bytes + lines.len() as u64 > MAX_BYTES {
                lines.truncate(before);
                refused += 1;
            }
        }
        let bytes = self.bytes;
        let file = self.file()?;
        if let Err(e) = file.write_all(&lines).and_then(|()| file.sync_data()) {
            // Half a line would take the next one with it.
            let _ = file.set_len(bytes);
            return Err(e).context("cannot write what waits of the audit");
        }
        self.bytes += lines.len() as u64;
        Ok(refused)
    }

    /// Everything that waits, at most `MAX_BYTES` of it.
    pub(super) fn read(&mut self) -> anyhow::Result<Vec<AuditRecord>> {
        let file = self.file()?;
        file.seek(SeekFrom::Start(0))?;
        let mut records = Vec::new();
        for line in BufReader::new(&*file).split(b'\n') {
            let line = line?;
            match serde_json::from_slice(&line) {
                Ok(record) => records.push(record),
                // The end of a file when the power went.
                Err(e) => {
                    let line = String::from_utf8_lossy(&line);
                    warn!(error = %e, %line, "not a record of the audit, left out");
                }
            }
        }
        Ok(records)
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) -> anyhow::Result<()> {
        self.file()?.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Asked, Outcome, note::Note};
    use axum::{body::Body, http::Request};

    fn record(n: usize) -> AuditRecord {
        let request = Request::post(format!("/v1/jobs/{n}/trigger")).body(Body::empty()).unwrap();
        Asked::http(&request).unwrap().record(&Note::default(), Outcome::GONE, "m")
    }

    #[test]
    fn what_was_pushed_is_there_in_the_next_life_and_half_a_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<_> = (0..3).map(record).collect();
        let mut spill = Spill::open(dir.path());
        assert_eq!(spill.bytes(), 0);
        assert_eq!(spill.push(&records).unwrap(), 0);
        drop(spill);
        let path = dir.path().join("audit.jsonl");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":").unwrap();
        let mut spill = Spill::open(dir.path());
        assert!(spill.bytes() > 100);
        assert_eq!(spill.read().unwrap(), records);
        // Another master with the same directory has a file of its own.
        let mut other = Spill::open(dir.path());
        assert_eq!(other.push(&records[..1]).unwrap(), 0);
        assert_eq!(other.read().unwrap(), records[..1]);
        spill.clear().unwrap();
        assert_eq!((spill.bytes(), spill.read().unwrap()), (0, Vec::new()));
        assert_eq!(other.read().unwrap(), records[..1]);
    }

    #[test]
    fn a_full_file_takes_no_more_and_says_how_many() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(dir.path());
        spill.push(&[record(1)]).unwrap();
        spill.bytes = MAX_BYTES - 10;
        assert_eq!(spill.push(&[record(2), record(3)]).unwrap(), 2);
        assert_eq!(spill.read().unwrap().len(), 1);
    }
}
