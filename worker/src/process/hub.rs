//! The output of one run, kept while it is of interest.

use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    run::{OutputChunk, Stream, to_millis},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Largest chunk in bytes.
pub(super) const CHUNK: usize = 32 * 1024;

/// How long a small piece waits for more of the same stream before it is handed on.
pub(super) const LINGER: Duration = Duration::from_millis(5);

/// Chunks and bytes a follower gets at once, at most.
const BATCH: (usize, usize) = (256, 256 * 1024);

/// The kept output of a run. Cloning is cheap; the chunks are freed with the last clone
/// and the last [`Follower`].
///
/// Memory is bounded by the run's output limit, whatever the number of followers and
/// however slow they are: they all read the same chunks.
#[derive(Debug, Clone)]
pub struct OutputHub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    /// Raised after each change of `kept`.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The chunk at index `n` has `seq` n.
    chunks: Vec<Arc<OutputChunk>>,
    total: u64,
    dropped: u64,
    closed: bool,
}

impl OutputHub {
    /// An empty hub and the one who fills it.
    pub(super) fn new(run_id: RunId, limit: u64) -> (Self, Writer) {
        let shared = Arc::new(Shared { kept: Mutex::default(), changed: watch::Sender::new(()) });
        let hub = Self { shared };
        (hub.clone(), Writer { hub, run_id, room: limit, seq: 0, pending: None })
    }

    /// Reads along from the chunk with `seq` `from` on (0: everything that is kept).
    pub fn follow(&self, from: u64) -> Follower {
        Follower { next: from, changed: self.shared.changed.subscribe(), hub: self.clone() }
    }

    /// Bytes written so far, and how many of them were not kept. Counted when a chunk is
    /// handed on, so up to one chunk behind the process.
    pub fn counts(&self) -> (u64, u64) {
        let kept = self.lock();
        (kept.total, kept.dropped)
    }

    /// Whether the output is complete.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half done in the critical sections below.
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Kept)) {
        change(&mut self.lock());
        self.shared.changed.send_replace(());
    }
}

/// Reads the output of a run at its own pace. See [`OutputHub::follow`].
#[derive(Debug)]
pub struct Follower {
    hub: OutputHub,
    next: u64,
    changed: watch::Receiver<()>,
}

impl Follower {
    /// The next chunks, in order and without gaps: at least one, as many as are there up
    /// to a few hundred. `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Arc<OutputChunk>>> {
        loop {
            // Marked as seen before looking, so that nothing is missed in between.
            self.changed.mark_unchanged();
            let (batch, closed) = self.ready();
            if !batch.is_empty() {
                return Some(batch);
            }
            if closed || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The `seq` of the chunk that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    fn ready(&mut self) -> (Vec<Arc<OutputChunk>>, bool) {
        let kept = self.hub.lock();
        let from = usize::try_from(self.next).unwrap_or(usize::MAX).min(kept.chunks.len());
        let mut bytes = 0;
        let batch: Vec<_> = kept.chunks[from..]
            .iter()
            .take(BATCH.0)
            .take_while(|c| {
                let first = bytes == 0;
                bytes += c.data.len();
                first || bytes <= BATCH.1
            })
            .cloned()
            .collect();
        self.next += batch.len() as u64;
        (batch, kept.closed)
    }
}

/// Fills a hub; closes it when dropped.
#[derive(Debug)]
pub(super) struct Writer {
    hub: OutputHub,
    run_id: RunId,
    /// Bytes that may still be kept.
    room: u64,
    seq: u64,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    stream: Stream,
    at: Timestamp,
    until: Instant,
    data: Vec<u8>,
}

impl Writer {
    /// Takes what was just read. Pieces of one stream that come within [`LINGER`] are
    /// merged up to [`CHUNK`].
    pub(super) fn push(&mut self, stream: Stream, data: &[u8]) {
        let keep = data.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
        let (kept, dropped) = data.split_at(keep);
        self.room -= kept.len() as u64;
        if !kept.is_empty() {
            let fits = |p: &Pending| p.stream == stream && p.data.len() + kept.len() <= CHUNK;
            if !self.pending.as_ref().is_some_and(fits) {
                self.flush();
            }
            let pending = self.pending.get_or_insert_with(|| Pending {
                stream,
                at: to_millis(Timestamp::now()),
                until: Instant::now() + LINGER,
                data: Vec::new(),
            });
            pending.data.extend_from_slice(kept);
            if pending.data.len() >= CHUNK || self.room == 0 {
                self.flush();
            }
        }
        if !dropped.is_empty() {
            let n = dropped.len() as u64;
            let mut kept = self.hub.lock();
            kept.total += n;
            kept.dropped += n;
        }
    }

    /// When [`flush`](Self::flush) is due; `None` if nothing waits.
    pub(super) fn flush_at(&self) -> Option<Instant> {
        self.pending.as_ref().map(|p| p.until)
    }

    /// Hands on what waits.
    pub(super) fn flush(&mut self) {
        let Some(mut p) = self.pending.take() else { return };
        p.data.shrink_to_fit();
        let chunk = Arc::new(OutputChunk {
            run_id: self.run_id,
            seq: self.seq,
            stream: p.stream,
            at: p.at,
            data: p.data,
        });
        self.seq += 1;
        self.hub.update(|kept| {
            kept.total += chunk.data.len() as u64;
            kept.chunks.push(chunk);
        });
    }

    /// Hands on what waits and closes the hub. Answers bytes written and bytes dropped.
    pub(super) fn close(mut self) -> (u64, u64) {
        self.flush();
        self.hub.counts()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.hub.update(|kept| kept.closed = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_id() -> RunId {
        RunId(uuid::Uuid::now_v7())
    }

    async fn all(mut f: Follower) -> Vec<Arc<OutputChunk>> {
        let mut out = Vec::new();
        while let Some(batch) = f.next().await {
            out.extend(batch);
        }
        out
    }

    #[tokio::test]
    async fn small_pieces_merge_and_a_change_of_stream_parts_them() {
        let (hub, mut w) = OutputHub::new(run_id(), 100);
        w.push(Stream::Stdout, b"a");
        w.push(Stream::Stdout, b"b");
        w.push(Stream::Stderr, b"c");
        w.push(Stream::Stdout, b"d");
        assert_eq!(w.close(), (4, 0));
        let chunks = all(hub.follow(0)).await;
        let seen: Vec<_> = chunks.iter().map(|c| (c.seq, c.stream, c.data.as_slice())).collect();
        assert_eq!(
            seen,
            [(0, Stream::Stdout, &b"ab"[..]), (1, Stream::Stderr, b"c"), (2, Stream::Stdout, b"d")]
        );
    }

    #[tokio::test]
    async fn the_limit_cuts_within_a_piece_and_counts_the_rest() {
        let (hub, mut w) = OutputHub::new(run_id(), 3);
        w.push(Stream::Stdout, b"abcdef");
        w.push(Stream::Stderr, b"gh");
        assert_eq!(w.close(), (8, 5));
        assert_eq!(all(hub.follow(0)).await[0].data, b"abc");
        let (hub, mut w) = OutputHub::new(run_id(), 0);
        w.push(Stream::Stdout, b"x");
        assert_eq!(w.close(), (1, 1));
        assert!(all(hub.follow(0)).await.is_empty());
    }

    #[tokio::test]
    async fn early_and_late_followers_see_the_same() {
        let (hub, mut w) = OutputHub::new(run_id(), 1 << 20);
        let early = tokio::spawn(all(hub.follow(0)));
        for n in 0..2000_u32 {
            w.push(Stream::Stdout, n.to_string().as_bytes());
            w.flush();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(w);
        let late = all(hub.follow(0)).await;
        assert_eq!(late.len(), 2000);
        assert_eq!(early.await.unwrap(), late);
        assert_eq!(all(hub.follow(1990)).await, late[1990..]);
        assert!(all(hub.follow(9999)).await.is_empty());
    }
}
