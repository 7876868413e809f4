//! Secrets of jobs: looked up on this node right before a run starts, and known to nobody but
//! the run. What is stored and shown of a job are references to them.

use crate::process::spawn_awaited;
use meepo_core::{
    id::Name,
    job::Assignment,
    secret::{self, mask::MIN_SECRET, mask::Masks},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command};

/// Where secrets are looked for unless set.
pub const DEFAULT_DIR: &str = "/etc/meepo/secrets";
/// Longest secret, in bytes.
const MAX: u64 = 64 * 1024;
/// How long the command that knows secrets may take for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where this node's secrets come from, in this order: a variable of the worker's environment,
/// a file, a command.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Directory with a file for each.
    pub dir: PathBuf,
    /// A program and its arguments, which gets the name as one more and prints the value.
    /// Empty: none.
    pub command: Vec<String>,
}

/// The secrets of one run. Cloning is cheap; `Debug` shows none of it.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Inner>);

#[derive(Default)]
struct Inner {
    values: BTreeMap<Name, String>,
    masks: Masks,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.values.keys()).finish()
    }
}

impl Secrets {
    /// With these values.
    pub fn new(values: BTreeMap<Name, String>) -> Self {
        let masks = Masks::new(values.values().map(String::as_str));
        Self(Arc::new(Inner { values, masks }))
    }

    /// The values by their names.
    pub fn values(&self) -> &BTreeMap<Name, String> {
        &self.0.values
    }

    /// What is masked for them.
    pub fn masks(&self) -> &Masks {
        &self.0.masks
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.values.is_empty()
    }
}

/// The variable that holds a secret.
fn variable(name: &Name) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("MEEPO_SECRET_{}", name.as_str().chars().map(upper).collect::<String>())
}

impl Source {
    /// What the job needs.
    ///
    /// # Errors
    /// A secret that is not there or cannot be used, in words that hold no secret.
    pub async fn of(&self, job: &Assignment) -> Result<Secrets, String> {
        let names = secret::of(job);
        if names.is_empty() {
            return Ok(Secrets::default());
        }
        let mut values = BTreeMap::new();
        for name in names {
            let value = self.find(&name).await.map_err(|why| format!("secret {name}: {why}"))?;
            if value.len() < MIN_SECRET {
                return Err(format!(
                    "secret {name}: shorter than {MIN_SECRET} bytes, so that it cannot be masked in \
                     output without hiding everything; expected a longer one"
                ));
            }
            if value.contains('\0') {
                return Err(format!("secret {name}: it has a NUL byte; expected text"));
            }
            values.insert(name, value);
        }
        Ok(Secrets::new(values))
    }

    async fn find(&self, name: &Name) -> Result<String, String> {
        let variable = variable(name);
        if let Ok(value) = std::env::var(&variable) {
            return Ok(value);
        }
        let (path, name_) = (self.dir.join(name.as_str()), name.clone());
        let reading = tokio::task::spawn_blocking(move || read(&path));
        match reading.await.map_err(io::Error::from).flatten() {
            Ok(value) => return Ok(value),
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", self.dir.join(name.as_str()).display()));
            }
            Err(_) => {}
        }
        match self.command.split_first() {
            Some((program, args)) => ask(program, args, &name_).await,
            None => Err(format!(
                "this node has no variable {variable}, no file {} and no secrets_command; expected \
                 one of them",
                self.dir.join(name.as_str()).display()
            )),
        }
    }
}

/// The value in a file, without the line break at its end.
fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    let found = file.metadata()?;
    let unusable = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    if !found.is_file() || found.len() > MAX {
        return unusable("no file of at most 64 KiB");
    }
    if found.mode() & 0o006 != 0 {
        return unusable("every user of this host may read or change it; expected mode 600");
    }
    let mut value = String::new();
    file.take(MAX).read_to_string(&mut value)?;
    Ok(ended(value))
}

fn ended(mut value: String) -> String {
    let kept = value.trim_end_matches(['\r', '\n']).len();
    value.truncate(kept);
    value
}

/// What the command prints for a name.
async fn ask(program: &str, args: &[String], name: &Name) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).arg(name.as_str()).current_dir("/").kill_on_drop(true).process_group(0);
    // What it complains of might be a secret.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("MEEPO_"))
    {
        command.env_remove(name);
    }
    let started = spawn_awaited(|| {
        let child = command.spawn()?;
        let pid = child.id().unwrap_or_default();
        Ok((child, pid))
    });
    let (mut child, _awaited) =
        started.map_err(|e| format!("cannot start the secrets_command {program}: {e}"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let stdout = child.stdout.take();
    let told = async {
        let mut text = String::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX + 1).read_to_string(&mut text).await?;
        }
        Ok::<_, io::Error>(text)
    };
    let both = async { tokio::join!(told, child.wait()) };
    let Ok((text, status)) = tokio::time::timeout(PATIENCE, both).await else {
        // With all that it started.
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        return Err(format!("the secrets_command {program} did not end within {PATIENCE:?}"));
    };
    let text = text.map_err(|_| format!("what {program} prints is no text"))?;
    match status {
        Ok(status) if status.success() && text.len() as u64 <= MAX => Ok(ended(text)),
        Ok(status) if status.success() => Err(format!("{program} printed more than 64 KiB")),
        Ok(status) => Err(format!("the secrets_command {program} ended with {status}")),
        Err(e) => Err(format!("the secrets_command {program}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn put(dir: &Path, name: &str, text: &str, mode: u32) {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn needing(name: &str) -> Assignment {
        let mut job = Assignment::new("true");
        job.env.insert("PW".into(), format!("${{secret:{name}}}"));
        job
    }

    async fn find(source: &Source, name: &str) -> Result<String, String> {
        let found = source.of(&needing(name)).await?;
        Ok(found.values().values().next().unwrap().clone())
    }

    #[tokio::test]
    async fn a_file_that_only_its_owner_reads_is_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source { dir: dir.path().into(), command: Vec::new() };
        put(dir.path(), "db", "s3cret\n", 0o600);
        put(dir.path(), "open", "s3cret\n", 0o644);
        put(dir.path(), "short", "abc\n", 0o600);
        assert_eq!(find(&source, "db").await.unwrap(), "s3cret");
        for (name, want) in
            [("open", "mode 600"), ("short", "4 bytes"), ("none", "MEEPO_SECRET_NONE")]
        {
            let why = find(&source, name).await.unwrap_err();
            assert!(why.contains(want) && !why.contains("s3cret"), "{name}: {why}");
        }
        assert!(source.of(&Assignment::new("true")).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_command_is_asked_last() {
        let dir = tempfile::tempdir().unwrap();
        let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect();
        let script = "test \"$1\" = vault || exit 3; echo told-\"$1\"";
        let command = words(&["/bin/sh", "-c", script, "sh"]);
        let source = Source { dir: dir.path().into(), command };
        assert_eq!(find(&source, "vault").await.unwrap(), "told-vault");
        assert!(find(&source, "other").await.unwrap_err().contains("exit status: 3"));
        put(dir.path(), "vault", "from-the-file", 0o400);
        assert_eq!(find(&source, "vault").await.unwrap(), "from-the-file");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let name = Name::new("db").unwrap();
        let secrets = Secrets::new([(name, "s3cret".to_owned())].into());
        assert_eq!(format!("{secrets:?}"), "{Name(\"db\")}");
    }
}
