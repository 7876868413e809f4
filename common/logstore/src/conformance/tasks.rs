//! Checks of tasks.

use super::{Random, at, name};
use crate::{LogStore, TaskQuery};
use meepo_core::task::{TaskId, TaskRequest, TaskState, TaskView, view::Counts};
use std::{collections::BTreeMap, sync::Arc};

pub(super) fn task(random: &mut Random, n: usize, queue: &str, state: TaskState) -> TaskView {
    let request = serde_json::json!({"queue": queue, "commands": vec![serde_json::json!({"cmd": format!("echo ' \" \u{1F600} {n}")}); n]});
    let request = TaskRequest::from_user(request).unwrap();
    let id = TaskId(random.run_id().0);
    let task = request.task(id, &BTreeMap::new(), at(1_700_000_000_123)).unwrap();
    TaskView { state, ended_at: Some(at(1_700_000_001_000)), ..TaskView::new(&task, |_| None) }
}

/// What is kept comes back as it was, also when it is kept again; lists leave the parts out.
pub async fn tasks_round_trip(store: Arc<dyn LogStore>) {
    let mut random = Random::new(70);
    let (one, large) = (
        task(&mut random, 1, "trip", TaskState::Success),
        task(&mut random, 3_000, "trip", TaskState::Failed),
    );
    assert_eq!(store.get_task(one.id).await.unwrap(), None);
    for _ in 0..2 {
        store.put_tasks(&[one.clone(), large.clone()]).await.unwrap();
    }
    store.put_tasks(&[]).await.unwrap();
    for kept in [&one, &large] {
        assert_eq!(store.get_task(kept.id).await.unwrap().as_ref(), Some(kept));
    }
    let all = TaskQuery { queue: Some(name("trip")), ..TaskQuery::default() };
    let mut want = [one, large].map(TaskView::without_parts);
    want.sort_by_key(|t| std::cmp::Reverse(t.id));
    assert_eq!(store.list_tasks(&all).await.unwrap(), want);
    assert_eq!(Counts::default().all(), 0);
}

/// Filters, limits and going on from a place.
pub async fn task_lists(store: Arc<dyn LogStore>) {
    let mut random = Random::new(71);
    let states = [TaskState::Success, TaskState::Failed, TaskState::Revoked];
    let mut all: Vec<TaskView> =
        (0..30).map(|n| task(&mut random, 1, ["list-a", "list-b"][n % 2], states[n % 3])).collect();
    store.put_tasks(&all).await.unwrap();
    all.sort_by_key(|t| std::cmp::Reverse(t.id));
    for queue in ["list-a", "list-b", "list-c"] {
        for wanted in [&[][..], &states[..1], &states[1..], &states[..]] {
            let fits = |t: &&TaskView| {
                t.queue == Some(name(queue)) && (wanted.is_empty() || wanted.contains(&t.state))
            };
            let want: Vec<TaskId> = all.iter().filter(fits).map(|t| t.id).collect();
            let mut got: Vec<TaskId> = Vec::new();
            loop {
                let query = TaskQuery {
                    queue: Some(name(queue)),
                    states: wanted.to_vec(),
                    before: got.last().copied(),
                    limit: Some(4),
                };
                let page = store.list_tasks(&query).await.unwrap();
                assert!(page.len() <= 4 && page.iter().all(|t| t.parts.is_empty()));
                if page.is_empty() {
                    break;
                }
                got.extend(page.iter().map(|t| t.id));
            }
            assert_eq!(got, want, "{queue} {wanted:?}");
        }
    }
    let query =
        TaskQuery { states: vec![TaskState::Revoked], limit: Some(3), ..Default::default() };
    let page = store.list_tasks(&query).await.unwrap();
    assert!(page.len() == 3 && page.iter().all(|t| t.state == TaskState::Revoked));
}
