//! `meepo etcd`: who may do what in etcd itself.

use crate::{
    args::{EtcdCommand, InitAuthArgs},
    error::{CliError, CliResult, exit},
    output::{Out, text},
};
use meepo_coord::{
    CoordError, Etcd,
    etcd::EtcdAccess,
    keys,
    users::{ROOT, Role, Step, Users, plan},
};
use meepo_core::id::{Name, NodeId};
use meepo_runtime::files::{open_own, own_dir};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Report {
    /// Commands of etcdctl that do the same, in order.
    steps: Vec<String>,
    /// Whether they were carried out.
    done: bool,
    /// The nodes whose workers have a user by now.
    nodes: Vec<NodeId>,
}

/// `etcd …`.
pub(crate) async fn run(out: &Out, command: EtcdCommand) -> CliResult<u8> {
    match command {
        EtcdCommand::InitAuth(args) => init_auth(out, args).await,
    }
}

fn refused(e: CoordError) -> CliError {
    CliError::new(exit::UNAVAILABLE, e.to_string()).at("etcd")
}

async fn init_auth(out: &Out, args: InitAuthArgs) -> CliResult<u8> {
    let wrong = |e: String| CliError::new(exit::USAGE, e);
    let by_certificate = args.tls.cert.is_some();
    let tls = args.tls.clone().resolve(&args.etcd, None).map_err(|e| wrong(format!("{e:#}")))?;
    let user = EtcdAccess::user(args.etcd_user.clone(), args.etcd_password_file.clone());
    let user = user.map_err(|e| wrong(e.to_string()))?;
    let etcd = Etcd::open(EtcdAccess { endpoints: args.etcd.clone(), tls, user });
    let etcd = etcd.await.map_err(refused)?;
    let nodes = nodes(&etcd, args.nodes).await?;
    let wanted: Vec<Role> =
        [Role::master()].into_iter().chain(nodes.iter().map(Role::worker)).collect();
    let users = Users::new(&etcd);
    let present = users.present(&wanted).await.map_err(refused)?;
    let steps = plan(&present, &wanted, args.enable);
    // Whoever cannot log in as root any more can undo nothing.
    if args.enable
        && args.passwords.is_none()
        && !by_certificate
        && !present.users.contains_key(ROOT)
    {
        return Err(CliError::usage(
            "--enable",
            "nobody could log in to etcd after that: its root would have no password, and this \
             connection has no certificate",
            "--passwords DIR, or --etcd-cert and --etcd-key with a certificate of root",
        ));
    }
    let dir = args.passwords.as_deref();
    if !args.dry_run {
        if let Some(dir) = dir {
            own_dir(dir).map_err(|e| CliError::from(e).at(dir.display().to_string()))?;
        }
        for step in &steps {
            let password = match (step, dir) {
                (Step::AddUser(user), Some(dir)) => Some(password(&file(dir, user))?),
                _ => None,
            };
            users.carry_out(step, password).await.map_err(refused)?;
        }
    }
    let steps = steps.iter().map(|step| command(step, dir)).collect();
    let report = Report { steps, done: !args.dry_run, nodes };
    out.value(&report, |_| page(&report, dir))?;
    Ok(exit::OK)
}

/// Those that are named, or else all that ever registered.
async fn nodes(etcd: &Etcd, named: Vec<Name>) -> CliResult<Vec<NodeId>> {
    if !named.is_empty() {
        return Ok(named.into_iter().collect::<BTreeSet<_>>().into_iter().collect());
    }
    let (entries, _) = etcd.list(keys::NODES, None).await.map_err(refused)?;
    Ok(entries.iter().filter_map(|e| keys::last(&e.key, keys::NODES)).collect())
}

/// Where a user's password stands.
fn file(dir: &Path, user: &str) -> PathBuf {
    dir.join(user)
}

/// The password in a file; it is made where there is none. So a user that could not be added the
/// first time gets the same.
fn password(path: &Path) -> CliResult<String> {
    let failed = |e: std::io::Error| CliError::from(e).at(path.display().to_string());
    if path.exists() {
        let mut text = String::new();
        let mut file = open_own(path, OpenOptions::new().read(true)).map_err(failed)?;
        file.read_to_string(&mut text).map_err(failed)?;
        return Ok(text.trim_end().to_owned());
    }
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut random))
        .map_err(failed)?;
    let password: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{password}\n").as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(password)
}

/// The command of etcdctl that does the same; passwords are in files.
fn command(step: &Step, passwords: Option<&Path>) -> String {
    match (step, passwords) {
        (Step::AddUser(user), Some(dir)) => {
            let path = file(dir, user).display().to_string().replace('"', "\\\"");
            format!("etcdctl user add {user} --new-user-password \"$(cat \"{path}\")\"")
        }
        _ => step.to_string(),
    }
}

fn page(report: &Report, passwords: Option<&Path>) -> String {
    let mut page: String =
        report.steps.iter().map(|s| format!("{}\n", text::one_line(s))).collect();
    if !report.done {
        return page;
    }
    let what = match report.steps.len() {
        0 => "nothing was to be done".to_owned(),
        n => format!("{} done", text::count(n, "step")),
    };
    let nodes = text::count(report.nodes.len(), "node");
    page.push_str(&format!("{what}; masters and {nodes} have users of their own\n"));
    if let Some(dir) = passwords {
        let dir = text::one_line(&dir.display().to_string());
        page.push_str(&format!("passwords are in {dir}, each in the file of its user\n"));
    }
    page
}
