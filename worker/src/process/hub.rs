//! The output of one run, kept while it is of interest.

use meepo_core::run::OutputChunk;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

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
    changed: Notify,
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
    /// An empty hub.
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared { kept: Mutex::default(), changed: Notify::new() });
        Self { shared }
    }

    /// Reads along from the chunk with `seq` `from` on (0: everything that is kept).
    pub fn follow(&self, from: u64) -> Follower {
        Follower { next: from, hub: self.clone() }
    }

    /// Bytes written so far, and how many of them were not kept. Counted when a chunk is
    /// handed on or bytes are given up, so behind the process by what may yet be kept: a
    /// chunk, and what the end of the output may take.
    pub fn counts(&self) -> (u64, u64) {
        let kept = self.lock();
        (kept.total, kept.dropped)
    }

    /// Whether the output is complete.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Everything that is kept, if it is complete and not more than `bytes`.
    pub(crate) fn complete(&self, bytes: usize) -> Option<Vec<Arc<OutputChunk>>> {
        let kept = self.lock();
        let fits = kept.closed && kept.chunks.iter().map(|c| c.data.len()).sum::<usize>() <= bytes;
        fits.then(|| kept.chunks.clone())
    }

    /// The last of what is kept, at least `bytes` if there is as much.
    pub(crate) fn end(&self, bytes: usize) -> Vec<u8> {
        let kept = self.lock();
        let (mut from, mut there) = (kept.chunks.len(), 0);
        while there < bytes && from > 0 {
            from -= 1;
            there += kept.chunks[from].data.len();
        }
        kept.chunks[from..].iter().flat_map(|c| c.data.iter().copied()).collect()
    }

    /// Hands on chunks, which must carry on where the last one stopped.
    pub(super) fn append(&self, chunks: impl IntoIterator<Item = OutputChunk>) {
        self.update(|kept| {
            for chunk in chunks {
                debug_assert_eq!(chunk.seq, kept.chunks.len() as u64);
                kept.total += chunk.data.len() as u64;
                kept.chunks.push(Arc::new(chunk));
            }
        });
    }

    /// Counts bytes that were written and are kept neither here nor by the caller.
    pub(super) fn count_dropped(&self, bytes: u64) {
        let mut kept = self.lock();
        kept.total += bytes;
        kept.dropped += bytes;
    }

    /// Nothing follows: tells everybody who reads along.
    pub(super) fn close(&self) {
        self.update(|kept| kept.closed = true);
    }

    /// How many chunks there are.
    pub(super) fn len(&self) -> u64 {
        self.lock().chunks.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half done in the critical sections below.
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Kept)) {
        change(&mut self.lock());
        // Who follows from now on looks first.
        self.shared.changed.notify_waiters();
    }
}

/// Reads the output of a run at its own pace. See [`OutputHub::follow`].
#[derive(Debug)]
pub struct Follower {
    hub: OutputHub,
    next: u64,
}

impl Follower {
    /// The next chunks, in order and without gaps: at least one, as many as are there up
    /// to a few hundred. `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Arc<OutputChunk>>> {
        let hub = self.hub.clone();
        loop {
            let changed = hub.shared.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that nothing is missed in between.
            changed.as_mut().enable();
            let (batch, closed) = self.ready();
            if !batch.is_empty() {
                return Some(batch);
            }
            if closed {
                return None;
            }
            changed.await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use meepo_core::{id::RunId, run::Stream};

    fn chunk(seq: u64) -> OutputChunk {
        OutputChunk {
            run_id: RunId(uuid::Uuid::nil()),
            seq,
            stream: Stream::Stdout,
            at: Timestamp::UNIX_EPOCH,
            data: seq.to_string().into(),
        }
    }

    async fn all(mut f: Follower) -> Vec<Arc<OutputChunk>> {
        let mut out = Vec::new();
        while let Some(batch) = f.next().await {
            out.extend(batch);
        }
        out
    }

    #[tokio::test]
    async fn early_and_late_followers_see_the_same() {
        let hub = OutputHub::new();
        let early = tokio::spawn(all(hub.follow(0)));
        for n in 0..2000 {
            hub.append([chunk(n)]);
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        hub.close();
        let late = all(hub.follow(0)).await;
        assert_eq!(late.len(), 2000);
        assert_eq!(early.await.unwrap(), late);
        assert_eq!(all(hub.follow(1990)).await, late[1990..]);
        assert!(all(hub.follow(9999)).await.is_empty());
    }
}
