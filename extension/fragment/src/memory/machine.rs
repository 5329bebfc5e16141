//! The memory that the machine, or the container, has and has left (Linux).
//!
//! A container's processes are held to the limits of their control groups, so the least of the machine's memory and all limits
//! on the way up counts. What the page cache holds is available: it gives way.

use std::fs;
use std::path::Path;

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What there is.
    pub total: u64,
    /// What can be taken without pushing others out.
    pub available: u64,
    /// Whether a control group sets `total`.
    pub limited: bool,
}

/// What this process may use; `None` where the system does not say.
pub fn read() -> Option<Machine> {
    read_below(Path::new("/"))
}

/// [`read`] with `proc` and `sys` below `root`.
pub(crate) fn read_below(root: &Path) -> Option<Machine> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
    };
    let total = field("MemTotal")?;
    let available = field("MemAvailable").or_else(|| field("MemFree"))?;
    let mut machine = Machine { total, available, limited: false };
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let names = match controllers {
            "" => ["sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"],
            c if c.split(',').any(|c| c == "memory") => {
                ["sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]
            }
            _ => continue,
        };
        machine.narrow(&root.join(names[0]), path, &names[1..]);
    }
    Some(machine)
}

impl Machine {
    /// Heeds the group at `path` and those above it. Inside a container the path may be that of the host: then only the top is there.
    fn narrow(&mut self, mount: &Path, path: &str, names: &[&str]) {
        let mut folder = mount.join(path.trim_start_matches('/'));
        loop {
            let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
            if let (Some(limit), Some(usage)) = (number(names[0]), number(names[1])) {
                if limit < self.total {
                    (self.total, self.limited) = (limit, true);
                }
                let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
                let cache =
                    stat.lines().find_map(|l| l.strip_prefix(names[2])?.trim().parse::<u64>().ok()).unwrap_or(0);
                self.available = self.available.min(limit.saturating_sub(usage.saturating_sub(cache)));
            }
            if folder == mount || !folder.pop() {
                break;
            }
        }
    }
}
