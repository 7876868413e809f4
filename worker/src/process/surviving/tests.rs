use super::{files::encode, supervisor::supervise, *};
use crate::process::{Cgroups, KillPlan, KillReason, OutputHub};
use meepo_core::{
    code::Code,
    job::Executor,
    run::{OutputChunk, RunState, Stream},
};
use std::process::Child;
use tokio::{task::JoinHandle, time::timeout};

const DEADLINE: Duration = Duration::from_secs(30);

/// A data directory with one run in it.
struct Place {
    surviving: Surviving,
    files: Files,
    run_id: RunId,
    dir: tempfile::TempDir,
}

impl Place {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let leftovers = Leftovers::new(Cgroups::new(None, dir.path()));
        let surviving = Surviving::new(dir.path(), None, leftovers);
        let run_id = RunId(uuid::Uuid::now_v7());
        let files = surviving.files(run_id);
        let mut command = Command::new(Executor::Sh, script);
        command.env.insert("DIR".into(), dir.path().to_str().unwrap().into());
        command.env.insert("MEEPO_RUN_ID".into(), run_id.to_string());
        let assignment = Arc::new(Assignment::new(script));
        let (data_dir, cgroup_root) = (dir.path().into(), None);
        files.create(&Order { run_id, command, assignment, data_dir, cgroup_root }).unwrap();
        Self { surviving, files, run_id, dir }
    }

    /// A supervisor in this process, once it is ready.
    async fn supervise(&self) -> JoinHandle<()> {
        let (files, order) = (self.files.clone(), self.files.order().unwrap().unwrap());
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let supervising = tokio::spawn(async move {
            let _lock = files.lock().unwrap();
            supervise(&files, order, || ready.send(()).unwrap()).await.unwrap();
        });
        timeout(DEADLINE, is_ready).await.unwrap().unwrap();
        supervising
    }

    async fn take(&self) -> Running {
        match self.surviving.find(self.run_id).await.unwrap() {
            Found::Taken(_, running) => running,
            other => panic!("{other:?}"),
        }
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.dir.path().join(name), "").unwrap();
    }
}

async fn end(mut running: Running) -> Ended {
    timeout(DEADLINE, running.wait()).await.expect("it ends")
}

async fn text(output: &OutputHub, upto: &str) -> String {
    let (mut follower, mut seen) = (output.follow(0), Vec::new());
    let reading = async {
        while let Some(chunks) = follower.next().await {
            chunks.iter().for_each(|c| seen.extend_from_slice(&c.data));
            if String::from_utf8_lossy(&seen).contains(upto) {
                return;
            }
        }
    };
    timeout(DEADLINE, reading).await.unwrap();
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn who_comes_later_gets_all_of_it() {
    let script = "echo one; until [ -e $DIR/go ]; do sleep 0.02; done; echo two >&2; exit 7";
    let place = Place::new(script);
    let supervising = place.supervise().await;
    let first = place.take().await;
    assert_eq!(text(&first.output, "one").await, "one\n");
    first.control.kill(KillReason::Shutdown);
    let second = place.take().await;
    assert_eq!((first.pid, first.started_at), (second.pid, second.started_at));
    assert_eq!(text(&second.output, "one").await, "one\n");
    place.touch("go");
    let output = second.output.clone();
    let ended = end(second).await;
    assert_eq!((ended.state, ended.code), (RunState::Failed, Code::EXIT_STATUS), "{ended:?}");
    assert_eq!((ended.exit_code, ended.output_bytes, ended.dropped_bytes), (Some(7), 8, 0));
    assert_eq!(text(&output, "no more").await, "one\ntwo\n");
    timeout(DEADLINE, supervising).await.unwrap().unwrap();
    // Nobody is there any more: all of it from the files.
    let late = place.take().await;
    let output = late.output.clone();
    assert_eq!(end(late).await, ended);
    assert_eq!(text(&output, "no more").await, "one\ntwo\n");
    place.surviving.forget(place.run_id).await;
    assert!(!place.files.dir().exists());
    assert!(matches!(place.surviving.find(place.run_id).await.unwrap(), Found::Nothing));
}

#[tokio::test]
async fn orders_to_end_it_arrive_with_reason_and_plan() {
    let place = Place::new("trap '' INT; echo up; while :; do sleep 0.1; done");
    let supervising = place.supervise().await;
    let running = place.take().await;
    text(&running.output, "up").await;
    running.control.kill_with(KillReason::Replaced, KillPlan::NOW);
    let ended = end(running).await;
    assert_eq!((ended.state, ended.code), (RunState::Killed, Code::REPLACED), "{ended:?}");
    timeout(DEADLINE, supervising).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_cannot_start_has_ended() {
    let place = Place::new("true");
    let mut order = place.files.order().unwrap().unwrap();
    order.command.cwd = Some("/nowhere".into());
    place.files.create(&order).unwrap();
    timeout(DEADLINE, place.supervise().await).await.unwrap().unwrap();
    let Found::Ended(ended) = place.surviving.find(place.run_id).await.unwrap() else { panic!() };
    assert_eq!(ended.code, Code::CANNOT_START);
    assert!(ended.message.unwrap().contains("/nowhere"));
}

#[tokio::test]
async fn the_order_of_another_version_does_for_taking_over() {
    let place = Place::new("true");
    let order = place.files.dir().join("order");
    std::fs::write(&order, r#"{"run_id": 1, "command": {"odd": 2}, "assignment": {"cmd": "x"}}"#)
        .unwrap();
    let at = Timestamp::UNIX_EPOCH;
    let started = files::Started { pid: 1, pid_start_time: Some(1), at };
    place.files.put_started(&started).unwrap();
    assert_eq!(end(place.take().await).await.state, RunState::Lost);
    std::fs::write(&order, "{").unwrap();
    let e = place.surviving.find(place.run_id).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{e}");
    assert!(e.to_string().contains("order"), "{e}");
}

#[tokio::test]
async fn a_supervisor_that_comes_too_late_finds_no_order() {
    let place = Place::new("true");
    assert!(matches!(place.surviving.find(place.run_id).await.unwrap(), Found::Nothing));
    assert!(place.files.order().unwrap().is_none());
}

#[tokio::test]
async fn a_run_that_cannot_be_looked_for_at_the_moment_is_looked_for_again() {
    let place = Place::new("true");
    let at = Timestamp::UNIX_EPOCH;
    place.files.put_started(&files::Started { pid: 1, pid_start_time: Some(1), at }).unwrap();
    let (order, away) = (place.files.dir().join("order"), place.files.dir().join("away"));
    std::fs::rename(&order, &away).unwrap();
    std::fs::create_dir(&order).unwrap();
    place.surviving.find(place.run_id).await.unwrap_err();
    let finding = place.surviving.find_surely(place.run_id);
    tokio::pin!(finding);
    timeout(Duration::from_millis(100), &mut finding).await.unwrap_err();
    std::fs::remove_dir(&order).unwrap();
    std::fs::rename(&away, &order).unwrap();
    let found = timeout(DEADLINE, finding).await.unwrap().unwrap();
    assert!(matches!(found, Found::Taken(..)));
}

#[tokio::test]
async fn what_was_started_and_cannot_be_followed_is_ended() {
    for (broken, stray) in [(false, false), (false, true), (true, true)] {
        let mut place = Place::new("true");
        // A supervisor that dies at once.
        place.surviving.program = "/bin/false".into();
        if broken {
            std::fs::write(place.files.dir().join("started"), "{").unwrap();
        }
        let mut stray = stray.then(|| Stray::of(place.run_id));
        let (command, assignment) =
            (Command::new(Executor::Sh, "true"), Arc::new(Assignment::new("true")));
        let starting = place.surviving.start(place.run_id, assignment, command);
        let ended = timeout(DEADLINE, starting).await.unwrap().unwrap_err();
        match &mut stray {
            None => assert_eq!(ended.code, Code::CANNOT_START),
            Some(stray) => {
                assert_eq!((ended.state, ended.code), (RunState::Lost, Code::LOST), "{ended:?}");
                assert!(!stray.0.wait().unwrap().success());
            }
        }
    }
}

#[tokio::test]
async fn output_that_no_file_took_is_counted() {
    let place = Place::new("echo one; echo two");
    timeout(DEADLINE, place.supervise().await).await.unwrap().unwrap();
    // As if the disk had been full.
    std::fs::write(place.files.output(), "").unwrap();
    let running = place.take().await;
    let output = running.output.clone();
    let ended = end(running).await;
    assert_eq!((ended.output_bytes, ended.dropped_bytes), (8, 8), "{ended:?}");
    assert_eq!(output.counts(), (8, 8));
}

/// A process of the run, killed with this.
struct Stray(Child);

impl Stray {
    fn of(run_id: RunId) -> Self {
        let mut command = std::process::Command::new("sleep");
        Self(command.arg("600").env("MEEPO_RUN_ID", run_id.to_string()).spawn().unwrap())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn without_its_supervisor_a_run_is_lost_and_what_is_left_of_it_killed() {
    let place = Place::new("true");
    let mut stray = Stray::of(place.run_id);
    let pid = stray.0.id();
    let started = files::Started { pid, pid_start_time: None, at: Timestamp::now() };
    place.files.put_started(&started).unwrap();
    let chunk = |seq, text: &str| {
        let (run_id, stream, data) = (place.run_id, Stream::Stderr, text.into());
        OutputChunk { run_id, seq, stream, at: Timestamp::UNIX_EPOCH, data }
    };
    let (whole, cut) = (encode(&chunk(0, "whole")), encode(&chunk(1, "cut off")));
    std::fs::write(place.files.output(), [&whole[..], &cut[..cut.len() - 1]].concat()).unwrap();
    let running = place.take().await;
    let output = running.output.clone();
    let ended = end(running).await;
    assert_eq!((ended.state, ended.output_bytes), (RunState::Lost, 5), "{ended:?}");
    assert!(ended.message.unwrap().contains("was killed"));
    assert_eq!(text(&output, "no more").await, "whole");
    assert!(!stray.0.wait().unwrap().success());
}

#[tokio::test]
async fn a_run_that_nobody_knows_is_ended_and_removed() {
    let (known, unknown) = (Place::new("true"), Place::new("true"));
    let mut stray = Stray::of(unknown.run_id);
    known.surviving.sweep(&HashSet::from([known.run_id])).await;
    assert!(known.files.dir().exists());
    unknown.surviving.sweep(&HashSet::new()).await;
    assert!(!unknown.files.dir().exists() && !stray.0.wait().unwrap().success());
}
