//! How much memory this process has used, and how much there is.

use std::{cell::Cell, fs, path::Path};

use crate::error::{Error, Result};

/// Bytes of a tensor that is made without a look at the memory that is free.
const SMALL: u64 = 1 << 26;

thread_local! {
    /// Most bytes of one tensor that [`check_size`] accepts on this thread.
    static LIMIT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Does `work` while no tensor of more than `bytes` passes [`check_size`], small ones aside: sizes that come from a file
/// which need not be ours are not believed.
pub(crate) fn within<T>(bytes: u64, work: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(bytes);
    let done = work();
    LIMIT.set(before);
    done
}

/// The most bytes that were ever resident, where the system tells (Linux).
pub fn peak_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Bytes that `file` lists under `name` in kB.
fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// Begins anew: [`peak_bytes`] is then of what is resident from now on. Whether the system can (Linux).
pub fn forget_peak() -> bool {
    cfg!(target_os = "linux") && fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that this process could take now without driving others out or being ended for it: what the machine has available,
/// and no more than a container's or a batch job's limit leaves. Where the system does not tell (it is not Linux), `None`.
pub(crate) fn available_bytes() -> Option<u64> {
    let available = kibibytes("/proc/meminfo", "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = left_by_groups(&groups, Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX);
    Some(left.min(available))
}

/// Refuses a float32 tensor of `shape` for which the host has no memory ([`Error::Memory`]), whatever the device is: initial
/// values are drawn on the host, and an allocation that fails would end the program. Returns the number of elements.
pub(crate) fn check_size(shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let needed = count.map_or(u64::MAX, |count| (count as u64).saturating_mul(size_of::<f32>() as u64));
    if needed > SMALL {
        let free = available_bytes().unwrap_or(1 << 40).min(LIMIT.get());
        if needed > free {
            return Err(Error::Memory { shape: shape.into(), needed, free });
        }
    }
    Ok(count.unwrap_or(usize::MAX))
}

/// What limits leave to a process whose control groups are `groups` (of `/proc/self/cgroup`), below `mount`: the least that
/// is left in its own group or in one around it, whoever else is in there. `None` without a limit.
///
/// A container may see its own group as the whole tree, under a name that only the host has: then it is the root's files that
/// count.
fn left_by_groups(groups: &str, mount: &Path) -> Option<u64> {
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let second = controllers.is_empty();
        if !second && !controllers.split(',').any(|controller| controller == "memory") {
            return None;
        }
        let root = if second { mount.into() } else { mount.join("memory") };
        let own = root.join(group.trim_start_matches('/'));
        own.ancestors()
            .take_while(|group| group.starts_with(&root))
            .filter_map(|group| left_in(group, second))
            .min()
    });
    left.min()
}

/// What the limit of this group leaves, of the second version of control groups or of the first. Pages of files make way.
fn left_in(group: &Path, second: bool) -> Option<u64> {
    let (limit, used, inactive, active) = match second {
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
    fn a_tensor_that_no_memory_holds_is_refused() -> Result<()> {
        assert_eq!(check_size(&[2, 3])?, 6);
        for shape in [vec![1 << 40, 8], vec![usize::MAX, usize::MAX]] {
            let refused = check_size(&shape);
            assert!(matches!(refused, Err(Error::Memory { shape: of, .. }) if of == shape));
        }
        Ok(())
    }

    #[test]
    fn the_least_that_a_limit_leaves_counts_and_files_make_way() {
        let mount = tempfile::tempdir().expect("temporary folder");
        let left = |groups: &str| left_by_groups(groups, mount.path());
        assert_eq!(left("0::/job/step\n"), None);
        let stat = "anon 300\ninactive_file 150\nactive_file 50\n";
        let job = [("memory.max", "1000\n"), ("memory.current", "600\n"), ("memory.stat", stat)];
        group(&mount.path().join("job"), &job);
        let step = mount.path().join("job/step");
        group(&step, &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(left("0::/job/step\n"), Some(600), "others are in the job, too");
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
