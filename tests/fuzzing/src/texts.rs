//! What people write.

use jiff::Timestamp;
use meepo_core::{
    calendar::{Schedule, time_zone},
    crontab::{self, Import, Kind},
    id::Name,
    job::JobSpec,
    node::{Facts, NodeInfo},
    target::{MAX_TARGET, Target},
    tree::JobDocument,
};
use serde_json::Value;
use std::{collections::BTreeMap, hint::black_box};

/// Instants around which clocks do odd things, and some that nobody lives to see.
const INSTANTS: [i64; 6] = [
    -2_000_000_000,
    0,
    1_774_745_999,   // the clocks of Europe go forward
    1_792_893_599,   // … and back
    1_709_164_800,   // 29 February
    253_402_300_000, // the end of the year 9999
];

/// An expression that is accepted has slots in order, after the instant asked for.
pub(crate) fn cron(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let schedule = match Schedule::parse(text) {
        Ok(schedule) => schedule,
        Err(e) => {
            assert!(!e.problem.is_empty() && !e.expected.is_empty(), "{e:?}");
            return;
        }
    };
    for zone in ["UTC", "Europe/London", "America/St_Johns"] {
        let zone = time_zone(zone).ok();
        let zone = zone.unwrap_or(jiff::tz::TimeZone::UTC);
        for instant in INSTANTS {
            let Ok(mut at) = Timestamp::from_second(instant) else { continue };
            for _ in 0..3 {
                let Some(next) = schedule.next_after(at, &zone) else { break };
                assert!(next > at, "{text:?}: {next} after {at}");
                let between = at + (next.duration_since(at) / 2);
                if between > at {
                    let again = schedule.next_after(between, &zone);
                    assert_eq!(again, Some(next), "{text:?}: after {between} and {at}");
                }
                at = next;
            }
        }
    }
}

/// A target that is accepted is shown as it parses, and selects.
pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let target = match Target::parse(text) {
        Ok(target) => target,
        Err(e) => {
            let column = e.problem.strip_prefix("column ").and_then(|p| p.split(':').next());
            let column = column.and_then(|c| c.parse::<usize>().ok());
            let last = text.chars().count() + 1;
            assert!(column.is_none_or(|c| (1..=last).contains(&c)), "{text:?}: {e}");
            return;
        }
    };
    let shown = target.to_string();
    match Target::parse(&shown) {
        Ok(again) => assert_eq!(again, target, "{text:?} is shown as {shown:?}"),
        Err(e) => assert!(shown.len() > MAX_TARGET, "{text:?} is shown as {shown:?}: {e}"),
    }
    let nodes = nodes();
    let meant = target.select(&nodes);
    assert!(meant.iter().all(|n| target.matches(n)), "{text:?}");
    black_box((target.ids(), target.asks_for_load(), target.asks_for_live_facts()));
}

fn nodes() -> Vec<NodeInfo> {
    let node = |n: u32| {
        let id = Name::new(&format!("10.0.0.{n}")).ok()?;
        let labels = [("group", "web"), ("role", "db"), ("tree", "shop/cart")];
        let labels = labels.into_iter().take(n as usize).map(|(k, v)| (k.into(), v.into()));
        let labels: BTreeMap<String, String> = labels.collect();
        Some(NodeInfo { id, online: n != 2, drained: n == 3, labels, facts: Facts::default() })
    };
    (1..5).filter_map(node).collect()
}

/// Every line of a crontab becomes an entry or a problem; entries become jobs that are
/// accepted, unless what cron allows is too long for one.
pub(crate) fn crontab(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for kind in [Kind::System, Kind::User] {
        let (entries, problems) = crontab::parse(text, kind);
        let lines = text.split('\n').count();
        assert!(entries.len() + problems.len() <= lines);
        for problem in &problems {
            assert!(problem.line >= 1 && problem.line <= lines && !problem.reason.is_empty());
        }
        for entry in &entries {
            let import =
                Import { file: "/etc/crontab", target: "h", timezone: None, user: Some("u") };
            let job = entry.to_job(&import);
            assert!(Schedule::parse(&entry.schedule).is_ok(), "{entry:?}");
            black_box(serde_json::to_value(&job).map(JobSpec::from_user).is_ok());
        }
    }
}

/// A definition that is accepted is accepted again as it is shown, and stays what it is.
pub(crate) fn jobs(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let options = serde_saphyr::options! { strict_booleans: true };
    let yaml = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    let json = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let json: Result<Vec<Value>, _> = json.collect();
    let documents = yaml.into_iter().chain(json).flatten().flat_map(|document| match document {
        Value::Array(items) => items,
        document => vec![document],
    });
    for document in documents {
        let Ok(accepted) = JobDocument::from_user(document) else { continue };
        let Some(spec) = accepted.spec() else { continue };
        let shown = serde_json::to_value(&spec).unwrap_or_default();
        let again = JobSpec::from_user(shown.clone());
        assert_eq!(again.as_ref(), Ok(&spec), "{shown}");
        black_box(spec.assignment(Some(1), Vec::new()));
    }
}
