//! Check that no other user can change a library. Its code runs with the rights of the user who loads it.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Permission of the group and of all others to write.
const OTHERS_WRITE: u32 = 0o022;
/// Mode of a folder in which users can only remove and rename their own entries, such as `/tmp`.
const STICKY: u32 = 0o1000;
/// Bits of a mode that messages contain: permissions, set-user-id, set-group-id and sticky bit.
const SHOWN: u32 = 0o7777;

/// Owner and permissions of a file or folder.
#[derive(Debug, Clone, Copy)]
struct Access {
    owner: u32,
    mode: u32,
    is_folder: bool,
}

impl Access {
    fn of(metadata: &Metadata) -> Self {
        Self { owner: metadata.uid(), mode: metadata.mode() & SHOWN, is_folder: metadata.is_dir() }
    }

    /// Returns whether the owner is neither `user` nor root.
    fn is_foreign(self, user: u32) -> bool {
        self.owner != user && self.owner != 0
    }

    /// Returns whether the group or all users can change the file, or replace entries of the folder.
    fn is_shared(self) -> bool {
        self.mode & OTHERS_WRITE != 0 && !(self.is_folder && self.mode & STICKY != 0)
    }
}

/// Checks the library at `path`, an absolute path without links, and all folders above it.
///
/// # Errors
/// The files and folders that another user can change, with their modes and the remedy.
pub(super) fn check(path: &Path, library: &Metadata) -> Result<(), String> {
    let mut found = vec![(path, Access::of(library))];
    for folder in path.ancestors().skip(1) {
        let metadata = fs::symlink_metadata(folder).map_err(|e| {
            format!("cannot be loaded: the folder {} cannot be examined: {e}", folder.display())
        })?;
        found.push((folder, Access::of(&metadata)));
    }
    describe(&found, rustix::process::geteuid().as_raw()).map_or(Ok(()), Err)
}

/// Describes the files and folders that users other than `user` and root can change; `None` if there are none.
fn describe(found: &[(&Path, Access)], user: u32) -> Option<String> {
    let line = |&(path, access): &(&Path, Access)| {
        let owner = if access.is_foreign(user) { format!(", owner {}", access.owner) } else { String::new() };
        let (path, mode) = (path.display(), access.mode);
        (access.is_foreign(user) || access.is_shared()).then(|| format!("{path} (mode {mode:o}{owner})"))
    };
    let places: Vec<String> = found.iter().filter_map(line).collect();
    if places.is_empty() {
        return None;
    }
    let remedy = match found.iter().any(|(_, access)| access.is_foreign(user)) {
        true => "copy it into a folder of your own".into(),
        false => {
            let shared = found.iter().filter(|(_, access)| access.is_shared());
            let paths: Vec<String> = shared.map(|(path, _)| path.display().to_string()).collect();
            format!("copy it into a folder of your own, or run `chmod go-w {}`", paths.join(" "))
        }
    };
    Some(format!(
        "is not loaded, since another user could put other code in its place: {}; {remedy}",
        places.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const USER: u32 = 1000;

    fn file(owner: u32, mode: u32) -> Access {
        Access { owner, mode, is_folder: false }
    }

    fn folder(owner: u32, mode: u32) -> Access {
        Access { owner, mode, is_folder: true }
    }

    #[test]
    fn only_the_user_and_root_may_be_able_to_write() {
        for (access, refused) in [
            (file(USER, 0o755), false),
            (file(0, 0o644), false),
            (file(USER, 0o775), true),
            (file(USER, 0o646), true),
            (file(1001, 0o700), true),
            // The sticky bit has no effect on files.
            (file(USER, 0o1666), true),
            (folder(USER, 0o700), false),
            (folder(0, 0o1777), false),
            (folder(USER, 0o2775), true),
            (folder(USER, 0o777), true),
            (folder(1001, 0o1755), true),
        ] {
            assert_eq!(describe(&[(Path::new("/a"), access)], USER).is_some(), refused, "{access:?}");
        }
    }

    #[test]
    fn the_message_names_path_mode_and_remedy() {
        let paths = [("/p/x.so", file(USER, 0o664)), ("/p", folder(USER, 0o775)), ("/", folder(0, 0o755))];
        let found = paths.map(|(path, access)| (Path::new(path), access));
        let message = describe(&found, USER).unwrap();
        assert!(message.contains("/p/x.so (mode 664), /p (mode 775); "), "{message}");
        assert!(message.ends_with("`chmod go-w /p/x.so /p`"), "{message}");
        let message = describe(&[(Path::new("/p/x.so"), file(7, 0o755))], USER).unwrap();
        assert!(message.contains("/p/x.so (mode 755, owner 7); copy it"), "{message}");
        assert!(!message.contains("chmod"), "{message}");
    }

    #[test]
    fn folders_above_the_library_are_checked() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let library = inner.join("x.so");
        fs::write(&library, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&library, 0o644);
        let refused = || check(&library.canonicalize().unwrap(), &fs::metadata(&library).unwrap()).err();
        assert_eq!(refused(), None);
        for (path, mode, back) in
            [(root.path(), 0o777, 0o700), (&inner, 0o770, 0o755), (&library, 0o666, 0o644)]
        {
            set(path, mode);
            let message = refused().unwrap();
            assert!(message.contains(&format!("{} (mode {mode:o})", path.display())), "{message}");
            set(path, back);
        }
        assert_eq!(refused(), None);
    }
}
