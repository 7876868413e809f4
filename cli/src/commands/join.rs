//! `meepo node join-token`.

use crate::{
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe},
        time,
    },
};
use jiff::Timestamp;
use meepo_core::{
    api::Applied,
    id::Name,
    join::{CreateJoinToken, JoinTokenList, NewJoinToken},
};
use reqwest::Method;

/// Makes a token and says how it is used.
pub(crate) async fn create(out: &Out, client: &Client, request: &CreateJoinToken) -> CliResult<u8> {
    let made: NewJoinToken =
        client.call(Method::POST, &["join-tokens"], &[], Some(request)).await?;
    out.value(&made, |_| {
        let view = &made.view;
        let node = match &view.node {
            Some(node) => format!(" --node {node}"),
            None => String::new(),
        };
        format!(
            "{}\n\nGood for {}, once, until {}. On that host:\n\n  meepo-worker join --master {}{node} \
             --token-file FILE\n\nIts id, to take it back with --revoke: {}\n",
            made.token,
            view.node.as_ref().map_or("any new node".to_owned(), |node| format!("node {node}")),
            time::local(view.expires_at),
            client.base().as_str().trim_end_matches('/'),
            view.id,
        )
    })?;
    Ok(exit::OK)
}

/// Lists tokens.
pub(crate) async fn list(out: &Out, client: &Client) -> CliResult<u8> {
    let list: JoinTokenList = client.get(&["join-tokens"], &[]).await?;
    out.value(&list, |out| {
        let now = Timestamp::now();
        let mut table = Table::new(out, &["ID", "NODE", "BY", "EXPIRES"]);
        for token in &list.tokens {
            table.row(vec![
                cell(&token.id),
                cell(token.node.as_ref().map_or("any new", Name::as_str)),
                maybe(token.created_by.as_ref()),
                cell(time::relative(token.expires_at, now)),
            ]);
        }
        table.render()
    })?;
    Ok(exit::OK)
}

/// Takes a token back.
pub(crate) async fn revoke(out: &Out, client: &Client, id: &Name) -> CliResult<u8> {
    let path = ["join-tokens", id.as_str()];
    let applied: Applied = client.call(Method::DELETE, &path, &[], None::<&()>).await?;
    out.value(&applied, |_| format!("join token {id} revoked\n"))?;
    Ok(exit::OK)
}
