//! Checks of output: any bytes, in order, each chunk once.

use super::{Random, at, chunk};
use crate::{LogItem, LogStore, MAX_OUTPUT_BYTES};
use jiff::SignedDuration;
use meepo_core::run::{OutputChunk, Stream};
use std::sync::Arc;

fn items(chunks: &[OutputChunk]) -> Vec<LogItem> {
    chunks.iter().cloned().map(LogItem::Output).collect()
}

/// Bytes, streams, times and order come back as they were, from any position, for a
/// run whose record is not there yet.
pub async fn output_is_kept_as_it_was(store: Arc<dyn LogStore>) {
    let mut random = Random::new(20);
    let (id, other) = (random.run_id(), random.run_id());
    let mut chunks: Vec<_> = (0..300).map(|s| chunk(id, s, random.bytes(s as usize))).collect();
    chunks[0].data = (0..=255).collect();
    chunks[1].data = Vec::new();
    chunks[2].data = b"\xff\xfe\x00\r\n\x1b[31m\xc3".to_vec();
    // Gaps, and numbers on both sides of each power where an encoding might turn.
    for seq in [1 << 8, 1 << 16, 1 << 31, 1 << 32, 1 << 53, 1 << 62_u64] {
        chunks.extend([seq - 1, seq, seq + 1].map(|s| chunk(id, s, s.to_string())));
    }
    chunks.sort_by_key(|c| c.seq);
    chunks.dedup_by_key(|c| c.seq);
    let mut shuffled = items(&chunks);
    shuffled.extend(items(&[chunk(other, 5, "of another run")]));
    random.shuffle(&mut shuffled);
    for part in shuffled.chunks(50) {
        store.append(part).await.unwrap();
    }

    assert_eq!(store.output(id, None, 10_000).await.unwrap(), chunks);
    for after in [0, 1, 150, 298, 299, 300, 1 << 16, 1 << 40, 1 << 62] {
        let want: Vec<_> = chunks.iter().filter(|c| c.seq > after).take(7).cloned().collect();
        assert_eq!(store.output(id, Some(after), 7).await.unwrap(), want, "after {after}");
    }
    // Zero is moved to the nearest limit there is.
    assert_eq!(store.output(id, None, 0).await.unwrap(), chunks[..1]);
    assert_eq!(store.output(id, None, usize::MAX).await.unwrap(), chunks);
    let others = store.output(other, None, 10).await.unwrap();
    assert_eq!(others, [chunk(other, 5, "of another run")]);
}

/// A chunk that is there already stays as it is, its new neighbours are kept, and its
/// time is cut to milliseconds.
pub async fn first_chunk_stays(store: Arc<dyn LogStore>) {
    let id = Random::new(21).run_id();
    let mut first = chunk(id, 1, "first");
    first.at = at(1_000) + SignedDuration::from_nanos(999_999);
    let mut second = first.clone();
    second.data = b"second".to_vec();
    second.stream = Stream::Stderr;
    second.at = at(2_000);
    // The same number twice in one batch, too.
    store.append(&items(&[first.clone(), second.clone()])).await.unwrap();
    let batch = [chunk(id, 0, "before"), second, chunk(id, 2, "after")];
    store.append(&items(&batch)).await.unwrap();
    first.at = at(1_000);
    let want = [batch[0].clone(), first, batch[2].clone()];
    assert_eq!(store.output(id, None, 10).await.unwrap(), want);
}

/// Long output comes in answers of bounded size, and following it shows all of it.
pub async fn long_output(store: Arc<dyn LogStore>) {
    let mut random = Random::new(22);
    let id = random.run_id();
    let one = MAX_OUTPUT_BYTES / 5;
    let chunks: Vec<_> = (0..13).map(|s| chunk(id, s, random.bytes(one + 1))).collect();
    store.append(&items(&chunks)).await.unwrap();
    let (mut got, mut answers) = (Vec::new(), 0);
    loop {
        let after = got.last().map(|c: &OutputChunk| c.seq);
        let some = store.output(id, after, 1_000).await.unwrap();
        if some.is_empty() {
            break;
        }
        assert_eq!(some.len(), 5.min(chunks.len() - got.len()));
        answers += 1;
        got.extend(some);
    }
    assert_eq!(answers, 3);
    assert!(got == chunks, "long output came back changed");
}
