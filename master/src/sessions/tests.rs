use super::*;
use meepo_core::id::Name;

fn output(run: RunId, seqs: std::ops::Range<u64>) -> pb::Output {
    let chunks = seqs
        .map(|seq| pb::Chunk { seq, stderr: false, at_ms: 0, data: vec![b'x'].into() })
        .collect();
    pb::Output { run_id: run.to_string(), chunks }
}

fn end(run: RunId, chunks: u64) -> pb::Ended {
    let record = serde_json::json!({
        "run_id": run, "node": "127.0.0.2", "slot": "2026-01-01T00:00:00Z", "attempt": 1,
        "cause": "exec", "executor": "exec", "cmd": "x", "state": "success", "code": 0,
    });
    pb::Ended { run_id: run.to_string(), record: record.to_string().into_bytes().into(), chunks }
}

fn setup() -> (Sessions, NodeId, RunId, mpsc::Receiver<pb::MasterFrame>) {
    let sessions = Sessions::default();
    let node = Name::new("127.0.0.2").unwrap();
    let (tx, orders) = mpsc::channel(ORDERS);
    sessions.connect(node.clone(), 7, tx);
    (sessions, node, "0190a5d2-7c4e-7b1a-8000-000000000001".parse().unwrap(), orders)
}

async fn seq(s: &mut Subscription) -> u64 {
    match s.next().await {
        Event::Output(chunk) => chunk.seq,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_subscriber_sees_every_chunk_once_in_order() {
    let (sessions, node, run, mut orders) = setup();
    let mut first = sessions.follow(&node, run, 0).unwrap();
    sessions.output(output(run, 0..3));
    let mut second = sessions.follow(&node, run, 1).unwrap();
    // The worker starts over from what the slowest needs.
    sessions.output(output(run, 1..5));
    for want in 0..5 {
        assert_eq!(seq(&mut first).await, want);
    }
    for want in 1..5 {
        assert_eq!(seq(&mut second).await, want);
    }
    let order = orders.recv().await.unwrap();
    assert_eq!(order.term, 7);
}

#[tokio::test]
async fn a_slow_subscriber_asks_again_for_what_it_missed() {
    let (sessions, node, run, mut orders) = setup();
    let mut slow = sessions.follow(&node, run, 0).unwrap();
    let many = BACKLOG as u64 + 50;
    sessions.output(output(run, 0..many));
    for want in 0..BACKLOG as u64 {
        assert_eq!(seq(&mut slow).await, want);
    }
    let reading = tokio::spawn(async move { (seq(&mut slow).await, slow) });
    assert!(matches!(orders.recv().await.unwrap().frame, Some(Order::Follow(_))));
    match orders.recv().await.unwrap().frame {
        Some(Order::Follow(f)) => assert_eq!(f.after, Some(BACKLOG as u64 - 1)),
        other => panic!("{other:?}"),
    }
    sessions.output(output(run, BACKLOG as u64..many));
    assert_eq!(reading.await.unwrap().0, BACKLOG as u64);
}

#[tokio::test]
async fn a_late_subscriber_is_sent_what_it_asked_for_and_not_what_came_before_that() {
    let (sessions, node, run, _orders) = setup();
    let _first = sessions.follow(&node, run, 0).unwrap();
    sessions.output(output(run, 0..3));
    let mut second = sessions.follow(&node, run, 0).unwrap();
    // Still on its way for the first.
    sessions.output(output(run, 3..4));
    sessions.output(output(run, 0..5));
    for want in 0..5 {
        assert_eq!(seq(&mut second).await, want);
    }
}

#[tokio::test]
async fn the_end_does_not_overtake_what_was_missed() {
    let (sessions, node, run, mut orders) = setup();
    let mut late = sessions.follow(&node, run, 0).unwrap();
    orders.recv().await.unwrap();
    sessions.output(output(run, 2..3));
    sessions.ended(&end(run, 3));
    let reading = tokio::spawn(async move { (seq(&mut late).await, late) });
    assert!(matches!(orders.recv().await.unwrap().frame, Some(Order::Follow(_))));
    sessions.output(output(run, 0..3));
    sessions.ended(&end(run, 3));
    let (first, mut late) = reading.await.unwrap();
    assert_eq!((first, seq(&mut late).await, seq(&mut late).await), (0, 1, 2));
    assert!(matches!(late.next().await, Event::Ended(_)));
}

#[tokio::test]
async fn a_replaced_session_is_told_and_ends() {
    let (sessions, node, run, _orders) = setup();
    let mut s = sessions.follow(&node, run, 0).unwrap();
    let (tx, _new_orders) = mpsc::channel(ORDERS);
    let (id, token) = sessions.connect(node.clone(), 8, tx);
    assert!(matches!(s.next().await, Event::Disconnected));
    sessions.keep_only(Some(8));
    assert!(sessions.is_connected(&node) && !token.is_cancelled());
    sessions.disconnect(&node, id);
    assert!(token.is_cancelled() && sessions.is_empty());
}

#[tokio::test]
async fn a_lost_session_is_told_and_nobody_is_asked_any_more() {
    let (sessions, node, run, _orders) = setup();
    let mut s = sessions.follow(&node, run, 0).unwrap();
    sessions.keep_only(None);
    assert!(matches!(s.next().await, Event::Disconnected));
    assert!(sessions.follow(&node, run, 0).is_none() && sessions.is_empty());
}
