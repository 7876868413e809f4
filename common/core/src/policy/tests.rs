use super::*;
use proptest::prelude::*;

struct Test;

impl Host for Test {
    fn own_user(&self) -> &str {
        "root"
    }

    /// No SHA-256, but as long and different for what is tried here.
    fn sha256(&self, text: &str) -> String {
        format!("{:064x}", text.bytes().fold(7u128, |h, b| h.wrapping_mul(257) ^ u128::from(b)))
    }
}

fn allow(json: serde_json::Value) -> Allow {
    let allow: Allow = serde_json::from_value(json).unwrap();
    allow.check_lists().unwrap();
    allow
}

fn job(json: serde_json::Value) -> Assignment {
    Assignment::from_etcd(json.to_string().as_bytes()).unwrap()
}

macro_rules! json { ($($t:tt)*) => { serde_json::json!($($t)*) }; }

/// The rule that does not let a job through; empty if all do.
fn rule(allow: &Allow, j: serde_json::Value) -> &'static str {
    allow.check(&job(j), &Test).err().map_or("", |d| d.rule)
}

#[test]
fn without_lists_everything_runs_and_with_empty_ones_nothing() {
    let open = allow(json!({}));
    assert!(open.is_open());
    let all = json!({"cmd": "a;b", "user": "x", "group": "y", "cwd": "/", "env": {"PATH": "/x"}});
    assert_eq!(rule(&open, all), "");
    for list in ["users", "executors", "commands", "directories"] {
        assert_eq!(rule(&allow(json!({list: []})), json!({"cmd": "true"})), list);
    }
    let nothing = allow(json!({"scripts_sha256": []}));
    assert_eq!(rule(&nothing, json!({"cmd": "true"})), "scripts_sha256");
    assert_eq!(rule(&nothing, json!({"cmd": "true", "executor": "exec"})), "scripts_sha256");
}

#[test]
fn users_count_as_they_are_named_and_the_workers_own_has_a_name() {
    let app = allow(json!({"users": ["app"]}));
    assert_eq!(rule(&app, json!({"cmd": "x", "user": "app"})), "");
    assert_eq!(rule(&app, json!({"cmd": "x", "user": "0"})), "users");
    assert_eq!(rule(&app, json!({"cmd": "x"})), "users", "that is root");
    assert_eq!(rule(&app, json!({"cmd": "x", "user": "app", "group": "docker"})), "groups");
    let root = allow(json!({"users": ["root"], "groups": ["adm"]}));
    assert_eq!(rule(&root, json!({"cmd": "x"})), "");
    assert_eq!(rule(&root, json!({"cmd": "x", "group": "adm"})), "");
    assert_eq!(rule(&root, json!({"cmd": "x", "group": "docker"})), "groups");
    let e = app.check(&job(json!({"cmd": "x"})), &Test).unwrap_err().to_string();
    let want = "allow.users: this node does not allow to run as \"root\" (the worker's own); it \
                allows app";
    assert_eq!(e, want);
}

#[test]
fn commands_are_words_not_text() {
    let a = allow(json!({"commands": ["systemctl restart nginx", "/opt/tools/*", "backup *"]}));
    let sh = |cmd: &str| rule(&a, json!({"cmd": cmd, "executor": "sh"}));
    for fine in [
        "systemctl restart nginx",
        " systemctl  restart nginx ",
        "/opt/tools/x",
        "backup",
        "backup --all /srv/a=b",
    ] {
        assert_eq!(sh(fine), "", "{fine}");
    }
    for bad in [
        "systemctl restart nginx; id",
        "systemctl restart nginx\nid",
        "systemctl restart",
        "systemctl restart nginx now",
        "systemctl stop nginx",
        "backup $(id)",
        "backup `id`",
        "backup > /etc/passwd",
        "backup &",
        "backup | sh",
        "PATH=/tmp backup",
        "backup 'a'",
        "backup *",
        "backup ~",
        "backup {a,b}",
        "backup \\",
        "backup\t-x",
        "xbackup",
        "/opt/tools/../../bin/sh",
        "/opt/tools/x y",
        "",
        "backup é",
    ] {
        if !bad.is_empty() {
            assert_eq!(sh(bad), "commands", "{bad:?}");
        }
    }
    let exec =
        |cmd: &str, args: &[&str]| rule(&a, json!({"cmd": cmd, "executor": "exec", "args": args}));
    assert_eq!(exec("systemctl", &["restart", "nginx"]), "");
    assert_eq!(exec("backup", &["$(id)", "; id"]), "", "no shell sees them");
    assert_eq!(exec("systemctl restart nginx", &[]), "commands", "one word");
    assert_eq!(exec("systemctl", &["restart", "nginx", "x"]), "commands");
    assert_eq!(rule(&a, json!({"cmd": "backup", "executor": "python"})), "commands");
    let url = allow(json!({"commands": ["http://127.0.0.1:9/hooks/*"]}));
    let get = |url: &str| json!({"cmd": url, "executor": "http"});
    assert_eq!(rule(&url, get("http://127.0.0.1:9/hooks/a")), "");
    assert_eq!(rule(&url, get("http://127.0.0.1:9/hooks/../x")), "commands");
    assert_eq!(rule(&url, get("http://127.0.0.1:9/other")), "commands");
}

#[test]
fn a_variable_cannot_make_another_program_of_an_allowed_one() {
    let a = allow(json!({"commands": ["backup *"]}));
    let with = |env: serde_json::Value| json!({"cmd": "backup", "executor": "exec", "env": env});
    assert_eq!(rule(&a, with(json!({"PATH": "/tmp"}))), "environment");
    assert_eq!(rule(&a, with(json!({"LD_PRELOAD": "/tmp/x"}))), "environment");
    let b = allow(json!({"commands": ["backup *"], "environment": ["APP_*", "LANG"]}));
    assert_eq!(rule(&b, with(json!({"APP_A": "1", "LANG": "C"}))), "");
    assert_eq!(rule(&b, with(json!({"LANGUAGE": "C"}))), "environment");
    let users = allow(json!({"users": ["root"]}));
    assert_eq!(rule(&users, with(json!({"PATH": "/tmp"}))), "", "commands are not restricted");
}

#[test]
fn a_script_is_known_by_its_hash_and_by_nothing_else() {
    let script = "for i in 1 2; do echo $i; done";
    let a = allow(json!({"scripts_sha256": [Test.sha256(script).to_uppercase()]}));
    for executor in ["bash", "sh", "python"] {
        assert_eq!(rule(&a, json!({"cmd": script, "executor": executor, "args": ["x"]})), "");
    }
    assert_eq!(rule(&a, json!({"cmd": format!("{script} ")})), "scripts_sha256");
    assert_eq!(rule(&a, json!({"cmd": script, "executor": "exec"})), "scripts_sha256");
    let both = allow(json!({"commands": ["date"], "scripts_sha256": [Test.sha256(script)]}));
    assert_eq!(rule(&both, json!({"cmd": script})), "");
    assert_eq!(rule(&both, json!({"cmd": "date"})), "");
    let e = both.check(&job(json!({"cmd": "date; id"})), &Test).unwrap_err().to_string();
    assert!(e.contains("SHA-256"), "{e}");
}

#[test]
fn directories_hold_what_is_below_them() {
    let a = allow(json!({"directories": ["/srv/app/", "/tmp"]}));
    let cwd = |cwd: &str| rule(&a, json!({"cmd": "x", "cwd": cwd}));
    for fine in ["/srv/app", "/srv/app/", "/srv/app/x", "/tmp"] {
        assert_eq!(cwd(fine), "", "{fine}");
    }
    for bad in ["/srv", "/srv/application", "/srv/app/../x", "/", "/etc"] {
        assert_eq!(cwd(bad), "directories", "{bad}");
    }
    assert_eq!(rule(&a, json!({"cmd": "x"})), "directories");
    assert_eq!(rule(&a, json!({"cmd": "http://127.0.0.1/", "executor": "http"})), "");
    assert_eq!(rule(&allow(json!({"directories": ["/"]})), json!({"cmd": "x", "cwd": "/etc"})), "");
}

#[test]
fn lists_that_cannot_be_meant_are_refused() {
    for (bad, want) in [
        (json!({"commands": [""]}), "names no command"),
        (json!({"commands": ["*"]}), "lets everything through"),
        (json!({"scripts_sha256": ["abc"]}), "64 hexadecimal digits"),
        (json!({"directories": ["srv"]}), "absolute path"),
        (json!({"directories": ["/a/../b"]}), "absolute path"),
    ] {
        let allow: Allow = serde_json::from_value(bad).unwrap();
        let e = allow.check_lists().unwrap_err();
        assert!(e.contains(want), "{e}");
    }
    assert!(serde_json::from_value::<Allow>(json!({"user": ["a"]})).is_err());
}

proptest! {
    /// What a shell would take for more than one command, or expand, is never plain.
    #[test]
    fn what_is_plain_means_nothing_to_a_shell(script in "[ -~\n\t]{0,24}") {
        if let Some(words) = plain_words(&script) {
            prop_assert!(!words.is_empty());
            let special = "\n\t;&|<>()$`\\\"'*?[]#~{}!^";
            prop_assert!(!script.contains(|c| special.contains(c)), "{:?}", script);
            prop_assert_eq!(script.split_whitespace().collect::<Vec<_>>(), words);
        }
    }

    /// A further list lets through less, never more.
    #[test]
    fn lists_only_take_away(
        cmd in "[a-c;/.]{1,4}", user in prop::option::of("[ab]"), cwd in prop::option::of("/[ab]"),
        users in prop::option::of(prop::collection::vec("[ab]", 0..3)),
        directories in prop::option::of(prop::collection::vec("/[ab]", 0..3)),
        commands in prop::option::of(prop::collection::vec("[a-c]{1,3}", 0..3)),
    ) {
        let mut job = Assignment::new(cmd);
        (job.user, job.cwd) = (user, cwd);
        let all = Allow { users, directories, commands, ..Allow::default() };
        if all.check(&job, &Test).is_ok() {
            for less in [
                Allow { users: None, ..all.clone() },
                Allow { directories: None, ..all.clone() },
                Allow { commands: None, ..all.clone() },
            ] {
                prop_assert_eq!(less.check(&job, &Test), Ok(()));
            }
        }
    }
}
