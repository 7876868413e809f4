//! Whoever listens to events by HTTP.

use crate::fleet::SOON;
use meepo_tests::Api;
use serde_json::Value;
use tokio::time::timeout;

/// Events as they come, by HTTP.
pub(crate) struct Listener {
    response: reqwest::Response,
    text: String,
    /// The place, as a browser keeps it.
    pub(crate) place: String,
    /// What came before the place, which only a gap does.
    first: Option<Block>,
}

/// A block of lines.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block {
    pub(super) event: String,
    pub(super) data: Value,
}

impl Listener {
    /// Listens; it has begun when this returns.
    pub(crate) async fn open(api: &Api, query: &str, last: Option<&str>) -> Self {
        let url = format!("{}/v1/events?{query}", api.base());
        let mut request = reqwest::Client::new().get(&url);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{url}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (text, place) = (String::new(), String::new());
        let mut listener = Self { response, text, place, first: None };
        // The first block says how soon to come back, the second where it stands.
        while listener.place.is_empty() {
            listener.first = listener.block().await.unwrap();
        }
        listener
    }

    /// The next block; of those that only tell the place, nothing. `Err` at the end.
    pub(super) async fn block(&mut self) -> Result<Option<Block>, String> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (mut event, mut data) = (String::new(), None);
                for line in block.lines() {
                    match line.split_once(": ").unwrap() {
                        ("id", id) => id.clone_into(&mut self.place),
                        ("event", name) => name.clone_into(&mut event),
                        ("data", json) => data = Some(serde_json::from_str(json).unwrap()),
                        _ => {}
                    }
                }
                self.text = rest.to_owned();
                return Ok(data.map(|data| Block { event, data }));
            }
            let chunk = timeout(SOON, self.response.chunk()).await.expect("something comes");
            match chunk.map_err(|e| e.to_string())? {
                Some(bytes) => self.text.push_str(std::str::from_utf8(&bytes).unwrap()),
                None => return Err("the end".into()),
            }
        }
    }

    /// The next event. Signs of life come all the time: they are no reason to wait on.
    pub(super) async fn next(&mut self) -> Value {
        timeout(SOON, self.next_event()).await.expect("an event comes")
    }

    async fn next_event(&mut self) -> Value {
        loop {
            if let Some(block) = self.block().await.unwrap() {
                assert_ne!(block.event, "error", "{}", block.data);
                let what = block.data["type"].as_str().unwrap();
                assert_eq!(what.split('.').next().unwrap(), block.event);
                assert_eq!(block.data["id"], self.place.as_str());
                return block.data;
            }
        }
    }

    /// The next event; nothing when the stream breaks off or ends.
    pub(crate) async fn next_unless_broken(&mut self) -> Option<Value> {
        loop {
            if let Some(block) = self.block().await.ok()? {
                assert_ne!(block.event, "error", "{}", block.data);
                return Some(block.data);
            }
        }
    }

    /// Events up to the first of that name, itself included.
    pub(super) async fn until(&mut self, what: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            events.push(self.next().await);
            if events.last().unwrap()["type"] == what {
                return events;
            }
        }
    }

    /// The next event of that name; others are passed over.
    pub(crate) async fn find(&mut self, what: &str) -> Value {
        self.until(what).await.pop().unwrap()
    }

    /// All that is left of a stream that ends.
    pub(super) async fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            match self.block().await {
                Ok(Some(block)) => events.push(block.data),
                Ok(None) => {}
                Err(_) => return events,
            }
        }
    }
}
