//! `meepo signing`: keys as files on this host.

use crate::{
    args::{KeyDir, SigningCommand},
    error::{CliError, CliResult, exit},
    output::Out,
};
use anyhow::{Context, ensure};
use meepo_runtime::signing::{PublicKey, Signer, generate, read_private};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The private key.
const KEY: &str = "signing.key";
/// The public keys that workers are to trust.
const PUBLIC: &str = "signing.pub";

/// Does what `meepo signing` says.
pub(crate) fn run(out: &Out, command: SigningCommand) -> CliResult<u8> {
    let done = match command {
        SigningCommand::Init(KeyDir { dir }) => init(&dir),
        SigningCommand::Show { files } => show(&files),
        SigningCommand::Rotate { dir: KeyDir { dir }, finish: false } => rotate(&dir),
        SigningCommand::Rotate { dir: KeyDir { dir }, finish: true } => finish(&dir),
    };
    let text = done.map_err(|e| CliError::new(exit::FAILED, format!("{e:#}")))?;
    out.text(&text)?;
    Ok(exit::OK)
}

fn init(dir: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let (key, public) = (dir.join(KEY), dir.join(PUBLIC));
    ensure!(
        !key.exists(),
        "{} is there already; `meepo signing rotate` makes another key",
        key.display()
    );
    let pem = generate()?;
    let signer = Signer::from_pem(&pem)?;
    create(&key, &pem, 0o600)?;
    replace(&public, &signer.public_pem())?;
    Ok(format!(
        "key {} made\n  {}  for the masters: signing_key\n  {}  for the workers: trusted_keys, \
         with require_signature = true\n",
        signer.id(),
        key.display(),
        public.display(),
    ))
}

fn show(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut text = String::new();
    for file in files {
        let content = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let keys = match content.contains("PRIVATE KEY") {
            true => vec![PublicKey::new(Signer::from_pem(&content)?.public())?],
            false => PublicKey::read(file)?,
        };
        for key in keys {
            text += &format!("# key {} of {}\n{}", key.id, file.display(), key.pem());
        }
    }
    Ok(text)
}

fn rotate(dir: &Path) -> anyhow::Result<String> {
    let key = dir.join(KEY);
    let old = read_private(&key)?;
    let pem = generate()?;
    let new = Signer::from_pem(&pem)?;
    // Before the new one takes its place: whoever stops here has lost nothing.
    let kept = dir.join(format!("signing-{}.key", old.id()));
    if !kept.exists() {
        std::fs::hard_link(&key, &kept)
            .with_context(|| format!("cannot keep the old key as {}", kept.display()))?;
    }
    let public = dir.join(PUBLIC);
    replace(&public, &(new.public_pem() + &old.public_pem()))?;
    let next = dir.join("signing.key.new");
    create(&next, &pem, 0o600)?;
    std::fs::rename(&next, &key)
        .with_context(|| format!("cannot put the new key in the place of {}", key.display()))?;
    Ok(format!(
        "key {} made in the place of {}, which is kept as {}\n\
         1. copy {public} to trusted_keys of every worker and master: it holds both keys\n\
         2. copy {key} to every master and restart them one by one\n\
         3. when the leader has signed everything anew: meepo signing rotate --finish, and copy \
         {public} again\n",
        new.id(),
        old.id(),
        kept.display(),
        public = public.display(),
        key = key.display(),
    ))
}

fn finish(dir: &Path) -> anyhow::Result<String> {
    let signer = read_private(&dir.join(KEY))?;
    let public = dir.join(PUBLIC);
    let before: Vec<String> = PublicKey::read(&public)?.into_iter().map(|key| key.id).collect();
    replace(&public, &signer.public_pem())?;
    let gone: Vec<&str> =
        before.iter().map(String::as_str).filter(|id| *id != signer.id()).collect();
    Ok(match gone.is_empty() {
        true => format!("{} holds key {} only\n", public.display(), signer.id()),
        false => format!(
            "{} holds key {} only; {} is trusted no more where it is copied to\n",
            public.display(),
            signer.id(),
            gone.join(", "),
        ),
    })
}

/// Makes a file that was not there.
fn create(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot make {}", path.display()))
}

/// Puts a file in the place of another, at once.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let next = path.with_extension("pub.new");
    // One that was left behind.
    let _ = std::fs::remove_file(&next);
    create(&next, text, 0o644)?;
    std::fs::rename(&next, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_shown_rotated_and_the_old_one_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        init(&dir).unwrap();
        let (key, public) = (dir.join(KEY), dir.join(PUBLIC));
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let first = read_private(&key).unwrap().id().to_owned();
        let again = init(&dir).unwrap_err().to_string();
        assert!(again.contains("rotate"), "{again}");
        let shown = show(&[key.clone(), public.clone()]).unwrap();
        assert_eq!(shown.matches(&first).count(), 2);
        assert!(!shown.contains("PRIVATE"));
        rotate(&dir).unwrap();
        let second = read_private(&key).unwrap().id().to_owned();
        assert_ne!(first, second);
        let ids =
            || PublicKey::read(&public).unwrap().into_iter().map(|k| k.id).collect::<Vec<_>>();
        assert_eq!(ids(), [second.clone(), first.clone()]);
        let kept = read_private(&dir.join(format!("signing-{first}.key"))).unwrap();
        assert_eq!(kept.id(), first);
        finish(&dir).unwrap();
        assert_eq!(ids(), [second]);
    }
}
