//! `meepo tls`: an authority and its certificates, as files on this host.

use crate::{
    args::{InitArgs, IssueArgs, Kind, Named, RenewArgs, TlsCommand},
    error::{CliError, CliResult, exit},
    output::{
        Out,
        table::{Table, cell, verdict},
        time,
    },
};
use anyhow::{Context, ensure};
use jiff::Timestamp;
use meepo_core::id::Name;
use meepo_runtime::{
    files::private_dir,
    tls::{Authority, Identity, Subject, certificates, replace_pair, x509},
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Does what `meepo tls` says.
pub(crate) fn run(out: &Out, command: TlsCommand) -> CliResult<u8> {
    let failed = |e: anyhow::Error| CliError::new(exit::FAILED, format!("{e:#}"));
    match command {
        TlsCommand::Init(args) => out.text(&init(&args).map_err(failed)?)?,
        TlsCommand::Issue(args) => out.text(&issue(&args).map_err(failed)?)?,
        TlsCommand::Renew(args) => out.text(&renew(&args).map_err(failed)?)?,
        TlsCommand::Show { dir, files } => {
            let shown = show(&dir.dir, files).map_err(failed)?;
            out.value(&shown, |out| page(out, &shown))?;
        }
    }
    Ok(exit::OK)
}

fn authority(dir: &Path) -> anyhow::Result<Authority> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    ensure!(
        cert.exists() && key.exists(),
        "there is no authority in {} (ca.pem and ca.key); expected one made by `meepo tls init`, \
         or another directory with --dir",
        dir.display()
    );
    Authority::load(&cert, &key)
}

fn init(args: &InitArgs) -> anyhow::Result<String> {
    let dir = &args.dir.dir;
    private_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    ensure!(
        !cert.exists() && !key.exists(),
        "there is an authority in {} already; `meepo tls issue` makes certificates of it, another \
         one goes into another directory with --dir",
        dir.display()
    );
    // Each has a name of its own: two of one name would be taken for each other, until their
    // signatures do not hold.
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let name = format!("meepo {}", &unique[unique.len() - 8..]);
    let made = Authority::create(&name, args.ca_days)?;
    replace_pair(&cert, &key, &made)?;
    let authority = authority(dir)?;
    let mut text = format!(
        "authority {} made\n  {}  for everybody: tls.ca, --ca\n  {}  keep it safe: whoever has it \
         is everybody\n",
        authority.facts().fingerprint,
        cert.display(),
        key.display()
    );
    let of_etcd = args.cert.iter().any(|named| named.kind == Kind::Etcd);
    let root = Named { kind: Kind::EtcdUser, name: Name::new("root")?, hosts: Vec::new() };
    for named in args.cert.iter().chain(of_etcd.then_some(&root)) {
        text.push_str(&make(&authority, dir, named, args.days)?);
    }
    Ok(text)
}

fn issue(args: &IssueArgs) -> anyhow::Result<String> {
    let dir = &args.dir.dir;
    let (kind, name, hosts) = (args.kind, args.name.clone(), args.hosts.clone());
    make(&authority(dir)?, dir, &Named { kind, name, hosts }, args.days)
}

/// Makes one certificate; answers what is to be said of it.
fn make(authority: &Authority, dir: &Path, named: &Named, days: u32) -> anyhow::Result<String> {
    let stem = stem(named);
    let (cert, key) = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
    ensure!(
        !cert.exists() && !key.exists(),
        "{} is there already; `meepo tls renew` makes it anew",
        cert.display()
    );
    let issued = authority.issue(&subject(named), days)?;
    replace_pair(&cert, &key, &issued)?;
    Ok(format!("  {}, {}\n", cert.display(), key.display()))
}

/// What the files are called: `node-10.0.0.7`.
fn stem(named: &Named) -> String {
    let kind = match named.kind {
        Kind::Master => "master",
        Kind::Node => "node",
        Kind::Client => "client",
        Kind::Etcd => "etcd",
        Kind::Server => "server",
        Kind::EtcdUser => "etcd-user",
    };
    format!("{kind}-{}", named.name)
}

fn subject(named: &Named) -> Subject {
    let kind = named.kind;
    let name = named.name.to_string();
    let hosts = match (named.hosts.is_empty(), kind) {
        (false, _) => named.hosts.clone(),
        (true, Kind::Client | Kind::EtcdUser) => Vec::new(),
        // An id with a colon that is no address is no host name either.
        (true, _) if name.contains(':') && name.parse::<std::net::IpAddr>().is_err() => Vec::new(),
        (true, _) => vec![name.clone()],
    };
    match kind {
        Kind::Master => Subject::of(Identity::Master(name), hosts),
        Kind::Node => Subject::of(Identity::Node(name), hosts),
        Kind::Client => Subject::of(Identity::Client(name), hosts),
        Kind::Etcd | Kind::Server => {
            Subject { common_name: name, identity: None, hosts, server: true }
        }
        Kind::EtcdUser => Subject { common_name: name, identity: None, hosts, server: false },
    }
}

fn renew(args: &RenewArgs) -> anyhow::Result<String> {
    let dir = &args.dir.dir;
    let authority = authority(dir)?;
    let files = if args.files.is_empty() { all_of(dir)? } else { args.files.clone() };
    let mut text = String::new();
    for cert in files {
        let (der, facts) = first(&cert)?;
        if facts.authority {
            continue;
        }
        let key = cert.with_extension("key");
        ensure!(key.exists(), "{}: its key {} is missing", cert.display(), key.display());
        ensure!(
            authority.has_signed(&der),
            "{} is not of the authority in {}; expected another directory with --dir",
            cert.display(),
            dir.display()
        );
        let left = facts.not_after.duration_since(Timestamp::now());
        if left.unsigned_abs() > args.within.0 && left.is_positive() {
            continue;
        }
        let issued = authority.issue(&Subject::from_facts(&facts), args.days)?;
        replace_pair(&cert, &key, &issued)?;
        let until = first(&cert)?.1.not_after;
        text.push_str(&format!("{} renewed, valid until {until}\n", cert.display()));
    }
    if text.is_empty() {
        text.push_str("nothing to renew\n");
    }
    Ok(text)
}

/// What the first certificate of a file says, which is whose it is.
fn first(path: &Path) -> anyhow::Result<(Vec<u8>, x509::Facts)> {
    let found = certificates(path)?;
    let facts = found.first().and_then(|der| Some((der.to_vec(), x509::facts(der)?)));
    facts.with_context(|| format!("{}: the certificate cannot be read", path.display()))
}

/// The certificates of a directory, in order.
fn all_of(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = read.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "pem"));
    files.sort();
    Ok(files)
}

/// One certificate, as shown.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    /// `node:10.0.0.7`, or the common name where it is not one of meepo's.
    subject: String,
    hosts: Vec<String>,
    issuer: String,
    not_before: Timestamp,
    not_after: Timestamp,
    authority: bool,
    fingerprint: String,
}

fn show(dir: &Path, files: Vec<PathBuf>) -> anyhow::Result<Vec<Shown>> {
    let files = if files.is_empty() { all_of(dir)? } else { files };
    let mut shown = Vec::new();
    for file in files {
        for der in certificates(&file)? {
            let facts = x509::facts(&der)
                .with_context(|| format!("{}: the certificate cannot be read", file.display()))?;
            let named = facts.identity.as_ref().map(Identity::to_string);
            shown.push(Shown {
                file: file.display().to_string(),
                subject: named.unwrap_or(facts.common_name),
                hosts: facts.hosts,
                issuer: facts.issuer,
                not_before: facts.not_before,
                not_after: facts.not_after,
                authority: facts.authority,
                fingerprint: facts.fingerprint,
            });
        }
    }
    Ok(shown)
}

fn page(out: &Out, shown: &[Shown]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(out, &["FILE", "WHOSE", "HOSTS", "ISSUER", "EXPIRES"]);
    for s in shown {
        let whose =
            if s.authority { format!("authority {}", s.subject) } else { s.subject.clone() };
        let expires = match s.not_after > now {
            true => time::relative(s.not_after, now),
            false => format!("expired {}", time::relative(s.not_after, now)),
        };
        let hosts = if s.hosts.is_empty() { "-".to_owned() } else { s.hosts.join(",") };
        table.row(vec![
            cell(&s.file),
            cell(whose),
            cell(hosts),
            cell(&s.issuer),
            verdict(expires, s.not_after > now),
        ]);
    }
    table.render()
}
