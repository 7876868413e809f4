//! Starting processes that cannot outlive the test runner.

use std::{
    io,
    process::{Child, Command},
    sync::{OnceLock, mpsc},
};

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts `command` on a thread that lives as long as this process.
///
/// The kernel's parent-death signal goes out when the *thread* that spawned a child
/// ends, and test threads end with their test: one thread spawns for all.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::sync_channel::<Order>(64);
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a thread");
        orders
    });
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).expect("the spawner never ends");
    answer.recv().expect("the spawner answers every order")
}

/// `program`, to be killed by the kernel when this process dies, however it does.
pub(crate) fn mortal(program: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
