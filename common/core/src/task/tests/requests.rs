//! Requests, and what etcd holds of them.

use super::*;

#[test]
fn requests_that_cannot_be_kept_say_why() {
    let many: Vec<_> = (0..=MAX_PARTS).map(|_| json!({"cmd": "x"})).collect();
    for (request, field, problem) in [
        (json!({"cmd": "x"}), "target", "where"),
        (json!({"target": "all"}), "cmd", "empty"),
        (json!({"target": "all", "cmd": "x", "prio": 1}), "prio", "unknown"),
        (json!({"target": "all", "cmd": "x", "schedule": "* * * * *"}), "schedule", "unknown"),
        (json!({"target": "group=", "cmd": "x"}), "target", ""),
        (json!({"target": "all", "hosts": ["a"], "cmd": "x"}), "hosts", "beside"),
        (json!({"queue": "q", "hosts": ["a"], "cmd": "x"}), "hosts", "queue"),
        (json!({"queue": "a/b", "cmd": "x"}), "queue", "'/'"),
        (json!({"target": "all", "cmd": "x", "ttr": "0s"}), "ttr", "range"),
        (
            json!({"target": "all", "cmd": "x", "delay": "1h", "at": t(0).to_string()}),
            "at",
            "beside",
        ),
        (json!({"target": "all", "cmd": "x".repeat(200_000)}), "cmd", "bytes"),
        (json!({"target": "all", "commands": [{"cmd": "x", "nope": 1}]}), "commands[0].nope", ""),
        (
            json!({"commands": [{"hosts": ["a"], "cmd": "x"}, {"cmd": "y"}]}),
            "commands[1].target",
            "where",
        ),
        (
            json!({"queue": "q", "commands": [{"hosts": ["a"], "cmd": "x"}]}),
            "commands[0].target",
            "queue",
        ),
        (json!({"hosts": ["a", "zz"], "cmd": "x"}), "hosts", "no such host: zz"),
        (json!({"target": "a or y", "cmd": "x"}), "target", "no such host: y"),
        (json!({"target": "group=none", "cmd": "x"}), "target", "matches no node"),
        (json!({"queue": "q", "commands": many}), "commands", "10001 parts"),
    ] {
        let text = request.to_string();
        let text = &text[..text.len().min(200)];
        let made = TaskRequest::from_user(request).and_then(|r| r.task(id(1), &three(), t(0)));
        let e = made.expect_err(text);
        assert_eq!(e.field, field, "{text}: {e}");
        assert!(e.problem.contains(problem), "{text}: {e}");
    }
}

#[test]
fn different_nodes_get_different_commands() {
    let mut rig = Rig::new(4);
    let commands =
        json!([{"hosts": ["a", "b"], "cmd": "one"}, {"target": "group=db", "cmd": "two"}]);
    let task = rig.put(1, json!({"commands": commands}));
    rig.at(0);
    let task = &rig.tasks.tasks[&task].value;
    let cmds: Vec<_> = (1..=3).map(|n| task.part(n).unwrap().1.cmd.as_str()).collect();
    assert_eq!(cmds, ["one", "one", "two"]);
    assert!(task.part(0).is_none() && task.part(4).is_none());
}

#[test]
fn records_keep_what_a_newer_version_wrote() {
    let task = TaskRequest::from_user(json!({"queue": "q", "cmd": "x"})).unwrap();
    let task = task.task(id(1), &three(), t(0)).unwrap();
    let mut json = serde_json::to_value(&task).unwrap();
    json["new"] = json!({"a": 1});
    let back: Task = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
    let part = Part::pending(&task, 1);
    let mut json = serde_json::to_value(&part).unwrap();
    json["new"] = json!(7);
    let back: Part = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
}

#[test]
fn ids_are_read_as_they_are_written() {
    let part = PartId { task: id(7), n: 12 };
    assert_eq!(part.to_string().parse::<TaskRef>().unwrap(), TaskRef::Part(part));
    assert_eq!(id(7).to_string().parse::<TaskRef>().unwrap(), TaskRef::Task(id(7)));
    assert_eq!(part.name().as_str(), part.to_string());
    for bad in
        ["", "x", "1.2", &format!("{}.0", id(7)), &format!("{}.+1", id(7)), &format!("{}.", id(7))]
    {
        assert!(bad.parse::<TaskRef>().is_err(), "{bad}");
    }
}

#[test]
fn requests_are_told_apart() {
    let digest = |v: Value| TaskRequest::from_user(v).unwrap().digest();
    let one = json!({"queue": "q", "cmd": "x"});
    assert_eq!(digest(one.clone()), digest(json!({"cmd": "x", "queue": "q"})));
    assert_ne!(digest(one), digest(json!({"queue": "q", "cmd": "y"})));
}
