//! Secrets: never in etcd, only their names are. A value is a variable of the master's
//! environment or a file in the directory that its settings name, so that nobody who may
//! change channels can have any other file of a master sent anywhere.

use super::Failure;
use meepo_core::id::Name;
use std::path::Path;

/// Longest secret, in bytes.
const MAX: u64 = 64 * 1024;

/// The variable that holds a secret.
fn variable(name: &Name) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("MEEPO_SECRET_{}", name.as_str().chars().map(upper).collect::<String>())
}

/// The value of a secret, without the line break at its end.
pub(super) async fn read(name: &Name, dir: &Path) -> Result<String, Failure> {
    let variable = variable(name);
    if let Ok(value) = std::env::var(&variable) {
        return Ok(value);
    }
    let path = dir.join(name.as_str());
    let none = |why: String| {
        let path = path.display();
        // Another master may have it, and somebody may put it there.
        Failure::again(format!("secret {name}: there is no variable {variable}, and {path} {why}"))
    };
    let found = tokio::fs::metadata(&path).await.map_err(|e| none(e.to_string()))?;
    if !found.is_file() || found.len() > MAX {
        return Err(none("is no file of at most 64 KiB".into()));
    }
    let value = tokio::fs::read_to_string(&path).await.map_err(|e| none(e.to_string()))?;
    Ok(value.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_a_file_without_its_line_break_or_its_absence_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hook"), "s3cret\n").unwrap();
        let name = |s| Name::new(s).unwrap();
        assert_eq!(read(&name("hook"), dir.path()).await.unwrap(), "s3cret");
        let missing = read(&name("ops.hook-2"), dir.path()).await.unwrap_err();
        assert!(missing.retry && missing.reason.contains("MEEPO_SECRET_OPS_HOOK_2"), "{missing:?}");
    }
}
