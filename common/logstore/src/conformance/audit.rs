//! Checks of the audit.

use super::{Random, at};
use crate::{AuditQuery, LogStore};
use jiff::Timestamp;
use meepo_core::{
    audit::{AuditRecord, AuditResult},
    code::Code,
};
use std::sync::Arc;

fn record(random: &mut Random, n: i64, actor: &str) -> AuditRecord {
    // Ids that sort by time, as those of version 7 do.
    let time = u128::from((1_700_000_000_000 + n) as u64) << 80;
    let rest = u128::from(random.number()) | (0x7 << 76) | (0b10 << 62);
    let operations = ["job.apply", "job.delete", "jobs.other", "node.drain"];
    let objects = ["job/a", "job/ab", "jobs/a", "node/10.0.0.7"];
    AuditRecord {
        id: uuid::Uuid::from_u128(time | rest),
        at: at(1_700_000_000_000 + n),
        actor: actor.to_owned(),
        verified: false,
        address: "127.0.0.1:4711".into(),
        forwarded_for: (n % 2 == 0).then(|| "10.1.2.3, ü".into()),
        method: "POST /v1/jobs".into(),
        operation: random.pick(&operations).into(),
        object: random.pick(&objects).into(),
        result: random.pick(&AuditResult::ALL),
        status: "201".into(),
        code: random.once_in(2).then_some(Code::CONFLICT),
        message: random.once_in(2).then(|| "no \" '\n".to_owned()),
        details: [("cmd".to_owned(), format!("echo {n}"))].into(),
        request_id: n.to_string(),
        trace_id: None,
        master: "http://127.0.0.1:7600".into(),
    }
}

async fn all(store: &Arc<dyn LogStore>, query: AuditQuery) -> Vec<AuditRecord> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.list_audit(&AuditQuery { cursor, ..query.clone() }).await.unwrap();
        assert!(page.records.len() <= query.limit.unwrap_or(50) as usize);
        found.extend(page.records);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}

/// What is kept comes back as it was, newest first, by every filter, in pages.
pub async fn audit_lists(store: Arc<dyn LogStore>) {
    let mut random = Random::new(90);
    let mut records: Vec<AuditRecord> =
        (0..60).map(|n| record(&mut random, n, ["ann", "bob"][n as usize % 2])).collect();
    let mut shuffled = records.clone();
    random.shuffle(&mut shuffled);
    store.append_audit(&[]).await.unwrap();
    for some in shuffled.chunks(25) {
        store.append_audit(some).await.unwrap();
    }
    records.sort_by_key(|r| std::cmp::Reverse(r.id));
    let instant = |n: i64| -> Timestamp { at(1_700_000_000_000 + n) };
    type Fits = Box<dyn Fn(&AuditRecord) -> bool>;
    let cases: Vec<(AuditQuery, Fits)> = vec![
        (AuditQuery::default(), Box::new(|_| true)),
        (
            AuditQuery { actor: Some("ann".into()), ..Default::default() },
            Box::new(|r| r.actor == "ann"),
        ),
        (
            AuditQuery { operation: Some("job.apply".into()), ..Default::default() },
            Box::new(|r| r.operation == "job.apply"),
        ),
        (
            AuditQuery { operation: Some("job.".into()), ..Default::default() },
            Box::new(|r| r.operation.starts_with("job.")),
        ),
        (
            AuditQuery { object: Some("job/".into()), ..Default::default() },
            Box::new(|r| r.object.starts_with("job/")),
        ),
        (
            AuditQuery { object: Some("job/a".into()), ..Default::default() },
            Box::new(|r| r.object == "job/a"),
        ),
        (
            AuditQuery { result: Some(AuditResult::Failed), ..Default::default() },
            Box::new(|r| r.result == AuditResult::Failed),
        ),
        (
            AuditQuery { since: Some(instant(10)), until: Some(instant(40)), ..Default::default() },
            Box::new(move |r| r.at >= instant(10) && r.at < instant(40)),
        ),
        (
            AuditQuery {
                actor: Some("bob".into()),
                object: Some("job/".into()),
                since: Some(instant(5)),
                ..Default::default()
            },
            Box::new(move |r| {
                r.actor == "bob" && r.object.starts_with("job/") && r.at >= instant(5)
            }),
        ),
        (AuditQuery { actor: Some("nobody".into()), ..Default::default() }, Box::new(|_| false)),
    ];
    for (query, fits) in cases {
        let want: Vec<AuditRecord> = records.iter().filter(|r| fits(r)).cloned().collect();
        for limit in [None, Some(7), Some(1)] {
            let query = AuditQuery { limit, ..query.clone() };
            assert_eq!(all(&store, query.clone()).await, want, "{query:?}");
        }
    }
    let bad = AuditQuery { cursor: Some("x".into()), ..Default::default() };
    let e = store.list_audit(&bad).await.unwrap_err();
    assert!(matches!(e, crate::StoreError::Refused { .. }), "{e}");
}

/// What is older than the retention says goes, and nothing else.
pub async fn audit_is_swept(store: Arc<dyn LogStore>) {
    let mut random = Random::new(92);
    let old = record(&mut random, -3_600_000, "old");
    let young = record(&mut random, 0, "young");
    store.append_audit(&[old, young.clone()]).await.unwrap();
    let mut retention = crate::Retention::FOREVER;
    let minute = std::time::Duration::from_secs(60);
    retention.set(crate::Class::Audit, crate::Keep::For(minute));
    let now = at(1_700_000_000_000 + 30_000);
    let swept = store.sweep(&retention, now).await.unwrap();
    assert!(swept.audit >= 1, "{swept:?}");
    for (actor, want) in [("old", vec![]), ("young", vec![young])] {
        let query = AuditQuery { actor: Some(actor.into()), ..Default::default() };
        assert_eq!(all(&store, query).await, want);
    }
}

/// One that is handed in again, in whatever form, stays as it was first.
pub async fn audit_records_do_not_change(store: Arc<dyn LogStore>) {
    let mut random = Random::new(91);
    let mut first = record(&mut random, 1_000_000, "carl");
    first.actor = "carl".into();
    let second = record(&mut random, 1_000_001, "carl");
    store.append_audit(std::slice::from_ref(&first)).await.unwrap();
    let forged = AuditRecord { message: Some("forged".into()), ..first.clone() };
    store.append_audit(&[forged, second.clone()]).await.unwrap();
    let query = AuditQuery { actor: Some("carl".into()), ..Default::default() };
    assert_eq!(all(&store, query).await, [second, first]);
}
