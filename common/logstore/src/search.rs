//! Text in output: what the filters of a list leave is read and looked through, newest
//! run first, up to a bound; then the caller decides whether to go on.

use crate::{LogStore, MAX_OUTPUT_CHUNKS, RunQuery, StoreError, query::Position};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use meepo_core::{
    history::{OutputMatch, SearchHit, SearchPage},
    run::{OutputChunk, RunRecord, Stream},
};
use memchr::memmem::Finder;
use std::time::{Duration, Instant};

/// Longest text that is searched for, in bytes.
pub const MAX_NEEDLE: usize = 1024;
/// Runs looked at in one call.
pub const SEARCH_RUNS: u64 = 2_000;
/// Bytes of output looked at in one call, by and large: a run is looked at to its end.
pub const SEARCH_BYTES: u64 = 64 * 1024 * 1024;
/// Time after which a call answers what it has.
pub const SEARCH_TIME: Duration = Duration::from_secs(8);
/// Places told of each run.
const PLACES: usize = 3;
/// Bytes shown before and after the text.
const AROUND: usize = 80;
/// Runs asked for at once.
const PAGE: u32 = 200;
/// Runs whose output is read at the same time.
const AT_ONCE: usize = 4;

/// The runs of `query` in whose output `text` stands, as bytes, in one stream: also where it
/// was read in pieces. At most [`RunQuery::limit`] hits; the bounds above end a call
/// early, and [`SearchPage::next`] goes on.
///
/// # Errors
/// [`StoreError::Refused`] if `text` is empty or longer than [`MAX_NEEDLE`], or the cursor
/// is none; and as [`LogStore::list_runs`] and [`LogStore::output`].
pub async fn search(
    store: &dyn LogStore,
    query: &RunQuery,
    text: &[u8],
) -> Result<SearchPage, StoreError> {
    if text.is_empty() || text.len() > MAX_NEEDLE {
        return Err(StoreError::Refused {
            op: "search output",
            problem: format!("a text of {} bytes", text.len()),
            expected: format!("1 to {MAX_NEEDLE} bytes"),
        });
    }
    let (finder, wanted) = (Finder::new(text), query.page_size());
    let started = Instant::now();
    let mut query = RunQuery { limit: Some(PAGE), ..query.clone() };
    let mut found = SearchPage::default();
    loop {
        let page = store.list_runs(&query).await?;
        let mut looked =
            stream::iter(page.runs).map(|run| look(store, &finder, run)).buffered(AT_ONCE);
        while let Some((run, looked)) = looked.try_next().await? {
            found.looked_at += 1;
            found.bytes += looked.bytes;
            found.reached = Some(run.slot);
            let place = Position::from(&run);
            if !looked.matches.is_empty() {
                found.hits.push(SearchHit { run, matches: looked.matches, more: looked.more });
            }
            let enough = found.hits.len() >= wanted
                || found.looked_at >= SEARCH_RUNS
                || found.bytes >= SEARCH_BYTES
                || started.elapsed() >= SEARCH_TIME;
            if enough {
                found.next = Some(place.encode());
                return Ok(found);
            }
        }
        drop(looked);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(found),
        }
    }
}

/// What looking through a run's output gave.
#[derive(Debug, Default)]
struct Looked {
    bytes: u64,
    matches: Vec<OutputMatch>,
    more: bool,
}

async fn look(
    store: &dyn LogStore,
    finder: &Finder<'_>,
    run: RunRecord,
) -> Result<(RunRecord, Looked), StoreError> {
    let mut looked = Looked::default();
    if run.state.is_final() && run.output_bytes <= run.dropped_bytes {
        return Ok((run, looked)); // Nothing was kept.
    }
    let (mut after, mut out, mut err) =
        (None, Tail::new(Stream::Stdout), Tail::new(Stream::Stderr));
    loop {
        let chunks = store.output(run.run_id, after, MAX_OUTPUT_CHUNKS).await?;
        let Some(last) = chunks.last() else { return Ok((run, looked)) };
        after = Some(last.seq);
        for chunk in &chunks {
            looked.bytes += chunk.data.len() as u64;
            let tail = match chunk.stream {
                Stream::Stdout => &mut out,
                Stream::Stderr => &mut err,
            };
            tail.push(chunk);
            if !tail.find(finder, &mut looked) {
                return Ok((run, looked));
            }
        }
    }
}

/// The end of what a stream has given so far: what may be the beginning of the text, and
/// the line before it.
#[derive(Debug)]
struct Tail {
    stream: Stream,
    bytes: Vec<u8>,
    /// Where the pieces begin that `bytes` are made of.
    pieces: Vec<(usize, u64, Timestamp)>,
    /// From where on there may be places not told yet.
    from: usize,
}

impl Tail {
    fn new(stream: Stream) -> Self {
        Self { stream, bytes: Vec::new(), pieces: Vec::new(), from: 0 }
    }

    fn push(&mut self, chunk: &OutputChunk) {
        self.pieces.push((self.bytes.len(), chunk.seq, chunk.at));
        self.bytes.extend_from_slice(&chunk.data);
    }

    /// Tells the places; false once there are enough.
    fn find(&mut self, finder: &Finder<'_>, looked: &mut Looked) -> bool {
        let len = finder.needle().len();
        while let Some(at) = finder.find(self.bytes.get(self.from..).unwrap_or_default()) {
            let at = self.from + at;
            if looked.matches.len() == PLACES {
                looked.more = true;
                return false;
            }
            looked.matches.extend(self.place(at, len));
            // One place a line: what is shown of it shows the others too.
            let last = at + len - 1;
            let end = memchr::memchr(b'\n', &self.bytes[last..]);
            self.from = end.map_or(at + len, |n| last + n + 1);
        }
        // The next piece may complete what begins here, and the line belongs to it.
        let from = self.from.max((self.bytes.len() + 1).saturating_sub(len));
        let keep = from.saturating_sub(AROUND);
        let first = self.pieces.iter().rposition(|(start, ..)| *start <= keep).unwrap_or(0);
        self.pieces.drain(..first);
        self.bytes.drain(..keep);
        self.pieces.iter_mut().for_each(|(start, ..)| *start = start.saturating_sub(keep));
        self.from = from - keep;
        true
    }

    fn place(&self, at: usize, len: usize) -> Option<OutputMatch> {
        let (_, seq, when) = self.pieces.iter().rfind(|(start, ..)| *start <= at)?;
        let before = &self.bytes[at.saturating_sub(AROUND)..at];
        let before = &before[memchr::memrchr(b'\n', before).map_or(0, |n| n + 1)..];
        let after = &self.bytes[at + len..(at + len + AROUND).min(self.bytes.len())];
        let after = &after[..memchr::memchr(b'\n', after).unwrap_or(after.len())];
        let line = [before, &self.bytes[at..at + len], after].concat();
        let text = String::from_utf8_lossy(&line).into_owned();
        Some(OutputMatch { seq: *seq, stream: self.stream, at: *when, text })
    }
}
