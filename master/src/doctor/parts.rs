//! What is to be said of etcd.

use meepo_coord::survey::{Alarm, Survey};
use meepo_core::doctor::Finding;
use std::time::Duration;

/// A read that takes longer is slow, and one that takes longer than the second too slow.
const SLOW: Duration = Duration::from_millis(100);
const TOO_SLOW: Duration = Duration::from_secs(1);
/// The quota of a database unless set, and the share of it that is worth a word.
const QUOTA: u64 = 2 << 30;
const NEARLY: u64 = QUOTA / 4 * 3;
const SUBJECT: &str = "etcd";

/// What a survey of etcd has found.
pub fn of_etcd(survey: &Survey) -> Vec<Finding> {
    let mut found = Vec::new();
    let (all, there) = (survey.members.len(), survey.members.iter().filter(|m| m.state.is_ok()));
    let there = there.count();
    match &survey.read {
        Err(e) => found.push(Finding::error(
            SUBJECT,
            format!("it does not answer, or has no quorum: {e}"),
            "start its members (more than half of them must run and reach each other), or correct the \
             setting `etcd`; meanwhile jobs that run on each node go on, nothing can be changed, and \
             jobs that run once in the cluster wait",
        )),
        Ok(took) if *took > SLOW => {
            let ms = took.as_millis();
            let message = format!("a read confirmed by a quorum takes {ms} ms");
            let remedy = "etcd wants a quick disk and network of its own; see its metrics \
                          etcd_disk_wal_fsync_duration_seconds and etcd_network_peer_round_trip_time_seconds";
            found.push(match *took > TOO_SLOW {
                true => Finding::error(SUBJECT, message, remedy),
                false => Finding::warn(SUBJECT, message, remedy),
            });
        }
        Ok(_) => {}
    }
    for member in &survey.members {
        let (name, url) = (&member.name, &member.url);
        let state = match &member.state {
            Ok(state) => state,
            Err(why) => {
                let spare = there.saturating_sub(all / 2 + 1);
                found.push(Finding::error(
                    SUBJECT,
                    format!(
                        "member {name} ({url}) does not answer: {why}; {there} of {all} do, and {spare} more \
                         may fail before nothing can be changed"
                    ),
                    "start it again; if its host is gone, replace it (etcdctl member remove, member add)",
                ));
                continue;
            }
        };
        if !state.has_leader {
            found.push(Finding::error(
                SUBJECT,
                format!("member {name} ({url}) knows no leader"),
                "see whether it reaches the other members",
            ));
        }
        for error in state.errors.iter().filter(|e| !e.contains("alarm")) {
            found.push(Finding::warn(
                SUBJECT,
                format!("member {name} says: {error}"),
                "see its log",
            ));
        }
        if state.db_size > NEARLY {
            found.push(Finding::warn(
                SUBJECT,
                format!(
                    "the database of member {name} has {} MiB; etcd takes no writes beyond its quota, \
                     2048 MiB unless --quota-backend-bytes says otherwise",
                    state.db_size >> 20
                ),
                "let it compact (--auto-compaction-retention=1h) and give the space back: etcdctl defrag, \
                 one member after the other",
            ));
        }
        found.extend(of_version(name, &state.version));
    }
    for alarm in &survey.alarms {
        found.push(match alarm {
            Alarm::NoSpace => Finding::error(
                SUBJECT,
                "its database is full (alarm NOSPACE): it takes no writes",
                "compact and defragment (etcdctl compact, etcdctl defrag), then etcdctl alarm disarm",
            ),
            Alarm::Corrupt => Finding::error(
                SUBJECT,
                "the data of its members differ (alarm CORRUPT)",
                "find the member that is wrong (etcdctl endpoint hashkv --cluster), replace it, then \
                 etcdctl alarm disarm",
            ),
        });
    }
    if found.is_empty()
        && let Ok(took) = &survey.read
    {
        let version = survey.members.iter().find_map(|m| m.state.as_ref().ok());
        let version = version.map_or(String::new(), |s| format!(", version {}", s.version));
        let members = if all == 1 { "1 member".to_owned() } else { format!("{all} members") };
        let ms = took.as_secs_f64() * 1000.0;
        found.push(Finding::ok(
            SUBJECT,
            format!("{members} answer; a read confirmed by a quorum takes {ms:.1} ms{version}"),
        ));
    }
    if let Some(Ok(state)) = survey.members.first().map(|m| &m.state)
        && state.version.starts_with("3.4.")
    {
        // It cannot be asked for.
        found.push(Finding::ok(
            SUBJECT,
            "etcd 3.4 wants --backend-batch-limit=1000 (ETCD_BACKEND_BATCH_LIMIT): claims take a third of \
             the time with it; whether it is set cannot be seen from here",
        ));
    }
    found
}

/// A version that meepo is not tested with.
fn of_version(name: &str, version: &str) -> Option<Finding> {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let known = major == 3 && minor >= 4;
    (!known).then(|| {
        Finding::warn(
            SUBJECT,
            format!("member {name} is of version {version}"),
            "meepo is made for etcd 3.4 and later ones of version 3",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_coord::{
        CoordError,
        survey::{Member, MemberState},
    };
    use meepo_core::doctor::Severity;

    fn good() -> MemberState {
        MemberState { version: "3.5.9".into(), db_size: 1000, has_leader: true, errors: vec![] }
    }

    fn survey(states: Vec<Result<MemberState, String>>) -> Survey {
        let member = |(i, state)| Member { name: format!("m{i}"), url: "http://m".into(), state };
        Survey {
            read: Ok(Duration::from_millis(3)),
            members: states.into_iter().enumerate().map(member).collect(),
            alarms: vec![],
        }
    }

    fn worst(survey: &Survey) -> Finding {
        of_etcd(survey).into_iter().max_by_key(|f| f.severity).unwrap()
    }

    #[test]
    fn etcd_is_judged_in_words() {
        use Severity::{Error, Ok as Fine, Warn};
        let well = survey(vec![Ok(good())]);
        assert!(of_etcd(&well)[0].message.contains("3.0 ms, version 3.5.9"), "{well:?}");
        let away = CoordError::Timeout { op: "get", key: "k".into(), waited: SLOW };
        let huge = MemberState { db_size: 1_900 << 20, ..good() };
        let old = MemberState { version: "3.3.1".into(), ..good() };
        let hinted = MemberState { version: "3.4.23".into(), ..good() };
        let lonely = MemberState { has_leader: false, ..good() };
        let three = || vec![Ok(good()), Ok(good()), Err("refused".into())];
        for (survey, severity, words) in [
            (well, Fine, "1 member answer"),
            (Survey { read: Err(away), ..survey(vec![]) }, Error, "no quorum"),
            (Survey { read: Ok(SLOW * 2), ..survey(vec![Ok(good())]) }, Warn, "takes 200 ms"),
            (Survey { read: Ok(TOO_SLOW * 2), ..survey(vec![Ok(good())]) }, Error, "takes 2000 ms"),
            (survey(three()), Error, "2 of 3 do, and 0 more"),
            (survey(vec![Ok(huge)]), Warn, "has 1900 MiB"),
            (survey(vec![Ok(old)]), Warn, "version 3.3.1"),
            (survey(vec![Ok(lonely)]), Error, "knows no leader"),
            (Survey { alarms: vec![Alarm::NoSpace], ..survey(vec![Ok(good())]) }, Error, "NOSPACE"),
        ] {
            let found = worst(&survey);
            assert_eq!(found.severity, severity, "{survey:?}: {found:?}");
            assert!(found.message.contains(words), "{found:?}");
        }
        let found = of_etcd(&survey(vec![Ok(hinted)]));
        assert!(
            found.len() == 2 && found[1].message.contains("--backend-batch-limit"),
            "{found:?}"
        );
    }
}
