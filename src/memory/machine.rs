//! How much memory there is for this process, and how much of it is there.

/// What is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Bytes that the host has; `None` if that cannot be found out.
    pub host: Option<u64>,
    /// Bytes that the process's control groups allow, if they allow less than any.
    pub group: Option<u64>,
}

impl Machine {
    /// Looks at the machine that this process runs on.
    pub fn look() -> Machine {
        let group = read("/proc/self/cgroup");
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).map(str::trim);
        let limits = group.into_iter().flat_map(group_files).filter_map(|file| limit(&read(&file)));
        Machine { host: bytes_of(&read("/proc/meminfo"), "MemTotal:"), group: limits.min() }
    }

    /// Bytes that there are for the process.
    pub fn bytes(&self) -> Option<u64> {
        self.host.into_iter().chain(self.group).min()
    }

    /// What that is the memory of, for people.
    pub fn name(&self) -> &'static str {
        match self.group {
            Some(group) if self.host.is_none_or(|host| group < host) => "the control group",
            _ => "the machine",
        }
    }
}

/// Bytes of memory that this process takes, of which the kernel has to keep each in memory for it; `None` if that cannot be found out.
pub fn resident() -> Option<u64> {
    bytes_of(&read("/proc/self/status"), "VmRSS:")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The files that say what a group may take, and those above it, which bound it too.
fn group_files(group: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut at = Some(group.trim_end_matches('/'));
    while let Some(path) = at {
        files.extend(["memory.max", "memory.high"].map(|file| format!("/sys/fs/cgroup{path}/{file}")));
        at = path.rsplit_once('/').map(|(above, _)| above);
    }
    files
}

/// A limit as a control group has it: `max` is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// What the kernel says of something, of what it says of all.
fn bytes_of(text: &str, what: &str) -> Option<u64> {
    let kib = text.lines().find_map(|line| line.strip_prefix(what)?.trim().strip_suffix(" kB"))?;
    Some(kib.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_memory_in_kib() {
        let said = "MemTotal:       24683728 kB\nMemFree:        20765592 kB\n";
        assert_eq!(bytes_of(said, "MemTotal:"), Some(24_683_728 << 10));
        assert_eq!((bytes_of(said, "VmRSS:"), bytes_of("MemTotal: many kB", "MemTotal:")), (None, None));
    }

    #[test]
    fn a_group_is_bounded_by_those_above_it_too() {
        let expected = ["/a/b.service/memory.max", "/a/b.service/memory.high", "/a/memory.max", "/a/memory.high"];
        let expected: Vec<String> = expected
            .iter()
            .chain(&["/memory.max", "/memory.high"])
            .map(|file| format!("/sys/fs/cgroup{file}"))
            .collect();
        assert_eq!(group_files("/a/b.service"), expected);
        assert_eq!(group_files("/"), ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.high"]);
        assert_eq!((limit("max\n"), limit("536870912\n"), limit("")), (None, Some(512 << 20), None));
    }

    #[test]
    fn the_least_of_both_counts_and_has_a_name() {
        let machine = |host, group| Machine { host, group };
        let said = |machine: Machine| (machine.bytes(), machine.name());
        assert_eq!(said(machine(Some(8), None)), (Some(8), "the machine"));
        assert_eq!(said(machine(Some(8), Some(4))), (Some(4), "the control group"));
        assert_eq!(said(machine(Some(8), Some(16))), (Some(8), "the machine"));
        assert_eq!(said(machine(None, Some(4))), (Some(4), "the control group"));
        assert_eq!(said(machine(None, None)), (None, "the machine"));
    }

    #[test]
    fn this_machine_has_memory_and_this_process_takes_some_of_it() {
        let (there, taken) = (Machine::look().host.unwrap(), resident().unwrap());
        assert!((1 << 20..there).contains(&taken), "{taken} of {there}");
    }
}
