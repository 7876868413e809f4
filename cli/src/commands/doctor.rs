//! `meepo doctor`: what the master says, and what can be seen from here.

use crate::{
    args::DoctorArgs,
    client::{self, Client},
    error::{CliError, CliResult, exit},
    output::{Out, text},
};
use jiff::Timestamp;
use meepo_coord::{Etcd, EtcdAccess, keys, records::LeaderRecord, records::decode};
use meepo_core::doctor::{Diagnosis, Finding, Severity};
use std::time::Duration;

/// How long this host's worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// `doctor`.
pub(crate) async fn run(out: &Out, client: &Client, args: DoctorArgs) -> CliResult<u8> {
    let asked: CliResult<Diagnosis> = client.get(&["doctor"], &[]).await;
    let mut diagnosis = match asked {
        Ok(diagnosis) => diagnosis,
        Err(e) if e.exit == exit::UNAVAILABLE => from_here(&e, &args).await,
        Err(e) => return Err(e),
    };
    if let Some(here) = own_worker(&args).await {
        let more = diagnosis.more;
        let mut findings = diagnosis.findings;
        findings.push(here);
        diagnosis = Diagnosis::new(diagnosis.by, diagnosis.at, findings);
        diagnosis.more += more;
    }
    out.value(&diagnosis, |out| page(out, &diagnosis, args.all))?;
    Ok(match diagnosis.status {
        Severity::Ok => 0,
        Severity::Warn => 1,
        Severity::Error => 2,
    })
}

/// What can be seen without a master.
async fn from_here(why: &CliError, args: &DoctorArgs) -> Diagnosis {
    let mut findings = vec![Finding::error(
        "master",
        why.problem.clone(),
        "start one (meepo-master, or meepo --server), or give its address with --master or MEEPO_MASTER",
    )];
    match etcd(args).await {
        Err(e) => findings.push(Finding::error("etcd", format!("{e:#}"), "correct --etcd")),
        Ok(etcd) => {
            findings.extend(meepo_master::doctor::of_etcd(&etcd.survey().await));
            if let Ok(leader) = etcd.for_requests().get(keys::LEADER).await {
                findings.push(match leader.and_then(|e| decode::<LeaderRecord>(&e.value).ok()) {
                    Some(leader) => Finding::ok(
                        "leader",
                        format!("{} leads; ask it with --master", leader.http),
                    ),
                    None => Finding::error(
                        "leader",
                        "no master leads",
                        "start a master, or see what the masters log",
                    ),
                });
            }
        }
    }
    Diagnosis::new("this host", Timestamp::now(), findings)
}

async fn etcd(args: &DoctorArgs) -> anyhow::Result<Etcd> {
    let access = EtcdAccess {
        endpoints: args.etcd.clone(),
        tls: args.etcd_tls.clone().resolve(&args.etcd, None)?,
        user: EtcdAccess::user(args.etcd_user.clone(), args.etcd_password_file.clone())?,
    };
    Ok(Etcd::open(access).await?)
}

/// What the worker of this host says, if there is one that is not well.
async fn own_worker(args: &DoctorArgs) -> Option<Finding> {
    let http = client::local(PATIENCE).ok()?;
    let response = http.get(format!("http://{}/healthz", args.metrics)).send().await.ok()?;
    let well = response.status().is_success();
    let text = response.text().await.ok()?;
    (!well).then(|| {
        Finding::error(
            format!("worker at {}", args.metrics),
            text.trim().to_owned(),
            "restart it and report it with its log",
        )
    })
}

fn page(out: &Out, d: &Diagnosis, all: bool) -> String {
    let mut page = String::new();
    let shown = d.findings.iter().filter(|f| all || f.severity != Severity::Ok);
    for f in shown {
        let word = match (f.severity, out.color) {
            (Severity::Error, true) => "\u{1b}[31merror\u{1b}[0m",
            (Severity::Warn, true) => "\u{1b}[33mwarn\u{1b}[0m ",
            (Severity::Ok, true) => "\u{1b}[32mok\u{1b}[0m   ",
            (Severity::Error, false) => "error",
            (Severity::Warn, false) => "warn ",
            (Severity::Ok, false) => "ok   ",
        };
        let (subject, message) = (text::one_line(&f.subject), text::one_line(&f.message));
        page.push_str(&format!("{word} {subject}: {message}\n"));
        if let Some(remedy) = &f.remedy {
            page.push_str(&format!("      -> {}\n", text::one_line(remedy)));
        }
    }
    if d.more > 0 {
        page.push_str(&format!("and {} more\n", d.more));
    }
    let count = |severity| d.findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings, well) =
        (count(Severity::Error), count(Severity::Warn), count(Severity::Ok));
    let (errors, warnings) = (text::count(errors, "error"), text::count(warnings, "warning"));
    page.push_str(&match d.status {
        Severity::Ok => {
            format!("all is well: {} looked at, by {}\n", text::count(well, "thing"), d.by)
        }
        _ => format!("{errors}, {warnings}; looked at by {}\n", d.by),
    });
    page
}
