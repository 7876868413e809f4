//! Checks of many things at once: processes, callers, large batches, both stores.

use super::{Random, at, chunk, listing::every_page, model::Model, name, run};
use crate::{LogItem, LogStore, RunQuery};
use futures::future::join_all;
use meepo_core::{
    code::TABLE,
    id::{Name, RunId},
    run::{Cause, RunState},
};
use std::sync::Arc;

/// `stores` are several handles on one empty place, as several processes have. All
/// migrate at once: each step is applied by exactly one of them, and then there is
/// nothing left to do.
pub async fn migrations(stores: &[Arc<dyn LogStore>]) {
    let pending = stores[0].pending_migrations().await.unwrap();
    let applied = join_all(stores.iter().map(|s| s.migrate())).await;
    let mut names: Vec<String> = applied.into_iter().flat_map(Result::unwrap).collect();
    names.sort();
    assert!(!names.is_empty(), "an empty store needs no migration?");
    for (i, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}_", i + 1)), "{names:?}");
    }
    assert_eq!(pending, names);
    for store in stores {
        assert_eq!(store.pending_migrations().await.unwrap(), Vec::<String>::new());
        assert_eq!(store.migrate().await.unwrap(), Vec::<String>::new());
    }
}

/// Callers that append overlapping batches at once leave what one would have left.
/// Records that could win by chance carry the same content.
pub async fn concurrent_appends(store: Arc<dyn LogStore>) {
    let mut random = Random::new(30);
    let ids: Vec<_> = (0..25).map(|_| random.run_id()).collect();
    let mut items = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let mut r = run(*id, "conc-job", "conc-node", i as i64 * 7);
        for state in [RunState::Running, RunState::Lost, RunState::Success] {
            r.state = state;
            items.push(LogItem::Run(r.clone()));
        }
        items.extend((0..20).map(|s| LogItem::Output(chunk(*id, s, random.bytes(100)))));
    }
    let tasks = (0..8).map(|n| {
        let (store, mut mine, mut random) = (store.clone(), items.clone(), Random::new(31 + n));
        tokio::spawn(async move {
            random.shuffle(&mut mine);
            for batch in mine.chunks(40) {
                store.append(batch).await.unwrap();
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let mut model = Model::default();
    model.append(&items);
    let q = RunQuery { job: Some(name("conc-job")), limit: Some(7), ..RunQuery::default() };
    assert_eq!(every_page(&*store, &q).await, model.matching(&q));
    for id in ids {
        assert_eq!(store.output(id, None, 100).await.unwrap(), model.output(id, None, 100));
    }
}

/// A batch larger than any message or document a driver may send is kept whole.
pub async fn large_batch(store: Arc<dyn LogStore>) {
    const MIB: usize = 1024 * 1024;
    let mut random = Random::new(32);
    let id = random.run_id();
    let mut batch = Vec::new();
    for seq in 0..12_000 {
        let len = random.below(200);
        batch.push(LogItem::Output(chunk(id, seq, random.bytes(len))));
    }
    for seq in 12_000..12_009 {
        batch.push(LogItem::Output(chunk(id, seq, random.bytes(7 * MIB))));
    }
    for i in 0..3_000 {
        let mut r = run(random.run_id(), "large-job", "large-node", i);
        if i % 600 == 0 {
            r.cmd = "$x".repeat(3 * MIB);
        }
        batch.push(LogItem::Run(r));
    }
    let mut model = Model::default();
    model.append(&batch);
    store.append(&batch).await.unwrap();
    let q = RunQuery { job: Some(name("large-job")), limit: Some(1_000), ..RunQuery::default() };
    assert!(every_page(&*store, &q).await == model.matching(&q), "runs of a large batch");
    let mut after = None;
    loop {
        let got = store.output(id, after, usize::MAX).await.unwrap();
        assert!(got == model.output(id, after, usize::MAX), "output after {after:?}");
        let Some(last) = got.last() else { break };
        after = Some(last.seq);
    }
    assert_eq!(after, Some(12_008));
}

/// Several stores given the same seeded workload agree with the model and so with
/// each other, at every step. The stores must be empty and migrated.
pub async fn same_answers(stores: &[Arc<dyn LogStore>], seed: u64) {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let jobs: Vec<_> = (0..6).map(|i| name(&format!("job-{i}"))).collect();
    let nodes: Vec<_> = (0..4).map(|i| name(&format!("10.0.0.{i}"))).collect();
    let mut known: Vec<RunId> = Vec::new();
    for step in 0..60 {
        let batch: Vec<_> = (0..random.below(30))
            .map(|_| random_item(&mut random, &mut known, &jobs, &nodes))
            .collect();
        model.append(&batch);
        // The same items may be delivered again, and the same run seen from two sides.
        let times = 1 + random.below(2);
        for store in stores {
            for _ in 0..times {
                store.append(&batch).await.unwrap();
            }
        }
        let q = random_query(&mut random, &jobs, &nodes);
        let id = if known.is_empty() { random.run_id() } else { random.pick(&known) };
        let after = (!random.once_in(3)).then(|| random.number() % 12);
        let limit = random.below(8);
        let mut pages = Vec::new();
        for store in stores {
            assert_eq!(store.get_run(id).await.unwrap(), model.get_run(id), "step {step}");
            let got = every_page(&**store, &q).await;
            assert_eq!(got, model.matching(&q), "step {step}: {q:?}");
            let got = store.output(id, after, limit).await.unwrap();
            assert_eq!(got, model.output(id, after, limit), "step {step}: {id} {after:?}");
            assert_eq!(store.last_runs(&jobs).await.unwrap(), model.last_runs(&jobs));
            let job = &jobs[step % jobs.len()];
            let mut tally = store.tally(job, q.since, q.until).await.unwrap();
            tally.sort();
            let mut want = model.tally(job, q.since, q.until);
            want.sort();
            assert_eq!(tally, want, "step {step}");
            // The cursors too: a page begun in one store can go on in another.
            pages.push(store.list_runs(&q).await.unwrap());
        }
        assert!(pages.windows(2).all(|w| w[0] == w[1]), "step {step}: {q:?}");
    }
    for store in stores {
        for id in model.run_ids() {
            assert_eq!(store.get_run(id).await.unwrap(), model.get_run(id));
            assert_eq!(store.output(id, None, 1_000).await.unwrap(), model.output(id, None, 1_000));
        }
        let q = RunQuery { limit: Some(64), ..RunQuery::default() };
        assert_eq!(every_page(&**store, &q).await, model.matching(&q));
    }
}

fn random_item(
    random: &mut Random,
    known: &mut Vec<RunId>,
    jobs: &[Name],
    nodes: &[Name],
) -> LogItem {
    let id =
        if known.is_empty() || random.once_in(3) { random.run_id() } else { random.pick(known) };
    if !known.contains(&id) {
        known.push(id);
    }
    if random.once_in(2) {
        let (seq, len) = (random.number() % 12, random.below(300));
        return LogItem::Output(chunk(id, seq, random.bytes(len)));
    }
    let slot = 1_700_000_000_000 + random.below(40) as i64 * 250;
    let mut r = run(id, "x", "x", slot);
    r.job = (!random.once_in(6)).then(|| random.pick(jobs));
    r.node = random.pick(nodes);
    r.cause = random.pick(&[Cause::Schedule, Cause::Misfire, Cause::Trigger]);
    r.state = random.pick(&RunState::ALL);
    r.attempt = 1 + random.below(3) as u32;
    r.code = random.pick(&TABLE.iter().map(|t| t.0).collect::<Vec<_>>());
    r.message = random.once_in(2).then(|| format!("$said {}", random.number()));
    r.exit_code = random.once_in(2).then(|| random.below(256) as i32);
    r.signal = random.once_in(4).then_some(9);
    r.fence = random.once_in(2).then(|| random.number() as i64);
    r.ended_at = random.once_in(2).then(|| at(slot + random.below(99_999) as i64));
    r.output_bytes = random.number() >> 1;
    LogItem::Run(r)
}

fn random_query(random: &mut Random, jobs: &[Name], nodes: &[Name]) -> RunQuery {
    let slot = |random: &mut Random| at(1_700_000_000_000 + random.below(10_000) as i64);
    RunQuery {
        job: random.once_in(3).then(|| random.pick(jobs)),
        node: random.once_in(3).then(|| random.pick(nodes)),
        states: (0..random.below(4)).map(|_| random.pick(&RunState::ALL)).collect(),
        cause: random.once_in(5).then_some(Cause::Trigger),
        since: random.once_in(3).then(|| slot(random)),
        until: random.once_in(3).then(|| slot(random)),
        limit: Some(1 + random.below(40) as u32),
        ..RunQuery::default()
    }
}
