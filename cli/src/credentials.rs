//! Tokens of masters, kept in a file that only its owner may read.

use crate::error::{CliError, CliResult, exit};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The variable with a token, before any that is kept.
pub(crate) const TOKEN: &str = "MEEPO_TOKEN";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What is kept, by the address of the master.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    masters: BTreeMap<String, Entry>,
}

/// What is kept of one master.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Who the token is of.
    pub(crate) user: String,
    /// The token.
    pub(crate) token: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.user)
    }
}

/// `~/.config/meepo/credentials`, or where XDG says that it is.
pub(crate) fn path() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let config = var("XDG_CONFIG_HOME").filter(|p| p.is_absolute());
    let config = config.or_else(|| var("HOME").map(|home| home.join(".config")))?;
    Some(config.join("meepo").join("credentials"))
}

/// The address of a master, as it is written down.
fn key(base: &Url) -> String {
    base.as_str().trim_end_matches('/').to_owned()
}

/// The token for a master: of the environment, or kept. None where there is none.
///
/// # Errors
/// When the file is there and must not be used, or the token would go over the network as it is.
pub(crate) fn token_for(base: &Url) -> CliResult<Option<String>> {
    let token = match std::env::var(TOKEN) {
        Ok(token) if !token.is_empty() => Some(token.trim().to_owned()),
        _ => match path() {
            Some(path) => read(&path)?.masters.get(&key(base)).map(|e| e.token.clone()),
            None => None,
        },
    };
    if token.is_some() && !is_private(base) {
        let problem =
            format!("{} is not encrypted: whoever is in between would have the token", key(base));
        return Err(CliError::usage("--master", problem, "https://, or a master on this host"));
    }
    Ok(token)
}

/// Whether nobody in between can read what is sent there.
pub(crate) fn is_private(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    base.scheme() == "https" || local
}

fn read(path: &Path) -> CliResult<Kept> {
    let at = |e: std::io::Error| CliError::from(e).at(path.display().to_string());
    let mut file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(e) => return Err(at(e)),
    };
    let meta = file.metadata().map_err(at)?;
    let mode = meta.permissions().mode() & 0o777;
    let place = path.display().to_string();
    if mode & 0o077 != 0 {
        let problem = format!("others may read or write it (mode {mode:04o})");
        return Err(CliError::usage(
            place,
            problem,
            "mode 0600 (`chmod 600`); who could read it may have the tokens",
        ));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(CliError::usage(place, "it is another user's", "a file of your own"));
    }
    let mut text = String::new();
    Read::take(&mut file, MAX_FILE).read_to_string(&mut text).map_err(at)?;
    serde_json::from_str(&text).map_err(|e| {
        CliError::usage(place, format!("cannot be read: {e}"), "what `meepo login` has written")
    })
}

fn write(path: &Path, kept: &Kept) -> CliResult<()> {
    let at = |e: std::io::Error| CliError::from(e).at(path.display().to_string());
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
    // Beside it and then in its place: a file that is half written would be worth nothing.
    let fresh = dir.join(format!(".credentials-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(at)?;
    let text = serde_json::to_string_pretty(kept)
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot write credentials: {e}")))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&fresh, path)).map_err(|e| {
        let _ = fs::remove_file(&fresh);
        at(e)
    })
}

fn home() -> CliResult<PathBuf> {
    path().ok_or_else(|| CliError::usage("HOME", "not set", "a home directory, or MEEPO_TOKEN"))
}

/// Keeps a token of a master.
pub(crate) fn keep(base: &Url, entry: Entry) -> CliResult<PathBuf> {
    let path = home()?;
    let mut kept = read(&path)?;
    kept.masters.insert(key(base), entry);
    write(&path, &kept).map(|()| path)
}

/// Forgets the token of a master. Answers whether there was one.
pub(crate) fn forget(base: &Url) -> CliResult<bool> {
    let path = home()?;
    let mut kept = read(&path)?;
    let there = kept.masters.remove(&key(base)).is_some();
    if there {
        write(&path, &kept)?;
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_wider_modes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meepo").join("credentials");
        assert!(read(&path).unwrap().masters.is_empty());
        let mut kept = Kept::default();
        let entry = Entry { user: "ann".into(), token: "meepo_secret".into() };
        assert!(!format!("{entry:?}").contains("secret"));
        kept.masters.insert("http://127.0.0.1:7600".into(), entry);
        write(&path, &kept).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(read(&path).unwrap().masters["http://127.0.0.1:7600"].token, "meepo_secret");
        for wide in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(wide)).unwrap();
            let e = read(&path).unwrap_err();
            assert_eq!(e.exit, exit::USAGE);
            assert!(e.to_string().contains("0600"), "{e}");
        }
    }

    #[test]
    fn only_what_is_encrypted_or_here_is_private() {
        for (url, want) in [
            ("https://m.example", true),
            ("http://127.0.0.1:7600", true),
            ("http://[::1]:7600", true),
            ("http://localhost:7600", true),
            ("http://m.example", false),
            ("http://10.0.0.1:7600", false),
            ("http://127.0.0.1.example", false),
        ] {
            assert_eq!(is_private(&Url::parse(url).unwrap()), want, "{url}");
        }
    }
}
