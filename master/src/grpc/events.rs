//! What happens in the fleet, as a stream.

use super::{
    convert,
    public::{Answer, Events as Stream, Public, invalid, optional},
};
use crate::events::{Begin, Item};
use futures::StreamExt;
use meepo_core::event::{Event, Filter};
use meepo_proto::v1::{self as pb, event_item, events_server::Events};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

#[tonic::async_trait]
impl Events for Public {
    type WatchStream = Stream<pb::EventItem>;

    async fn watch(&self, request: Request<pb::WatchEventsRequest>) -> Answer<Self::WatchStream> {
        let r = request.into_inner();
        let list = |text: String| optional(text);
        let (kind, job, node, task) = (list(r.kind), list(r.job), list(r.node), list(r.task));
        let filter =
            Filter::parse(kind.as_deref(), job.as_deref(), node.as_deref(), task.as_deref());
        let begin = match (optional(r.after), r.recent) {
            (Some(after), _) => Begin::After(after.parse().map_err(invalid)?),
            (None, 0) => Begin::Now,
            (None, n) => Begin::Recent(n as usize),
        };
        let items = self.ops.listen_events(filter.map_err(invalid)?, begin, !r.no_follow).await?;
        let items = ReceiverStream::new(items).map(|item| {
            let item = match item {
                Item::Event(e) => event_item::Item::Event(event(&e)),
                Item::At(id) => event_item::Item::Position(id.to_string()),
                Item::End(e) => return Err(e.into()),
            };
            Ok(pb::EventItem { item: Some(item) })
        });
        Ok(Response::new(Box::pin(items)))
    }
}

fn event(e: &Event) -> pb::Event {
    fn text<T: ToString>(value: &Option<T>) -> String {
        value.as_ref().map(T::to_string).unwrap_or_default()
    }
    pb::Event {
        id: e.id.to_string(),
        r#type: e.what.to_string(),
        at: e.at.map(convert::time),
        job: text(&e.job),
        node: text(&e.node),
        task: text(&e.task),
        part: e.part.unwrap_or(0),
        run_id: text(&e.run_id),
        state: text(&e.state),
        code: e.code.map(|c| c.0.into()),
        labels: e.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        master: text(&e.master),
        term: e.term.unwrap_or(0),
        after: text(&e.after),
        message: text(&e.message),
    }
}
