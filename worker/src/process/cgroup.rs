//! A control group of its own for a run that asks for one (cgroups(7), version 2; the
//! kernel's Documentation/admin-guide/cgroup-v2.rst).
//!
//! ```text
//! <root>/                    the setting `cgroup_root`, or the worker's own group
//!   meepo-<id>/              of this worker, by its data directory
//!     <run id>/              memory.max, cpu.max, pids.max; gone after the run
//! ```

use super::error::{StartError, StartProblem};
use meepo_core::{id::RunId, limits::CgroupLimits};
use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The period in which processor time is counted out, in microseconds: the kernel's own.
const PERIOD: f64 = 100_000.0;

/// Makes and removes the control groups of runs.
#[derive(Debug)]
pub struct Cgroups {
    /// The worker's group below the root, or why there is none.
    base: Result<PathBuf, String>,
    /// Groups of runs that have ended and left processes behind.
    populated: Mutex<Vec<PathBuf>>,
    /// Whether the worker's group goes with this.
    owner: bool,
}

impl Cgroups {
    /// Below `root`, or below the group this process is in. `data_dir`, which no two
    /// workers of a host share, gives the name. Nothing is made before a run asks for it.
    pub fn new(root: Option<&Path>, data_dir: &Path) -> Arc<Self> {
        Self::open(root, data_dir, true)
    }

    /// The same for a supervisor, which leaves the worker's group to the worker.
    pub(super) fn of_worker(root: Option<&Path>, data_dir: &Path) -> Arc<Self> {
        Self::open(root, data_dir, false)
    }

    fn open(root: Option<&Path>, data_dir: &Path, owner: bool) -> Arc<Self> {
        let base = match root {
            Some(root) => Ok(root.to_path_buf()),
            None => own_group(),
        };
        let base = base.and_then(|root| {
            let m = data_dir.metadata().map_err(|e| format!("{}: {e}", data_dir.display()))?;
            Ok(root.join(format!("meepo-{:x}-{:x}", m.dev(), m.ino())))
        });
        Arc::new(Self { base, populated: Mutex::default(), owner })
    }

    /// Makes the group of run `run_id` with `limits`; the command enters it by itself.
    ///
    /// # Errors
    /// What is missing on this host, and where.
    pub(super) fn create(
        self: &Arc<Self>,
        run_id: RunId,
        limits: &CgroupLimits,
    ) -> Result<Arc<RunCgroup>, StartError> {
        self.remove_empty();
        self.make(run_id, limits).map(Arc::new).map_err(|why| {
            StartError::new(
                StartProblem::Limits,
                format!("the job asks for a control group, which this node cannot give: {why}"),
            )
        })
    }

    fn make(self: &Arc<Self>, run_id: RunId, limits: &CgroupLimits) -> Result<RunCgroup, String> {
        let base = self.base.as_ref().map_err(String::clone)?;
        let root = base.parent().unwrap_or(base);
        let mut files = Vec::new();
        if let Some(memory) = limits.memory {
            files.push(("memory", "memory.max", memory.0.to_string()));
            files.push(("memory", "memory.oom.group", "1".into()));
        }
        if let Some(cores) = limits.cpu {
            files.push(("cpu", "cpu.max", format!("{:.0} {PERIOD:.0}", cores * PERIOD)));
        }
        if let Some(tasks) = limits.tasks {
            files.push(("pids", "pids.max", tasks.to_string()));
        }
        let offered = fs::read_to_string(root.join("cgroup.controllers")).map_err(|e| {
            format!(
                "{} is no control group of version 2 ({e}); set cgroup_root to one that belongs \
                 to the worker",
                root.display()
            )
        })?;
        let lacks = |c: &&str| !offered.split_whitespace().any(|o| o == *c);
        if let Some(missing) = files.iter().map(|(c, ..)| *c).find(lacks) {
            return Err(format!(
                "the controller {missing:?} is not in {}/cgroup.controllers (there: {}); it needs \
                 cgroup v2 with that controller handed down to this group",
                root.display(),
                offered.trim()
            ));
        }
        let failed =
            |what: &str, at: &Path, e: io::Error| format!("cannot {what} {}: {e}", at.display());
        let dir = base.join(run_id.to_string());
        let place = || {
            fs::create_dir_all(base).map_err(|e| failed("create", base, e))?;
            for (controller, ..) in &files {
                for parent in [root, base] {
                    hand_down(parent, controller)?;
                }
            }
            fs::create_dir(&dir).map_err(|e| failed("create", &dir, e))
        };
        // A worker that ends removes its group, also while a supervisor makes one in it.
        place().or_else(|e| if base.exists() { Err(e) } else { place() })?;
        let group = RunCgroup { dir, limits: *limits, all: self.clone() };
        for (_, file, value) in files {
            let path = group.dir.join(file);
            fs::write(&path, &value)
                .map_err(|e| failed(&format!("write {value:?} to"), &path, e))?;
        }
        Ok(group)
    }

    /// The group that run `run_id` of an earlier life left behind.
    pub(super) fn leftover(self: &Arc<Self>, run_id: RunId) -> Option<Arc<RunCgroup>> {
        let dir = self.base.as_ref().ok()?.join(run_id.to_string());
        let group = RunCgroup { dir, limits: CgroupLimits::default(), all: self.clone() };
        group.dir.is_dir().then(|| Arc::new(group))
    }

    /// Removes what an earlier life left behind, once its open runs are dealt with, but not
    /// the groups of runs that are `living`. What still has processes goes when these have
    /// ended.
    pub fn clear(&self, living: &HashSet<RunId>) {
        let Ok(base) = &self.base else { return };
        let left = fs::read_dir(base).into_iter().flatten().flatten();
        let lives = |e: &fs::DirEntry| {
            let run_id = e.file_name().to_str().and_then(|n| n.parse().ok());
            run_id.is_some_and(|id| living.contains(&id))
        };
        let dirs =
            left.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && !lives(e)).map(|e| e.path());
        self.populated.lock().unwrap_or_else(PoisonError::into_inner).extend(dirs);
        self.remove_empty();
    }

    /// Tries again to remove groups that had processes when their runs had ended.
    fn remove_empty(&self) {
        let mut left = self.populated.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|dir| !remove(dir));
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let (Ok(base), true) = (&self.base, self.owner) {
            // Unless there is still something in it.
            let _ = fs::remove_dir(base);
        }
    }
}

/// The control group of one run; removed with this, or once nothing is in it any more.
#[derive(Debug)]
pub(super) struct RunCgroup {
    dir: PathBuf,
    limits: CgroupLimits,
    all: Arc<Cgroups>,
}

impl Drop for RunCgroup {
    fn drop(&mut self) {
        if !remove(&self.dir) {
            let mut left = self.all.populated.lock().unwrap_or_else(PoisonError::into_inner);
            left.push(self.dir.clone());
        }
    }
}

impl RunCgroup {
    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The processes in it and in groups below it.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        walk(&self.dir, &mut |dir| {
            let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        });
        found
    }

    /// Kills everything in it at once, where the kernel can (5.14).
    pub(super) fn kill(&self) {
        // An older kernel lacks the file; the processes are killed one by one as well.
        let file = fs::OpenOptions::new().write(true).open(self.dir.join("cgroup.kill"));
        let _ = file.and_then(|mut f| io::Write::write_all(&mut f, b"1"));
    }

    /// What the kernel did to keep the run within its limits, in words.
    pub(super) fn told(&self) -> Option<String> {
        let count = |file: &str, event: &str| {
            let text = fs::read_to_string(self.dir.join(file)).ok()?;
            let value = text.lines().find_map(|l| l.strip_prefix(event)?.strip_prefix(' '))?;
            value.trim().parse::<u64>().ok().filter(|n| *n > 0)
        };
        let memory = self.limits.memory.and_then(|limit| {
            let n = count("memory.events", "oom_kill")?;
            Some(format!("out of memory: the kernel killed {n} processes of it (limit {limit})"))
        });
        let tasks = self.limits.tasks.and_then(|limit| {
            let n = count("pids.events", "max")?;
            Some(format!("{n} times refused a new process (limit {limit})"))
        });
        let told: Vec<String> = [memory, tasks].into_iter().flatten().collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// Lets groups below `dir` have `controller`.
fn hand_down(dir: &Path, controller: &str) -> Result<(), String> {
    let file = dir.join("cgroup.subtree_control");
    let given = fs::read_to_string(&file).unwrap_or_default();
    if given.split_whitespace().any(|c| c == controller) {
        return Ok(());
    }
    fs::write(&file, format!("+{controller}")).map_err(|e| {
        let shown = file.display();
        match e.kind() {
            // The rule of no inner processes.
            io::ErrorKind::ResourceBusy => format!(
                "{shown} does not take {controller:?}, as there are processes in that very group; \
                 set cgroup_root to a group of the worker's that holds none"
            ),
            _ => format!("{shown} does not take {controller:?}: {e}"),
        }
    })
}

/// Calls `visit` for `dir` and all groups below, children first.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

/// Removes a group and those below it; answers whether it is gone.
fn remove(dir: &Path) -> bool {
    walk(dir, &mut |dir| {
        // One with processes stays.
        let _ = fs::remove_dir(dir);
    });
    !dir.exists()
}

/// The directory of the group of version 2 that this process is in.
fn own_group() -> Result<PathBuf, String> {
    let read = |file: &str| fs::read_to_string(file).map_err(|e| format!("{file}: {e}"));
    let mounts = read("/proc/self/mountinfo")?;
    let (root, mount) = mounts.lines().find_map(cgroup2).ok_or_else(|| {
        "no cgroup v2 is mounted (/proc/self/mountinfo); boot with \
         systemd.unified_cgroup_hierarchy=1, or mount it and set cgroup_root"
            .to_owned()
    })?;
    let groups = read("/proc/self/cgroup")?;
    // The mount may show a part of the hierarchy only.
    let own = groups.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/");
    let below = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
    Ok(Path::new(mount).join(below))
}

/// What is mounted where, if this line of mountinfo is of cgroup v2; see
/// proc_pid_mountinfo(5).
fn cgroup2(line: &str) -> Option<(&str, &str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut fields = place.split(' ').skip(3);
    (kind.split(' ').next() == Some("cgroup2")).then_some((fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests;
