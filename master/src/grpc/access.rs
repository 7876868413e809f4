//! Users, tokens and roles over gRPC: the documents of the HTTP API.

use super::{
    convert::{json_from, json_value},
    public::{Answer, Public, invalid, name},
};
use meepo_core::{auth::Role, input::from_value};
use meepo_proto::v1::{self as pb, access_server::Access};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tonic::{Request, Response, Status};

type Document = prost_types::Struct;

/// What a document says, with its field `name` or `id` taken out where that stands in the path
/// over HTTP.
fn read<T: DeserializeOwned>(request: Request<Document>) -> Result<T, Status> {
    from_value(Value::Object(fields(request))).map_err(invalid)
}

fn fields(request: Request<Document>) -> Map<String, Value> {
    let fields = request.into_inner().fields;
    fields.into_iter().map(|(name, value)| (name, json_from(value))).collect()
}

fn named<T: DeserializeOwned>(
    request: Request<Document>,
) -> Result<(meepo_core::id::Name, T), Status> {
    let mut fields = fields(request);
    let text = fields.remove("name");
    let of = name("name", text.as_ref().and_then(Value::as_str).unwrap_or_default())?;
    Ok((of, from_value(Value::Object(fields)).map_err(invalid)?))
}

fn write<T: Serialize>(value: &T) -> Answer<Document> {
    let value = serde_json::to_value(value).map_err(|_| Status::internal("cannot be written"))?;
    match json_value(value).kind {
        Some(prost_types::value::Kind::StructValue(document)) => Ok(Response::new(document)),
        _ => Err(Status::internal("cannot be written")),
    }
}

#[tonic::async_trait]
impl Access for Public {
    async fn login(&self, request: Request<Document>) -> Answer<Document> {
        write(&self.ops.auth.login(read(request)?).await?)
    }

    async fn logout(&self, _: Request<()>) -> Answer<Document> {
        write(&self.ops.auth.logout().await?)
    }

    async fn who_am_i(&self, _: Request<()>) -> Answer<Document> {
        write(&self.ops.auth.who_am_i())
    }

    async fn list_users(&self, _: Request<()>) -> Answer<Document> {
        write(&self.ops.auth.list_users().await?)
    }

    async fn put_user(&self, request: Request<Document>) -> Answer<Document> {
        let (name, user) = named(request)?;
        write(&self.ops.auth.put_user(&name, user).await?)
    }

    async fn delete_user(&self, request: Request<pb::AccessName>) -> Answer<Document> {
        let name = name("name", &request.into_inner().name)?;
        write(&self.ops.auth.delete_user(&name).await?)
    }

    async fn set_password(&self, request: Request<Document>) -> Answer<Document> {
        let (name, password) = named(request)?;
        write(&self.ops.auth.set_password(&name, password).await?)
    }

    async fn list_tokens(&self, _: Request<()>) -> Answer<Document> {
        write(&self.ops.auth.list_tokens().await?)
    }

    async fn create_token(&self, request: Request<Document>) -> Answer<Document> {
        write(&self.ops.auth.create_token(read(request)?).await?)
    }

    async fn revoke_token(&self, request: Request<pb::AccessName>) -> Answer<Document> {
        write(&self.ops.auth.revoke_token(&request.into_inner().name).await?)
    }

    async fn list_roles(&self, _: Request<()>) -> Answer<Document> {
        write(&self.ops.auth.list_roles().await?)
    }

    async fn put_role(&self, request: Request<Document>) -> Answer<Document> {
        let role = Role::from_user(Value::Object(fields(request))).map_err(invalid)?;
        write(&self.ops.auth.put_role(role).await?)
    }

    async fn delete_role(&self, request: Request<pb::AccessName>) -> Answer<Document> {
        let name = name("name", &request.into_inner().name)?;
        write(&self.ops.auth.delete_role(&name).await?)
    }
}
