//! What is kept of a run's output: its beginning, its end, or some of both.
//!
//! ```text
//! written  ──► head: chunks, handed on as they come
//!          ──► tail: held here, the oldest bytes given up for newer ones, handed on at the end
//! ```
//!
//! Chunks are numbered without gaps and never change once they are handed on, as they may
//! be stored by then. So the tail, which changes until the end, is not shown before.

use super::hub::OutputHub;
use crate::secrets::Secrets;
use jiff::Timestamp;
use meepo_core::{
    id::RunId,
    job::OutputKeep,
    run::{OutputChunk, Stream, to_millis},
    secret::mask::Masked,
};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Largest chunk in bytes.
pub(super) const CHUNK: usize = 32 * 1024;

/// How long a small piece waits for more of the same stream before it is handed on.
const LINGER: Duration = Duration::from_millis(5);

/// Chunks of the head and of the tail, at most: a command that changes between its streams with each
/// byte would need a hundred times its output limit in memory.
const CHUNKS: usize = 65_536;

/// Fills a hub; closes it when dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    hub: OutputHub,
    run_id: RunId,
    /// Bytes that the head may still take.
    room: u64,
    seq: u64,
    pending: Option<Piece>,
    tail: Tail,
    /// What must not be kept, and the two streams as far as they are held back for that.
    secrets: Secrets,
    masked: [Masked; 2],
}

/// Bytes of one stream, and when the first of them were read.
#[derive(Debug)]
struct Piece {
    stream: Stream,
    at: Timestamp,
    /// Until then more may be added.
    until: Instant,
    data: Vec<u8>,
}

impl Piece {
    fn new(stream: Stream, data: &[u8]) -> Self {
        let (at, until) = (to_millis(Timestamp::now()), Instant::now() + LINGER);
        Self { stream, at, until, data: data.to_vec() }
    }

    /// Adds `data`, if it belongs here and fits.
    fn add(&mut self, stream: Stream, data: &[u8]) -> bool {
        let fits = self.stream == stream && self.data.len() + data.len() <= CHUNK;
        if fits {
            self.data.extend_from_slice(data);
        }
        fits
    }
}

/// The newest bytes: at least `limit` of them, at most a piece more.
#[derive(Debug, Default)]
struct Tail {
    limit: usize,
    pieces: VecDeque<Piece>,
    held: usize,
}

impl Tail {
    /// Takes `data` and answers how many bytes, of it or older ones, were given up.
    fn push(&mut self, stream: Stream, data: &[u8]) -> u64 {
        // Far more than this cannot be kept, so it need not be copied.
        let (passed, data) = data.split_at(data.len().saturating_sub(self.limit));
        let mut dropped = passed.len();
        for part in data.chunks(CHUNK) {
            self.held += part.len();
            let last = self.pieces.back_mut().filter(|p| Instant::now() < p.until);
            if !last.is_some_and(|p| p.add(stream, part)) {
                self.pieces.push_back(Piece::new(stream, part));
            }
            while let Some(first) = self.pieces.front()
                && (self.held - first.data.len() >= self.limit || self.pieces.len() > CHUNKS)
            {
                dropped += first.data.len();
                self.held -= first.data.len();
                self.pieces.pop_front();
            }
        }
        dropped as u64
    }

    /// The last `limit` bytes, and how many before them are given up.
    fn end(self) -> (VecDeque<Piece>, u64) {
        let mut pieces = self.pieces;
        let over = self.held.saturating_sub(self.limit);
        if let Some(first) = pieces.front_mut() {
            // Less than the piece: else it would have gone already.
            first.data.drain(..over);
        }
        (pieces, over as u64)
    }
}

impl Writer {
    /// Keeps `limit` bytes of a run's output in the hub that is answered with it, chosen by
    /// `keep`.
    #[cfg(test)]
    pub(crate) fn new(run_id: RunId, limit: u64, keep: OutputKeep) -> (OutputHub, Self) {
        Self::masked(run_id, limit, keep, &Secrets::default())
    }

    /// Keeps `limit` bytes of a run's output, without the values of its secrets, in the hub that
    /// is answered with it; `keep` chooses which.
    pub(crate) fn masked(
        run_id: RunId,
        limit: u64,
        keep: OutputKeep,
        secrets: &Secrets,
    ) -> (OutputHub, Self) {
        let hub = OutputHub::new();
        let tail = match keep {
            OutputKeep::Head => 0,
            OutputKeep::Tail => limit,
            OutputKeep::Both => limit / 2,
        };
        let room = limit - tail;
        let tail = Tail { limit: usize::try_from(tail).unwrap_or(usize::MAX), ..Tail::default() };
        let (secrets, masked) = (secrets.clone(), Default::default());
        (hub.clone(), Self { hub, run_id, room, seq: 0, pending: None, tail, secrets, masked })
    }

    /// What is not kept.
    pub(crate) fn secrets(&self) -> Secrets {
        self.secrets.clone()
    }

    /// Whether nothing that comes will be kept; then [`skip`](Self::skip) will do.
    pub(super) fn is_full(&self) -> bool {
        self.room == 0 && self.tail.limit == 0
    }

    /// Counts bytes that were read and thrown away.
    pub(super) fn skip(&self, bytes: u64) {
        self.hub.count_dropped(bytes);
    }

    /// Takes what was just read. Pieces of one stream that come within [`LINGER`] are
    /// merged up to [`CHUNK`].
    pub(crate) fn push(&mut self, stream: Stream, data: &[u8]) {
        if self.secrets.is_empty() {
            return self.put(stream, data);
        }
        let masked = &mut self.masked[usize::from(stream == Stream::Stderr)];
        let shown = masked.push(self.secrets.masks(), data);
        if !shown.is_empty() {
            self.put(stream, &shown);
        }
    }

    fn put(&mut self, stream: Stream, data: &[u8]) {
        if self.seq >= CHUNKS as u64 {
            self.flush();
            self.room = 0;
        }
        let room = usize::try_from(self.room).unwrap_or(usize::MAX);
        let (head, rest) = data.split_at(data.len().min(room));
        self.room -= head.len() as u64;
        for part in head.chunks(CHUNK) {
            if !self.pending.as_mut().is_some_and(|p| p.add(stream, part)) {
                self.flush();
                self.pending = Some(Piece::new(stream, part));
            }
        }
        if self.room == 0 || self.pending.as_ref().is_some_and(|p| p.data.len() >= CHUNK) {
            self.flush();
        }
        if !rest.is_empty() {
            let dropped = self.tail.push(stream, rest);
            self.hub.count_dropped(dropped);
        }
    }

    /// When [`flush`](Self::flush) is due; `None` if nothing waits.
    pub(crate) fn flush_at(&self) -> Option<Instant> {
        self.pending.as_ref().map(|p| p.until)
    }

    /// Hands on what waits in the head.
    pub(crate) fn flush(&mut self) {
        if let Some(piece) = self.pending.take() {
            let chunk = self.chunk(piece);
            self.hub.append([chunk]);
        }
    }

    fn chunk(&mut self, Piece { stream, at, mut data, .. }: Piece) -> OutputChunk {
        data.shrink_to_fit();
        let seq = self.seq;
        self.seq += 1;
        OutputChunk { run_id: self.run_id, seq, stream, at, data }
    }

    /// Hands on everything that is kept and closes the hub. Answers bytes written and
    /// bytes dropped.
    pub(crate) fn close(mut self) -> (u64, u64) {
        for (i, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let rest = self.masked[i].end(self.secrets.masks());
            if !rest.is_empty() {
                self.put(stream, &rest);
            }
        }
        self.flush();
        let (pieces, dropped) = std::mem::take(&mut self.tail).end();
        let tail: Vec<_> = pieces.into_iter().map(|p| self.chunk(p)).collect();
        self.hub.append(tail);
        self.hub.count_dropped(dropped);
        self.hub.counts()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.hub.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// What is kept of `writes`, and the counts.
    fn keep(
        limit: u64,
        keep: OutputKeep,
        writes: &[(Stream, Vec<u8>)],
    ) -> (Vec<Arc<OutputChunk>>, (u64, u64)) {
        let (hub, mut writer) = Writer::new(RunId(uuid::Uuid::nil()), limit, keep);
        writes.iter().for_each(|(stream, data)| writer.push(*stream, data));
        let counts = writer.close();
        assert!(hub.is_closed());
        let mut chunks = Vec::new();
        let mut follower = hub.follow(0);
        while let Some(batch) = futures::FutureExt::now_or_never(follower.next()).flatten() {
            chunks.extend(batch);
        }
        (chunks, counts)
    }

    fn out(data: &[u8]) -> (Stream, Vec<u8>) {
        (Stream::Stdout, data.to_vec())
    }

    fn err(data: &[u8]) -> (Stream, Vec<u8>) {
        (Stream::Stderr, data.to_vec())
    }

    #[test]
    fn small_pieces_merge_and_a_change_of_stream_parts_them() {
        let writes = [out(b"a"), out(b"b"), err(b"c"), out(b"d")];
        for policy in [OutputKeep::Head, OutputKeep::Tail] {
            let (chunks, counts) = keep(100, policy, &writes);
            assert_eq!(counts, (4, 0));
            let seen: Vec<_> =
                chunks.iter().map(|c| (c.seq, c.stream, c.data.as_slice())).collect();
            let want = [
                (0, Stream::Stdout, &b"ab"[..]),
                (1, Stream::Stderr, b"c"),
                (2, Stream::Stdout, b"d"),
            ];
            assert_eq!(seen, want, "{policy:?}");
        }
    }

    #[test]
    fn secrets_are_kept_nowhere_however_they_come() {
        let name = meepo_core::id::Name::new("db").unwrap();
        let secrets = Secrets::new([(name, "s3cret-value".to_owned())].into());
        for policy in [OutputKeep::Head, OutputKeep::Tail, OutputKeep::Both] {
            let (hub, mut writer) = Writer::masked(RunId(uuid::Uuid::nil()), 100, policy, &secrets);
            // The streams do not complete each other's.
            let writes = [
                out(b"a s3cre"),
                err(b"b s3cret-val"),
                out(b"t-value b\n"),
                err(b"ue\n"),
                out(b"s3"),
            ];
            writes.iter().for_each(|(stream, data)| writer.push(*stream, data));
            writer.close();
            let all = String::from_utf8(hub.end(1000)).unwrap();
            assert!(!all.contains("cret") && all.matches("***").count() == 2, "{all}");
            assert!(all.ends_with("s3"), "what was no secret is there: {all}");
        }
    }

    #[test]
    fn limits_cut_within_a_piece() {
        let text = |limit, policy| {
            let (chunks, counts) = keep(limit, policy, &[out(b"abcdef"), err(b"gh")]);
            let text: Vec<u8> = chunks.iter().flat_map(|c| c.data.clone()).collect();
            (String::from_utf8(text).unwrap(), counts)
        };
        assert_eq!(text(3, OutputKeep::Head), ("abc".into(), (8, 5)));
        assert_eq!(text(3, OutputKeep::Tail), ("fgh".into(), (8, 5)));
        assert_eq!(text(5, OutputKeep::Both), ("abcgh".into(), (8, 3)));
        assert_eq!(text(8, OutputKeep::Both), ("abcdefgh".into(), (8, 0)));
        for policy in [OutputKeep::Head, OutputKeep::Tail, OutputKeep::Both] {
            assert_eq!(text(0, policy), (String::new(), (8, 8)));
        }
    }

    #[test]
    fn a_change_of_stream_with_each_byte_costs_no_more_than_the_cap() {
        let writes: Vec<_> =
            (0..CHUNKS + 1000).map(|n| if n % 2 == 0 { out(b"x") } else { err(b"y") }).collect();
        for policy in [OutputKeep::Head, OutputKeep::Tail] {
            let (chunks, (total, dropped)) = keep(1 << 24, policy, &writes);
            assert!((CHUNKS..CHUNKS + 2).contains(&chunks.len()), "{}", chunks.len());
            assert_eq!((total, total - dropped), (writes.len() as u64, chunks.len() as u64));
        }
    }

    fn writes() -> impl Strategy<Value = Vec<(Stream, Vec<u8>)>> {
        let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
        let small = proptest::collection::vec(any::<u8>(), 1..40);
        let large = (1..100_000_usize, any::<u8>())
            .prop_map(|(n, salt)| (0..n).map(|i| (i % 251) as u8 ^ salt).collect());
        proptest::collection::vec((stream, prop_oneof![8 => small, 1 => large]), 0..40)
    }

    proptest! {
        #[test]
        fn beginning_and_end_are_kept_and_everything_is_counted(
            writes in writes(),
            limit in prop_oneof![0..200_u64, 0..200_000_u64],
            policy in prop_oneof![
                Just(OutputKeep::Head), Just(OutputKeep::Tail), Just(OutputKeep::Both)
            ],
        ) {
            // Each byte with its stream, as written and as kept.
            let bytes = |s: Stream, data: &[u8]| {
                data.iter().map(|b| (s == Stream::Stderr, *b)).collect::<Vec<_>>()
            };
            let written: Vec<_> = writes.iter().flat_map(|(s, d)| bytes(*s, d)).collect();
            let (chunks, (total, dropped)) = keep(limit, policy, &writes);
            let kept: Vec<_> = chunks.iter().flat_map(|c| bytes(c.stream, &c.data)).collect();
            let limit = (limit as usize).min(written.len());
            prop_assert_eq!(total, written.len() as u64);
            prop_assert_eq!(kept.len(), limit, "all that there is room for");
            prop_assert_eq!(dropped, (written.len() - limit) as u64);
            prop_assert!(chunks.iter().zip(0..).all(|(c, seq)| c.seq == seq));
            prop_assert!(chunks.iter().all(|c| (1..=CHUNK).contains(&c.data.len())));
            let head = match policy {
                OutputKeep::Head => limit,
                OutputKeep::Tail => 0,
                // Half of what may be kept, or where that is more, the rest of it.
                OutputKeep::Both => kept.iter().zip(&written).take_while(|(a, b)| a == b).count(),
            };
            if policy == OutputKeep::Both && dropped > 0 {
                prop_assert!(head >= limit - limit / 2);
            }
            prop_assert_eq!(&kept[..head], &written[..head]);
            prop_assert_eq!(&kept[head..], &written[written.len() - (limit - head)..]);
        }
    }
}
