//! Notifications over gRPC: a thin layer over [`Ops`](crate::ops::Ops).

use super::{
    convert::{json_from, json_value, time, word},
    public::{Answer, Public, invalid, name},
};
use meepo_core::{
    api::Applied,
    code::Code,
    error::Invalid,
    notify::{Channel, Delivery, MAX_RECENT, Message, Rule, Throttled},
};
use meepo_proto::v1::{self as pb, notify_server::Notify};
use prost_types::{Struct, value::Kind};
use serde_json::{Map, Value};
use tonic::{Request, Response, Status};

/// What a user sent, as JSON.
fn from(object: Struct) -> Value {
    let fields = object.fields.into_iter().map(|(name, value)| (name, json_from(value)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// Something of the HTTP API as a message.
fn object<T: serde::Serialize>(value: T) -> Struct {
    match serde_json::to_value(value).map(|v| json_value(v).kind) {
        Ok(Some(Kind::StructValue(object))) => object,
        _ => Struct::default(),
    }
}

fn objects<T: serde::Serialize>(all: Vec<T>) -> Response<pb::NotifyObjects> {
    Response::new(pb::NotifyObjects { objects: all.into_iter().map(object).collect() })
}

fn applied(a: Applied) -> Response<pb::NotifyApplied> {
    let (name, action) = (a.name.to_string(), word(a.action));
    Response::new(pb::NotifyApplied { name, action, revision: a.revision })
}

fn delivery(state: &str) -> Result<Option<Delivery>, Status> {
    let all = [Delivery::Pending, Delivery::Delivered, Delivery::Failed];
    match all.into_iter().find(|d| d.as_str() == state) {
        None if !state.is_empty() => {
            let problem = format!("unknown state {state:?}");
            let expected = "pending, delivered or failed";
            Err(invalid(Invalid::new(Code::BAD_VALUE, "state", problem, expected)))
        }
        found => Ok(found),
    }
}

fn notification(m: Message) -> pb::Notification {
    pb::Notification {
        digest: Some(object(&m.digest)),
        id: m.id,
        channel: m.channel.to_string(),
        rule: m.rule.unwrap_or_default(),
        at: Some(time(m.at)),
        state: m.state.as_str().to_owned(),
        attempts: m.attempts,
        due: Some(time(m.due)),
        error: m.error.unwrap_or_default(),
        held: m.held,
    }
}

fn held_back(t: Throttled) -> pb::HeldBack {
    pb::HeldBack {
        channel: t.channel.to_string(),
        messages: t.messages,
        digest: Some(object(&t.digest)),
    }
}

#[tonic::async_trait]
impl Notify for Public {
    async fn list_channels(&self, _: Request<pb::ListNotifyRequest>) -> Answer<pb::NotifyObjects> {
        Ok(objects(self.ops.list_channels().await?.channels))
    }

    async fn get_channel(&self, request: Request<pb::NotifyName>) -> Answer<Struct> {
        let name = name("name", &request.into_inner().name)?;
        Ok(Response::new(object(self.ops.get_channel(&name).await?)))
    }

    async fn put_channel(&self, request: Request<Struct>) -> Answer<pb::NotifyApplied> {
        let channel = Channel::from_user(from(request.into_inner())).map_err(invalid)?;
        Ok(applied(self.ops.put_channel(channel).await?))
    }

    async fn delete_channel(&self, request: Request<pb::NotifyName>) -> Answer<pb::NotifyApplied> {
        let name = name("name", &request.into_inner().name)?;
        Ok(applied(self.ops.delete_channel(&name).await?))
    }

    async fn test_channel(&self, request: Request<pb::NotifyName>) -> Answer<pb::TestedChannel> {
        let name = name("name", &request.into_inner().name)?;
        let tested = self.ops.test_channel(&name).await?;
        Ok(Response::new(pb::TestedChannel {
            channel: tested.channel.to_string(),
            id: tested.id,
            delivered: tested.delivered,
            error: tested.error.unwrap_or_default(),
        }))
    }

    async fn list_rules(&self, _: Request<pb::ListNotifyRequest>) -> Answer<pb::NotifyObjects> {
        Ok(objects(self.ops.list_rules().await?.rules))
    }

    async fn get_rule(&self, request: Request<pb::NotifyName>) -> Answer<Struct> {
        let name = name("name", &request.into_inner().name)?;
        Ok(Response::new(object(self.ops.get_rule(&name).await?)))
    }

    async fn put_rule(&self, request: Request<Struct>) -> Answer<pb::NotifyApplied> {
        let rule = Rule::from_user(from(request.into_inner())).map_err(invalid)?;
        Ok(applied(self.ops.put_rule(rule).await?))
    }

    async fn delete_rule(&self, request: Request<pb::NotifyName>) -> Answer<pb::NotifyApplied> {
        let name = name("name", &request.into_inner().name)?;
        Ok(applied(self.ops.delete_rule(&name).await?))
    }

    async fn list(
        &self,
        request: Request<pb::ListNotificationsRequest>,
    ) -> Answer<pb::NotificationList> {
        let r = request.into_inner();
        let limit = if r.limit == 0 { 50 } else { r.limit as usize };
        let list =
            self.ops.list_notifications(delivery(&r.state)?, limit.min(MAX_RECENT * 50)).await?;
        Ok(Response::new(pb::NotificationList {
            notifications: list.notifications.into_iter().map(notification).collect(),
            throttled: list.throttled.into_iter().map(held_back).collect(),
        }))
    }
}
