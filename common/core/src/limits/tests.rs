use super::*;
use crate::input::from_value;
use serde_json::json;

#[test]
fn sizes_are_read_and_written() {
    for (text, bytes) in [
        ("0", 0),
        ("1000", 1000),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("2 GiB", 2 << 30),
        ("1TB", 1 << 40),
        ("7b", 7),
    ] {
        assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
    }
    for bad in ["", "M", "-1", "1.5G", "5X", "1MM", "20000000T", "0x10", "1e3"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
    }
    let shown: Vec<_> =
        [0, 1, 1024, 1536, 3 << 30].map(|b| ByteSize(b).to_string()).into_iter().collect();
    assert_eq!(shown, ["0", "1", "1K", "1536", "3G"]);
}

#[test]
fn each_resource_reads_its_own_unit() {
    let limits: Rlimits = from_value(json!({
        "nofile": 1024, "nproc": "64", "core": "unlimited", "fsize": "1G", "as": "30M",
        "cpu": "30m", "stack": 8192, "memlock": "64K", "data": "0"
    }))
    .unwrap();
    let given: Vec<_> = limits.given().collect();
    let at = |n| Limit(Some(n));
    assert_eq!(
        given,
        [
            ("nofile", at(1024)),
            ("nproc", at(64)),
            ("core", Limit(None)),
            ("fsize", at(1 << 30)),
            ("as", at(30 << 20)),
            ("cpu", at(1800)),
            ("stack", at(8192)),
            ("memlock", at(64 << 10)),
            ("data", at(0)),
        ]
    );
    let again: Rlimits = serde_json::from_value(serde_json::to_value(limits).unwrap()).unwrap();
    assert_eq!(again, limits);
    assert_eq!(serde_json::to_value(Rlimits::default()).unwrap(), json!({}));
    let short: Rlimits = from_value(json!({"cpu": "1500ms"})).unwrap();
    assert_eq!(short.cpu, Some(at(2)));
}

#[test]
fn bad_limits_name_field_and_remedy() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Job {
        #[serde(default)]
        rlimits: Rlimits,
        #[serde(default)]
        cgroup: CgroupLimits,
        #[serde(default)]
        umask: Option<Umask>,
    }
    for (value, field) in [
        (json!({"rlimits": {"nofile": "1G"}}), "rlimits.nofile"),
        (json!({"rlimits": {"nofile": -1}}), "rlimits.nofile"),
        (json!({"rlimits": {"as": "soon"}}), "rlimits.as"),
        (json!({"rlimits": {"cpu": "1G"}}), "rlimits.cpu"),
        (json!({"rlimits": {"cpu": null}}), "rlimits.cpu"),
        (json!({"rlimits": {"rss": 1}}), "rlimits.rss"),
        (json!({"cgroup": {"memory": "lots"}}), "cgroup.memory"),
        (json!({"cgroup": {"memroy": 1}}), "cgroup.memroy"),
        (json!({"cgroup": {"cpu": "1"}}), "cgroup.cpu"),
        (json!({"umask": 27}), "umask"),
        (json!({"umask": "28"}), "umask"),
        (json!({"umask": "+27"}), "umask"),
        (json!({"umask": "01000"}), "umask"),
    ] {
        let e = from_value::<Job>(value.clone()).unwrap_err();
        assert_eq!(e.field, field, "{value}: {e}");
        assert!(!e.expected.is_empty() && !e.problem.is_empty(), "{e}");
    }
    for (limits, field) in [
        (CgroupLimits { memory: Some(ByteSize(5)), ..Default::default() }, "cgroup.memory"),
        (CgroupLimits { cpu: Some(0.0), ..Default::default() }, "cgroup.cpu"),
        (CgroupLimits { cpu: Some(f64::NAN), ..Default::default() }, "cgroup.cpu"),
        (CgroupLimits { tasks: Some(0), ..Default::default() }, "cgroup.tasks"),
    ] {
        assert_eq!(limits.validate().unwrap_err().field, field);
    }
    assert!(CgroupLimits::default().validate().is_ok());
}

#[test]
fn masks_are_octal() {
    for (text, bits) in [("0027", 0o27), ("077", 0o77), ("0", 0), ("777", 0o777)] {
        assert_eq!(text.parse::<Umask>().unwrap().bits(), bits);
    }
    assert_eq!(serde_json::to_value("22".parse::<Umask>().unwrap()).unwrap(), json!("0022"));
}
