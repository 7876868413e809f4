use super::*;
use meepo_core::limits::ByteSize;

const LIMITS: CgroupLimits =
    CgroupLimits { memory: Some(ByteSize(512 << 20)), cpu: Some(1.5), tasks: Some(100) };

fn id() -> RunId {
    RunId(uuid::Uuid::now_v7())
}

/// A directory that looks like a control group with these controllers.
fn fake(controllers: &str) -> (tempfile::TempDir, Arc<Cgroups>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
    let all = Cgroups::new(Some(dir.path()), dir.path());
    (dir, all)
}

#[test]
fn limits_become_files() {
    let (dir, all) = fake("cpuset cpu io memory pids\n");
    let group = all.create(id(), &LIMITS).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    for (file, value) in [
        ("memory.max", "536870912"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("pids.max", "100"),
    ] {
        assert_eq!(read(&group.dir().join(file)), value, "{file}");
    }
    // The last one written; a real file takes each as an order.
    assert_eq!(read(&dir.path().join("cgroup.subtree_control")), "+pids");
    let base = group.dir().parent().unwrap();
    assert_eq!(read(&base.join("cgroup.subtree_control")), "+pids");
    assert_eq!(base.parent(), Some(dir.path()));
    fs::write(group.dir().join("memory.events"), "oom 2\noom_kill 3\noom_group_kill 1\n").unwrap();
    fs::write(group.dir().join("pids.events"), "max 0\n").unwrap();
    let told = group.told().unwrap();
    assert_eq!(told, "out of memory: the kernel killed 3 processes of it (limit 512M)");
    // Nothing is written where nothing is asked for.
    let plain = all.create(id(), &CgroupLimits::default()).unwrap();
    assert_eq!(fs::read_dir(plain.dir()).unwrap().count(), 0);
    assert_eq!(plain.told(), None);
}

#[test]
fn what_is_missing_is_said() {
    let nothing = tempfile::tempdir().unwrap();
    let none = Cgroups::new(Some(nothing.path()), nothing.path());
    let (_dir, few) = fake("cpu pids\n");
    for (all, part) in [(none, "no control group of version 2"), (few, "\"memory\" is not in")] {
        let e = all.create(id(), &LIMITS).unwrap_err();
        assert_eq!(e.problem, StartProblem::Limits);
        assert!(e.message.contains(part), "{e}");
    }
}

#[test]
fn the_mount_is_found_by_its_kind() {
    let v2 = "41 31 0:38 /part /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw";
    assert_eq!(cgroup2(v2), Some(("/part", "/sys/fs/cgroup")));
    assert_eq!(cgroup2("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
}

#[test]
fn groups_are_removed_when_they_are_empty_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    // The host's own, which needs no controllers for this.
    let all = Cgroups::new(None, dir.path());
    let run = id();
    let group = all.create(run, &CgroupLimits::default()).unwrap();
    let path = group.dir().to_path_buf();
    let base = path.parent().unwrap().to_path_buf();
    fs::create_dir(path.join("inner")).unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(path.join("inner/cgroup.procs"), child.id().to_string()).unwrap();
    assert_eq!(group.processes(), [child.id()]);
    drop(group);
    assert!(path.exists(), "a process is in it");
    let found = all.leftover(run).unwrap();
    assert_eq!(found.dir(), path);
    found.kill();
    assert!(!child.wait().unwrap().success());
    drop(found);
    let living = all.create(id(), &CgroupLimits::default()).unwrap();
    let its = living.dir().to_path_buf();
    all.clear(&its.file_name().unwrap().to_str().unwrap().parse().into_iter().collect());
    assert!(its.exists());
    drop(living);
    assert!(!path.exists() && base.exists());
    assert!(all.leftover(run).is_none());
    drop(Cgroups::of_worker(None, dir.path()));
    assert!(base.exists(), "a supervisor leaves it alone");
    drop(all);
    assert!(!base.exists());
}
