//! Checks of searching output.

use super::{Random, chunk, name, run};
use crate::{LogItem, LogStore, RunQuery, SEARCH_RUNS, StoreError, search};
use meepo_core::{
    id::RunId,
    run::{RunRecord, RunState, Stream},
};
use std::sync::Arc;

/// Where something was written, and what.
type Piece<'a> = (Stream, &'a [u8]);

/// A run of `job` that wrote `pieces`, each with its stream.
fn wrote(random: &mut Random, job: &str, slot: i64, pieces: &[Piece<'_>]) -> Vec<LogItem> {
    let mut r = run(random.run_id(), job, "n", slot);
    r.state = RunState::Success;
    r.output_bytes = pieces.iter().map(|(_, p)| p.len() as u64).sum();
    let mut items: Vec<_> = (0..)
        .zip(pieces)
        .map(|(seq, (stream, data))| {
            let mut c = chunk(r.run_id, seq, *data);
            c.stream = *stream;
            LogItem::Output(c)
        })
        .collect();
    items.push(LogItem::Run(r));
    items
}

fn id(items: &[LogItem]) -> RunId {
    items[0].run_id()
}

fn of(job: &str) -> RunQuery {
    RunQuery { job: Some(name(job)), ..RunQuery::default() }
}

/// Text is found wherever it stands: over the borders of chunks, beside the other stream,
/// among bytes that are no text, in a run that goes on.
pub async fn search_finds_what_is_there(store: Arc<dyn LogStore>) {
    use Stream::{Stderr as E, Stdout as O};
    let mut random = Random::new(90);
    let long = [b'.'; 70_000];
    let mut far = long.to_vec();
    far.extend_from_slice(b"needle");
    let cases: &[(&[Piece<'_>], bool)] = &[
        (&[(O, b"a needle in hay\n")], true),
        (&[(O, b"a nee"), (O, b"dle")], true),
        (&[(O, b"n"), (O, b"e"), (O, b"e"), (O, b"d"), (O, b"l"), (O, b"e")], true),
        (&[(O, b"nee"), (E, b"other\n"), (O, b"dle")], true),
        (&[(O, b"nee"), (E, b"dle")], false),
        (&[(E, b"\xff\xfe\0needle\0")], true),
        (&[(O, &far)], true),
        (&[(O, &far[..70_003]), (O, &far[70_003..])], true),
        (&[(O, b"needl"), (O, b"")], false),
        (&[(O, b"NEEDLE")], false),
        (&[(O, b"")], false),
        (&[(O, b"neneedle")], true),
        (&[(O, b"nee\ndle")], false),
    ];
    let mut want = Vec::new();
    for (slot, (pieces, found)) in (0..).zip(cases) {
        let items = wrote(&mut random, "grep", slot, pieces);
        if *found {
            want.push(id(&items));
        }
        store.append(&items).await.unwrap();
    }
    // One that has only begun, and one of which only output has arrived.
    let going: RunRecord = run(random.run_id(), "grep", "n", 1_000);
    let orphan = LogItem::Output(chunk(random.run_id(), 0, "needle"));
    let begun = LogItem::Output(chunk(going.run_id, 0, "needle"));
    store.append(&[begun, orphan, LogItem::Run(going.clone())]).await.unwrap();
    want.push(going.run_id);
    want.reverse();
    let page = search(&*store, &of("grep"), b"needle").await.unwrap();
    let got: Vec<_> = page.hits.iter().map(|h| h.run.run_id).collect();
    assert_eq!(got, want);
    assert_eq!((page.looked_at, page.next), (cases.len() as u64 + 1, None));
    assert!(page.bytes > 140_000, "{}", page.bytes);
    let texts: Vec<_> = page.hits.iter().rev().map(|h| h.matches[0].text.as_str()).collect();
    assert_eq!(texts[0], "a needle in hay");
    assert_eq!(texts[1], "a needle");
    assert!(texts[4].contains("\u{fffd}\0needle\0"), "{:?}", texts[4]);
    assert!(texts[5].len() < 200 && texts[5].ends_with("..needle"), "{:?}", texts[5]);
    let second = &page.hits[page.hits.len() - 2];
    assert_eq!((second.matches[0].seq, second.matches[0].stream, second.more), (0, O, false));

    let nothing = search(&*store, &of("grep"), b"no such text").await.unwrap();
    assert!(nothing.hits.is_empty() && nothing.next.is_none());
    for filter in [RunQuery { states: vec![RunState::Failed], ..of("grep") }, of("other")] {
        assert!(search(&*store, &filter, b"needle").await.unwrap().hits.is_empty());
    }
    for bad in [&b""[..], &[b'x'; 1025]] {
        let e = search(&*store, &of("grep"), bad).await.unwrap_err();
        assert!(matches!(e, StoreError::Refused { .. }), "{e}");
    }
}

/// A call looks at so much and no more, and another goes on where it stopped.
pub async fn search_is_bounded(store: Arc<dyn LogStore>) {
    let mut random = Random::new(91);
    let many = SEARCH_RUNS + 300;
    let (mut want, mut batch) = (Vec::new(), Vec::new());
    for slot in 0..many as i64 {
        let text: &[u8] = if slot % 500 == 7 { b"one\none\none\none\n" } else { b"none\n" };
        let pieces = [(Stream::Stdout, text)];
        // Most have written nothing, which costs no look.
        let pieces = if slot % 500 == 7 || slot % 50 == 0 { &pieces[..] } else { &[] };
        let items = wrote(&mut random, "bounded", slot, pieces);
        if slot % 500 == 7 {
            want.push(id(&items));
        }
        batch.extend(items);
    }
    store.append(&batch).await.unwrap();
    want.reverse();
    let line_of = |h: &meepo_core::history::SearchHit| h.matches.len() == 3 && h.more;
    for limit in [2, 1_000] {
        let mut q = RunQuery { limit: Some(limit), ..of("bounded") };
        let (mut got, mut looked, mut calls) = (Vec::new(), 0, 0);
        loop {
            let page = search(&*store, &q, b"one\n").await.unwrap();
            assert!(page.looked_at <= SEARCH_RUNS && page.hits.len() <= limit as usize);
            let hits = page.hits.iter().filter(|h| line_of(h));
            got.extend(hits.map(|h| h.run.run_id));
            (looked, calls) = (looked + page.looked_at, calls + 1);
            match page.next {
                Some(next) => q.cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(looked, many);
        assert!(calls >= 2, "{calls}");
        assert_eq!(got, want, "limit {limit}");
    }
}
