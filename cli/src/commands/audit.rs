//! `meepo audit list`.

use crate::{
    args::AuditArgs,
    client::Client,
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe},
        text, time,
    },
};
use jiff::Timestamp;
use meepo_core::audit::{AuditList, AuditRecord};

/// Records asked for at once.
const PAGE: u32 = 500;
/// Widest column of details, in characters.
const DETAILS_WIDTH: usize = 60;

/// `audit list`.
pub(crate) async fn list(out: &Out, client: &Client, args: AuditArgs) -> CliResult<u8> {
    let now = Timestamp::now();
    let instant = |option: &str, text: &Option<String>| -> CliResult<Option<String>> {
        let at = text.as_ref().map(|t| time::parse_since(option, t, now)).transpose()?;
        Ok(at.map(|t| t.to_string()))
    };
    let (since, until) = (instant("--since", &args.since)?, instant("--until", &args.until)?);
    let (mut records, mut cursor) = (Vec::new(), None);
    loop {
        let left = args.n - records.len() as u32;
        let query = [
            ("since", since.clone()),
            ("until", until.clone()),
            ("actor", args.actor.clone()),
            ("operation", args.operation.clone()),
            ("object", args.object.clone()),
            ("result", args.result.map(|r| r.to_string())),
            ("limit", Some(left.min(PAGE).to_string())),
            ("cursor", cursor.take()),
        ];
        let page: AuditList = client.get(&["audit"], &query).await?;
        records.extend(page.records.into_iter().take(left as usize));
        cursor = page.next;
        if cursor.is_none() || records.len() >= args.n as usize {
            break;
        }
    }
    out.value(&records, |out| table(out, &records))?;
    Ok(exit::OK)
}

fn table(out: &Out, records: &[AuditRecord]) -> String {
    if records.is_empty() {
        return "no records\n".to_owned();
    }
    let header = ["AT", "ACTOR", "FROM", "OPERATION", "OBJECT", "RESULT", "STATUS", "DETAILS"];
    let mut table = Table::new(out, &header);
    for r in records {
        let actor = match r.verified {
            true => r.actor.clone(),
            // Nothing but the client's word stands for it.
            false => format!("{}?", r.actor),
        };
        let mut details: Vec<String> = r.message.iter().cloned().collect();
        details.extend(r.details.iter().map(|(key, value)| format!("{key}={value}")));
        let details = text::shorten(&text::one_line(&details.join(" ")), DETAILS_WIDTH);
        table.row(vec![
            cell(time::local(r.at)),
            cell(actor),
            cell(&r.address),
            cell(&r.operation),
            maybe(Some(&r.object).filter(|o| !o.is_empty())),
            cell(r.result.as_str()),
            cell(&r.status),
            cell(details),
        ]);
    }
    table.render()
}
