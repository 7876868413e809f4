//! The command line: login, logout, whoami, users, tokens, roles.

use super::Guarded;
use crate::fleet::quick;
use meepo_tests::{Output, Spec, binary, run};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt};

struct Shell<'a> {
    guarded: &'a Guarded,
    home: std::path::PathBuf,
    n: std::cell::Cell<u32>,
}

impl Shell<'_> {
    /// A command, with a text on its standard input and perhaps a token in the environment.
    async fn meepo(&self, input: &str, token: Option<&str>, args: &[&str]) -> Output {
        self.n.set(self.n.get() + 1);
        let name = format!("shell-{}", self.n.get());
        // What is read is in a file: a secret is no argument.
        let file = self.guarded.cluster.dir().join(format!("{name}.in"));
        fs::write(&file, input).unwrap();
        let script = format!("exec \"$0\" \"$@\" < {}", file.display());
        let meepo = binary("meepo");
        let mut all = vec!["-c", &script, meepo.to_str().unwrap()];
        all.extend(args);
        let mut spec = Spec::new(&name, "bash", &all, self.guarded.cluster.dir());
        spec.env.push(("MEEPO_MASTER".into(), self.guarded.cluster.api().base().into()));
        spec.env.push(("HOME".into(), self.home.display().to_string()));
        spec.env.push(("XDG_CONFIG_HOME".into(), String::new()));
        spec.env.push(("MEEPO_TOKEN".into(), token.unwrap_or_default().into()));
        run(spec).await
    }
}

#[tokio::test]
async fn somebody_logs_in_works_and_logs_out() {
    let guarded = Guarded::start(quick().workers(0)).await;
    let home = guarded.cluster.dir().join("home");
    fs::create_dir(&home).unwrap();
    let shell = Shell { guarded: &guarded, home: home.clone(), n: Default::default() };
    let admin = guarded.admin.token().unwrap().to_owned();

    let out = shell.meepo("", None, &["job", "list"]).await;
    assert_eq!(out.code, 7, "{out:?}");
    assert!(out.stderr.contains("meepo login"), "{out:?}");

    // Roles, users and passwords, with the token of the first start.
    let role =
        "name: looks\ngrants:\n  - permissions: [job.read, node.read]\n    from: [127.0.0.0/8]\n";
    shell.meepo(role, Some(&admin), &["role", "put", "-f", "-"]).await.ok();
    shell.meepo("", Some(&admin), &["user", "put", "ann", "--role", "looks"]).await.ok();
    let passwd = ["user", "passwd", "ann", "--password-stdin"];
    shell.meepo("correct horse battery\n", Some(&admin), &passwd).await.ok();
    let roles = shell.meepo("", Some(&admin), &["role", "list"]).await;
    assert!(roles.ok().contains("job.read, node.read; from 127.0.0.0/8"), "{roles:?}");
    let users = shell.meepo("", Some(&admin), &["user", "list", "-o", "json"]).await.json();
    let ann = users.as_array().unwrap().iter().find(|u| u["name"] == "ann").unwrap();
    assert_eq!((&ann["password"], &ann["roles"][0]), (&Value::Bool(true), &Value::from("looks")));

    // Wrong, then right.
    let login = ["login", "--user", "ann", "--password-stdin"];
    let out = shell.meepo("wrong horse battery\n", None, &login).await;
    assert_eq!(out.code, 7, "{out:?}");
    let out = shell.meepo("correct horse battery\n", None, &login).await;
    out.ok();
    let file = home.join(".config/meepo/credentials");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let who = shell.meepo("", None, &["whoami", "-o", "json"]).await.json();
    assert_eq!((&who["user"], &who["via"]), (&Value::from("ann"), &Value::from("token")));
    shell.meepo("", None, &["job", "list"]).await.ok();
    let out = shell.meepo("", None, &["user", "list"]).await;
    assert_eq!(out.code, 7, "{out:?}");
    assert!(out.stderr.contains("user.read"), "{out:?}");

    // A token of one's own, for a script; the variable counts before the file.
    let out =
        shell.meepo("", None, &["token", "create", "--description", "ci", "--ttl", "1h"]).await;
    let token = out.ok().trim().to_owned();
    assert!(token.starts_with("meepo_") && out.stderr.contains("shown this once"), "{out:?}");
    let list = shell.meepo("", Some(&token), &["token", "list"]).await;
    assert!(list.ok().contains("ci") && !list.stdout.contains(&token), "{list:?}");
    let id = token.split('_').nth(1).unwrap();
    shell.meepo("", None, &["token", "revoke", id]).await.ok();
    let out = shell.meepo("", Some(&token), &["job", "list"]).await;
    assert_eq!(out.code, 7, "{out:?}");

    // A file that others may read is not used, and says why.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let out = shell.meepo("", None, &["job", "list"]).await;
    assert_eq!(out.code, 2, "{out:?}");
    assert!(out.stderr.contains("0644") && out.stderr.contains("0600"), "{out:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

    let kept = fs::read_to_string(&file).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let kept = kept["masters"][guarded.cluster.api().base()]["token"].as_str().unwrap().to_owned();
    shell.meepo("", None, &["logout"]).await.ok();
    assert!(!fs::read_to_string(&file).unwrap().contains(&kept));
    assert_eq!(guarded.cluster.api().with_token(&kept).get("/v1/whoami").await.0, 401);
    assert_eq!(shell.meepo("", None, &["job", "list"]).await.code, 7);

    // A token that somebody was given.
    shell.meepo(&format!("{admin}\n"), None, &["login", "--token-stdin"]).await.ok();
    let who = shell.meepo("", None, &["whoami"]).await;
    assert!(who.ok().starts_with("admin (by token)"), "{who:?}");
    let out = shell.meepo("", None, &["user", "delete", "admin"]).await;
    assert_eq!(out.code, 5, "{out:?}");
    shell.meepo("", None, &["user", "delete", "ann"]).await.ok();
    shell.meepo("", None, &["role", "delete", "looks"]).await.ok();
    // It goes nowhere where others could read it on the way.
    let away = ["--master", "http://192.0.2.1:7600", "job", "list"];
    let out = shell.meepo("", Some(&admin), &away).await;
    assert_eq!(out.code, 2, "{out:?}");
    assert!(out.stderr.contains("not encrypted") && !out.stderr.contains(&admin), "{out:?}");
}
