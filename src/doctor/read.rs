//! The texts of /proc, made into numbers. Pure; what is not understood is left out.

use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `179:2`
    pub device: String,
    pub point: PathBuf,
    /// `ext4`
    pub kind: String,
    /// `/dev/mmcblk0p2`
    pub source: String,
    /// Of the mount and of the file system.
    pub options: Vec<String>,
}

/// The mount that a path is on: the last of those with the longest mount point, which covers the ones before it.
pub(super) fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(mount);
    mounts.filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let options = left.get(5)?.split(',').chain(right.get(2)?.split(','));
    Some(Mount {
        device: (*left.get(2)?).to_owned(),
        point: PathBuf::from(unescaped(left.get(4)?)),
        kind: (*right.first()?).to_owned(),
        source: unescaped(right.get(1)?),
        options: options.map(str::to_owned).collect(),
    })
}

/// `\040` and its like are how the kernel writes white space.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// Bytes of a line of `/proc/meminfo`, such as `MemAvailable`.
pub(super) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether the kernel has a cgroup controller switched on, by `/proc/cgroups`.
pub(super) fn controller_is_on(cgroups: &str, name: &str) -> Option<bool> {
    let line = cgroups.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    Some(line.split_whitespace().nth(3)? == "1")
}

/// The socket that listens on a port, by `/proc/net/tcp` or `tcp6`: its inode.
pub(super) fn listener(tcp: &str, port: u16) -> Option<u64> {
    tcp.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        // 0A is LISTEN.
        let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local_port, 16).ok()? == port;
        if listens { fields.get(9)?.parse().ok() } else { None }
    })
}
