//! Spool and snapshot.

use super::*;
use std::time::Duration;

#[tokio::test]
async fn items_come_back_as_they_went_in_and_in_order() {
    let dir = dir();
    let state = open(&dir);
    let every_byte: Vec<u8> = (0..=255).collect();
    let items = [
        SpoolItem::Record(record(RunState::Running)),
        SpoolItem::Chunk(chunk(0, &every_byte)),
        SpoolItem::Chunk(chunk(u64::MAX, b"")),
        SpoolItem::Record(record(RunState::Failed)),
    ];
    state.spool(&items[..2]).await.unwrap();
    state.spool_later(&items[2..]).await.unwrap();
    let batch = state.peek(100, 1 << 20).await.unwrap();
    assert_eq!(batch.items, items);
    assert_eq!(state.spool_stats().items, 4);
    assert_eq!(state.spool_stats().last_id, batch.last_id);
    // By number, by size, and one at least.
    let two = state.peek(2, 1 << 20).await.unwrap();
    assert_eq!(two.items, items[..2]);
    let rest = state.peek_after(two.last_id, 100, 1 << 20).await.unwrap();
    assert_eq!((rest.items.as_slice(), rest.last_id), (&items[2..], batch.last_id));
    assert_eq!(state.peek(100, 1).await.unwrap().items, items[..1]);
    state.ack(&two).await.unwrap();
    assert_eq!(state.peek(100, 1 << 20).await.unwrap(), rest);
    state.ack(&rest).await.unwrap();
    let stats = state.spool_stats();
    assert_eq!((stats.items, stats.bytes, stats.oldest), (0, 0, None));
    assert_eq!(state.peek(100, 1 << 20).await.unwrap(), Batch::default());
    // A late acknowledgement does not touch what came after.
    state.spool(&items[..1]).await.unwrap();
    let stats = state.spool_stats();
    state.ack(&rest).await.unwrap();
    assert_eq!(state.spool_stats(), stats);
    // Nor does one that comes too early touch what stood before.
    state.ack(&state.peek(1, 1 << 20).await.unwrap()).await.unwrap();
    state.spool(&items).await.unwrap();
    let first = state.peek(1, 1 << 20).await.unwrap();
    let third = state.peek_after(first.last_id + 1, 1, 1 << 20).await.unwrap();
    let rest = state.take(Lane::Fresh, Some(&third), 0, Most(10, 1 << 20)).await.unwrap();
    assert_eq!(rest.items, [&items[..2], &items[3..]].concat());
    assert_eq!(state.spool_stats().items, 3);
    state.ack(&rest).await.unwrap();
    assert_eq!((state.spool_stats().items, state.spool_stats().bytes), (0, 0));
}

#[tokio::test]
async fn the_count_is_the_same_after_a_restart() {
    let dir = dir();
    let state = open(&dir);
    for n in 0..10 {
        state.spool(&[SpoolItem::Chunk(chunk(n, b"some output"))]).await.unwrap();
    }
    let three = state.peek(3, 1 << 20).await.unwrap();
    state.ack(&three).await.unwrap();
    let before = state.spool_stats();
    assert_eq!(before.items, 7);
    state.close().await;
    let after = open(&dir).spool_stats();
    assert_eq!((after.items, after.bytes, after.oldest), (7, before.bytes, before.oldest));
    assert_eq!((before.backlog, after.backlog), (0, 7), "what an earlier life left is a backlog");
}

#[tokio::test]
async fn who_delivers_is_told() {
    let dir = dir();
    let state = open(&dir);
    let mut changes = state.spool_changes();
    let waiter =
        tokio::spawn(async move { changes.wait_for(|s| s.items > 0).await.unwrap().items });
    let chunks = [Arc::new(chunk(0, b"x")), Arc::new(chunk(1, b"y"))];
    state.spool_output(&chunks).await.unwrap();
    let items = tokio::time::timeout(Duration::from_secs(30), waiter).await.unwrap().unwrap();
    assert_eq!(items, 2);
}

#[tokio::test]
async fn what_cannot_be_read_does_not_block_what_follows() {
    let dir = dir();
    let state = open(&dir);
    state
        .call(|cx| {
            let sql = "INSERT INTO spooled (kind, at, payload)
                       VALUES (77, 0, 'x'), (2, 0, 'short')";
            cx.meter.last_id += 2;
            cx.conn.execute_batch(sql)
        })
        .await
        .unwrap();
    let item = SpoolItem::Chunk(chunk(0, b"fine"));
    state.spool(std::slice::from_ref(&item)).await.unwrap();
    let batch = state.peek(10, 1 << 20).await.unwrap();
    assert_eq!((batch.items, batch.unreadable), (vec![item], 2));
}

#[tokio::test]
async fn the_file_shrinks_after_a_backlog() {
    let dir = dir();
    let state = open(&dir);
    let items: Vec<_> = (0..1_000).map(|n| SpoolItem::Chunk(chunk(n, &[7; 30_000]))).collect();
    state.spool(&items).await.unwrap();
    let all = state.peek(1_000, usize::MAX).await.unwrap();
    state.ack(&all).await.unwrap();
    let pages = "SELECT page_count FROM pragma_page_count()";
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let n: i64 =
            state.call(move |cx| cx.conn.query_row(pages, [], |r| r.get(0))).await.unwrap();
        if n < 4_000 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{n} pages");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_snapshot_survives() {
    let dir = dir();
    let state = open(&dir);
    let entry = |key: &str, value: &[u8], mod_revision| SnapshotEntry {
        key: key.into(),
        value: value.to_vec(),
        mod_revision,
    };
    assert!(state.load_snapshot().await.unwrap().is_empty());
    let (a, b, c) = (entry("a", b"1", 1), entry("b", &[0, 255], 2), entry("c", b"", 3));
    state.put_snapshots_later(vec![b.clone(), a.clone(), c]).await.unwrap();
    let b2 = entry("b", b"new", 4);
    state.put_snapshots_later(vec![b2.clone()]).await.unwrap();
    state.delete_snapshot_later("c".into()).await.unwrap();
    state.delete_snapshot_later("never".into()).await.unwrap();
    state.close().await;
    assert_eq!(open(&dir).load_snapshot().await.unwrap(), [a, b2]);
}
