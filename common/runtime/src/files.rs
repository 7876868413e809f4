//! Directories and files that belong to one process's user alone.

use nix::unistd::geteuid;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};
use tracing::warn;

/// Makes a directory, and those above it that are missing, for this user only. One that is
/// there stays as it is.
///
/// # Errors
/// The system refuses.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// As [`private_dir`], and looks at one that is there: whoever may change what is in it could
/// have this process do anything.
///
/// # Errors
/// Somebody else may write to it, or the system refuses.
pub fn own_dir(dir: &Path) -> io::Result<()> {
    private_dir(dir)?;
    let found = dir.metadata()?;
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let me = geteuid().as_raw();
    if found.uid() != me && found.uid() != 0 {
        return refuse(format!(
            "it belongs to user {}, who could change what is in it; expected one of user {me}",
            found.uid()
        ));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return refuse(format!(
            "others than its owner may write to it (mode {mode:o}); expected mode 700, or another \
             directory"
        ));
    }
    if mode & 0o055 != 0 {
        let dir = dir.display();
        warn!(%dir, mode = format!("{mode:o}"), "others may look into the directory: chmod 700");
    }
    Ok(())
}

/// Opens a file by `options` that is there for this process's user: no link is followed, and
/// what is there must be a file of this user, or of root, with no other name.
///
/// # Errors
/// Something else is there, or the system refuses.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // A pipe would have to be waited for.
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = options.custom_flags(flags.bits()).open(path)?;
    let found = file.metadata()?;
    let me = geteuid().as_raw();
    let why = if !found.is_file() {
        "it is no regular file"
    } else if found.nlink() != 1 {
        "it is another file's second name"
    } else if found.uid() != me && found.uid() != 0 {
        "it belongs to somebody else"
    } else {
        return Ok(file);
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_directory_is_made_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        own_dir(&new).unwrap();
        assert_eq!((mode(&new), mode(&dir.path().join("a"))), (0o700, 0o700));
        own_dir(&new).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (bits, fine) in [(0o755, true), (0o775, false), (0o1777, false)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(bits)).unwrap();
            let done = own_dir(dir.path());
            assert_eq!(done.is_ok(), fine, "{bits:o}: {done:?}");
            assert_eq!(mode(dir.path()), bits & 0o777);
        }
    }

    #[test]
    fn only_a_file_of_its_own_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let place = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink(&victim, place("link")).unwrap();
        std::os::unix::fs::symlink(place("nothing"), place("dangling")).unwrap();
        nix::unistd::mkfifo(&place("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = |name: &str| {
            open_own(&place(name), OpenOptions::new().write(true).create(true).truncate(false))
        };
        open("new").unwrap();
        open("new").unwrap();
        fs::hard_link(&victim, place("second")).unwrap();
        for name in ["link", "dangling", "pipe", "second"] {
            assert!(open(name).is_err(), "{name}");
        }
        assert!(!place("nothing").exists());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
