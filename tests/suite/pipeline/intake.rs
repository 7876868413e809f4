//! A master holds so much of what workers bring at a time, and says so to who brings more.

use crate::fleet::{SOON, quick};
use meepo_proto::internal::{self as pb, item, workers_client::WorkersClient};
use meepo_tests::{Api, Cluster, Logs, eventually};
use tonic::{Code, Status, transport::Channel};
use uuid::Uuid;

/// Bytes of output in a piece, and pieces of a batch: just less than a message may have.
const PIECE: usize = 64 << 10;
const PIECES: u64 = 240;

/// Output of a run of its own.
fn batch() -> pb::DeliverRequest {
    let chunk = |seq| pb::Chunk {
        seq,
        stderr: false,
        at_ms: jiff::Timestamp::now().as_millisecond(),
        data: vec![b'x'; PIECE].into(),
    };
    let run_id = Uuid::now_v7().to_string();
    let output = pb::Output { run_id, chunks: (0..PIECES).map(chunk).collect() };
    let items = vec![pb::Item { item: Some(item::Item::Output(output)) }];
    pb::DeliverRequest { node: "127.0.0.2".into(), items }
}

async fn metric(api: &Api, name: &str) -> u64 {
    let (_, page) = api.get("/metrics").await;
    let text = page.as_str().unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

async fn deliver(channel: &Channel) -> Result<(), Status> {
    let mut client = WorkersClient::new(channel.clone()).max_encoding_message_size(16 << 20);
    client.deliver(batch()).await.map(drop)
}

#[tokio::test]
async fn what_is_beyond_sixty_four_mebibytes_is_refused_until_there_is_room() {
    let cluster: Cluster = quick().workers(0).logs(Logs::OwnMongo).start().await;
    let api = cluster.api();
    let url = cluster.master(0).grpc_url();
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    deliver(&channel).await.unwrap();
    cluster.mongo().pause();
    // Four of them are 60 MiB, and one more does not fit.
    let held: Vec<_> = (0..4)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { deliver(&channel).await })
        })
        .collect();
    eventually(SOON, "four batches are held", async || {
        match metric(&api, "meepo_master_receiving_bytes").await {
            n if n > 59 << 20 => Ok(()),
            n => Err(n.to_string()),
        }
    })
    .await;
    let refused = deliver(&channel).await.unwrap_err();
    assert!(matches!(refused.code(), Code::ResourceExhausted | Code::Unavailable), "{refused:?}");
    assert!(refused.message().contains("more batches of workers"), "{refused:?}");
    assert!(metric(&api, "meepo_master_receiving_refused_total").await >= 1);
    cluster.mongo().resume();
    for one in held {
        // What took too long was refused as well, and the worker would bring it again.
        let _ = one.await.unwrap();
    }
    eventually(SOON, "there is room again", async || {
        deliver(&channel).await.map_err(|e| e.to_string())
    })
    .await;
    eventually(SOON, "nothing is held", async || {
        match metric(&api, "meepo_master_receiving_bytes").await {
            0 => Ok(()),
            n => Err(n.to_string()),
        }
    })
    .await;
}
