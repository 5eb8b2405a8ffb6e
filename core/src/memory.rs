//! How much memory this process has used, and how much there is.

use sysinfo::{CGroupLimits, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};

/// The most bytes that were ever resident, where the system tells (Linux).
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Begins anew: [`peak_bytes`] is then of what is resident from now on. Whether the system can (Linux).
pub fn forget_peak() -> bool {
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that this process could take now without driving others out or being ended for it: what the machine has available,
/// and no more than the limit of a container or of a batch system's job (cgroups of both versions) leaves. Where the system
/// does not tell, `None`.
pub fn available_bytes() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let available = Some(system.available_memory()).filter(|bytes| *bytes > 0)?;
    let own = sysinfo::get_current_pid().ok().and_then(|id| {
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[id]),
            false,
            ProcessRefreshKind::nothing(),
        );
        system.process(id)?.cgroup_limits()
    });
    // In a container, the group may have a name that only the host knows: then it is what is mounted.
    let limits = own.or_else(|| system.cgroup_limits());
    Some(limits.map_or(available, |limits| within(available, &limits)))
}

/// Files that the system keeps in memory count for a group, but make way: what is left is the limit less what is not of files.
fn within(available: u64, limits: &CGroupLimits) -> u64 {
    available.min(limits.total_memory.saturating_sub(limits.rss))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_what_its_limit_leaves_whatever_files_it_has_read() {
        let limits = |total_memory, rss| CGroupLimits { total_memory, free_memory: 0, free_swap: 0, rss };
        assert_eq!(within(10, &limits(8, 3)), 5);
        assert_eq!(within(4, &limits(8, 3)), 4);
        assert_eq!(within(4, &limits(2, 3)), 0);
    }
}
