//! Memory used by the process and available to it.

use std::{cell::Cell, fs, path::Path};

use crate::error::{Error, Result};

/// Size in bytes up to which a tensor is allocated without checking the available memory.
const UNCHECKED: u64 = 1 << 26;

thread_local! {
    /// Maximum size in bytes of a tensor that [`check_size`] accepts on this thread.
    static LIMIT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Calls `work` while [`check_size`] refuses tensors of more than `bytes`, except those of at most 64 MiB. Used for
/// sizes from files that may be malicious.
pub(crate) fn within<T>(bytes: u64, work: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(bytes);
    let result = work();
    LIMIT.set(before);
    result
}

/// Returns the peak resident memory in bytes, if the system reports it (Linux).
pub fn peak_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Returns the number of bytes that `file` lists under `name` in kB.
fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// Resets the peak of [`peak_bytes`] to the memory resident now. Returns whether the system supports it (Linux).
pub fn reset_peak() -> bool {
    cfg!(target_os = "linux") && fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns the memory in bytes that this process can allocate now without swapping or being killed: the memory
/// available on the machine, within the limits of a container or batch job. `None` if the system does not report it
/// (not Linux).
pub fn available_bytes() -> Option<u64> {
    let available = kibibytes("/proc/meminfo", "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_by_groups(&groups, Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX);
    Some(left.min(available))
}

/// Checks that a float32 tensor of `shape` fits into the memory of the host ([`Error::Memory`]), for any device:
/// initial values are drawn on the host, and a failed allocation would abort the program. Returns the number of
/// elements.
pub(crate) fn check_size(shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let needed = count.map_or(u64::MAX, |count| (count as u64).saturating_mul(size_of::<f32>() as u64));
    if needed > UNCHECKED {
        let free = available_bytes().unwrap_or(1 << 40).min(LIMIT.get());
        if needed > free {
            return Err(Error::Memory { shape: shape.into(), needed, free });
        }
    }
    Ok(count.unwrap_or(usize::MAX))
}

/// Returns the memory in bytes that the control groups of a process allow: the minimum over its own group and all
/// enclosing ones, below `mount`. `groups` is the text of `/proc/self/cgroup`. `None` without a limit.
///
/// In a container, the process's own group may be mounted as the root, while `groups` contains its path on the host.
/// The limits are then read from the root.
fn left_by_groups(groups: &str, mount: &Path) -> Option<u64> {
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let version_2 = controllers.is_empty();
        if !version_2 && !controllers.split(',').any(|controller| controller == "memory") {
            return None;
        }
        let root = if version_2 { mount.into() } else { mount.join("memory") };
        let own = root.join(group.trim_start_matches('/'));
        own.ancestors()
            .take_while(|group| group.starts_with(&root))
            .filter_map(|group| left_in(group, version_2))
            .min()
    });
    left.min()
}

/// Returns the memory in bytes that a process of the control group may still allocate, in version 2 or 1 of control
/// groups. Cached file pages count as free, since the system can evict them.
fn left_in(group: &Path, version_2: bool) -> Option<u64> {
    let (limit, used, inactive, active) = match version_2 {
        true => ("memory.max", "memory.current", "inactive_file ", "active_file "),
        false => {
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ", "total_active_file ")
        }
    };
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = (number(limit)?, number(used)?);
    let counts = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let count = |name: &str| {
        let count = counts.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
        count.unwrap_or(0)
    };
    Some(limit.saturating_sub(used.saturating_sub(count(inactive).saturating_add(count(active)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).expect("folder");
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).expect("file"));
    }

    #[test]
    fn tensors_larger_than_memory_are_refused() -> Result<()> {
        assert_eq!(check_size(&[2, 3])?, 6);
        for shape in [vec![1 << 40, 8], vec![usize::MAX, usize::MAX]] {
            let refused = check_size(&shape);
            assert!(matches!(refused, Err(Error::Memory { shape: of, .. }) if of == shape));
        }
        Ok(())
    }

    #[test]
    fn the_smallest_remaining_limit_counts_without_cached_file_pages() {
        let mount = tempfile::tempdir().expect("temporary folder");
        let left = |groups: &str| left_by_groups(groups, mount.path());
        assert_eq!(left("0::/job/step\n"), None);
        let stat = "anon 300\ninactive_file 150\nactive_file 50\n";
        let job = [("memory.max", "1000\n"), ("memory.current", "600\n"), ("memory.stat", stat)];
        group(&mount.path().join("job"), &job);
        let step = mount.path().join("job/step");
        group(&step, &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(left("0::/job/step\n"), Some(600), "the job contains other processes");
        fs::write(step.join("memory.max"), "500\n").expect("file");
        assert_eq!(left("0::/job/step\n"), Some(490));
        assert_eq!(left("0::/job/step/without/files\n"), Some(490));
        assert_eq!(left("0::/\n"), None);
        fs::write(step.join("memory.current"), "501\n").expect("file");
        assert_eq!(left("0::/job/step\n"), Some(0));

        let first = mount.path().join("memory");
        let stat = "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 30\n";
        let own = [("memory.limit_in_bytes", "200"), ("memory.usage_in_bytes", "100"), ("memory.stat", stat)];
        group(&first, &own);
        let hybrid = "9:name=systemd:/\n4:cpu,memory:/docker/only the host knows\n0::/\n";
        assert_eq!(left(hybrid), Some(150), "a container's group is mounted as the root");
    }
}
