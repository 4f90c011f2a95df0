//! The disk under the data folder: what it is, whether it lasts and can be believed, its room and its speed.

use super::read::{Mount, mount_of};
use super::{Finding, System};
use crate::budget;
use crate::config::Config;
use crate::text::bytes_text;
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const DISK: &str = "disk";
/// File systems that keep what is flushed, have modes and links, and that the store was tested or is used on.
const GOOD: [&str; 6] = ["ext4", "ext3", "xfs", "btrfs", "f2fs", "zfs"];
/// Those that forget.
const FORGETFUL: [&str; 3] = ["tmpfs", "ramfs", "aufs"];
/// Those without the modes that keep private content apart.
const MODELESS: [&str; 5] = ["vfat", "msdos", "exfat", "ntfs", "fuseblk"];
/// Those over a network, where LMDB's locks do not hold.
const REMOTE: [&str; 5] = ["nfs", "nfs4", "cifs", "smb3", "9p"];

pub(super) fn disk(config: &Config, system: &System) -> Vec<Finding> {
    let folder = config.data_dir.as_path();
    let there = folder.exists();
    // Before the first start: what is there already of the way to it is on the same disk, most likely.
    let near = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let near = fs::canonicalize(near).unwrap_or_else(|_| near.to_owned());
    let mut findings = Vec::new();
    let mountinfo = system.text("/proc/self/mountinfo").unwrap_or_default();
    let mount = mount_of(&mountinfo, &near);
    match &mount {
        Some(mount) => findings.extend(file_system(config, system, mount)),
        None => {
            findings.push(Finding::note(DISK, "/proc/self/mountinfo does not say what the data folder is on"))
        }
    }
    findings.extend(room(config, &near));
    findings.extend(super::neighbours::neighbours(config, system, &near));
    if !there {
        findings.push(Finding::note(
            DISK,
            format!("{} does not exist yet: the first start creates it", folder.display()),
        ));
        return findings;
    }
    let slow_cells = mount.as_ref().is_some_and(|mount| medium(system, mount) != Medium::Other);
    findings.extend(speed(folder, slow_cells));
    findings
}

/// Whether what is kept there lasts.
fn lasting(config: &Config, system: &System, mount: &Mount) -> Finding {
    let kind = mount.kind.as_str();
    let at = config.data_dir.display();
    let on = format!("{at} is on {kind} ({})", mount.source);
    let in_container = system.has("/.dockerenv") || system.has("/run/.containerenv");
    let why = if kind == "overlay" && in_container {
        return Finding::bad(
            DISK,
            format!("{on}, which is deleted with the container"),
            format!("mount a volume at {at}"),
        );
    } else if kind == "overlay" {
        "whose upper layer may be in memory: the images are then lost at a reboot"
    } else if FORGETFUL.contains(&kind) {
        "which is in memory: the images are lost at a reboot"
    } else if MODELESS.contains(&kind) {
        "which has no file modes: everybody could read private content"
    } else if REMOTE.contains(&kind) {
        "which is a network file system: the index can become corrupt"
    } else if GOOD.contains(&kind) {
        return Finding::ok(DISK, on);
    } else {
        return Finding::note(DISK, format!("{on}, on which larder was not tested"));
    };
    Finding::bad(DISK, format!("{on}, {why}"), "set data_dir to a folder on a disk of its own, with ext4")
}

fn file_system(config: &Config, system: &System, mount: &Mount) -> Vec<Finding> {
    let mut findings = vec![lasting(config, system, mount)];
    let has = |option: &str| mount.options.iter().any(|one| one == option);
    let point = mount.point.display();
    if has("ro") {
        findings.push(Finding::bad(
            DISK,
            format!("{point} is mounted read-only"),
            format!("mount -o remount,rw {point}"),
        ));
    }
    if let Some(option) = ["nobarrier", "barrier=0"].into_iter().find(|option| has(option)) {
        findings.push(Finding::bad(
            DISK,
            format!("{point} is mounted with {option}: a power cut can lose flushed data"),
            format!("remove {option} from /etc/fstab and mount -o remount,barrier=1 {point}"),
        ));
    }
    if has("data=writeback") {
        findings.push(Finding::note(
            DISK,
            format!("{point} is mounted with data=writeback: after a power cut larder has to verify and refetch more"),
        ));
    }
    match medium(system, mount) {
        Medium::Card => findings.push(
            Finding::note(
                DISK,
                format!("{} is an SD card: cards wear out, and power cuts damage some", mount.source),
            )
            .with("a data_dir on a USB or NVMe disk lasts longer; larder verify finds corrupt blobs"),
        ),
        Medium::Usb => findings.push(Finding::note(
            DISK,
            format!("{} is a USB device: some of them report a flush before it is done", mount.source),
        )),
        Medium::Soldered | Medium::Other => {}
    }
    findings
}

/// What kind of device a file system is on, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Medium {
    Card,
    Soldered,
    Usb,
    Other,
}

fn medium(system: &System, mount: &Mount) -> Medium {
    let link = fs::read_link(system.at(&format!("/sys/dev/block/{}", mount.device))).unwrap_or_default();
    let way = link.display().to_string();
    let name = mount.source.strip_prefix("/dev/").unwrap_or_default();
    let name = if name.starts_with("mmcblk") {
        name
    } else {
        way.split('/').find(|part| part.starts_with("mmcblk")).unwrap_or_default()
    };
    if name.starts_with("mmcblk") {
        let disk = name.split('p').next().unwrap_or(name);
        let kind = system.text(&format!("/sys/block/{disk}/device/type")).unwrap_or_default();
        return if kind.trim() == "MMC" { Medium::Soldered } else { Medium::Card };
    }
    if way.contains("/usb") { Medium::Usb } else { Medium::Other }
}

fn room(config: &Config, folder: &Path) -> Option<Finding> {
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(e) => {
            return Some(Finding::note(DISK, format!("cannot read how full {} is: {e}", folder.display())));
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let least = config.disk.min_free.of(total);
    let shown = format!("{} free of {}", bytes_text(free), bytes_text(total));
    Some(if free < least {
        Finding::warning(
            DISK,
            format!(
                "{shown}, less than disk.min_free ({}): images are removed, and no new ones are stored",
                bytes_text(least)
            ),
            "make room: larder ls shows what larder uses, du -xh / | sort -h what others use; or set disk.min_free",
        )
    } else if let Some(max) = config.disk.max.filter(|max| *max > total.saturating_sub(least)) {
        Finding::warning(
            DISK,
            format!(
                "{shown}: disk.max ({}) and disk.min_free ({}) do not fit together",
                bytes_text(max),
                bytes_text(least)
            ),
            format!("set disk.max = \"{}MiB\" in larder.toml", total.saturating_sub(least) / budget::MIB),
        )
    } else {
        Finding::ok(DISK, shown)
    })
}

fn speed(folder: &Path, slow_cells: bool) -> Vec<Finding> {
    match measure(folder) {
        Ok(measured) => measured.findings(slow_cells),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            vec![Finding::note(DISK, "the speed was not measured: only root and larder may write there")]
        }
        Err(e) => vec![Finding::bad(
            DISK,
            format!("cannot write in {}: {e}", folder.display()),
            format!("touch {}/x shows it too; dmesg may show why", folder.display()),
        )],
    }
}

/// How fast the disk is.
pub(super) struct Speed {
    /// The median time of a flush of 4 KiB.
    pub flush: Duration,
    /// Bytes a second that were written and flushed.
    pub bytes_per_second: u64,
}

impl Speed {
    pub(super) fn findings(&self, slow_cells: bool) -> Vec<Finding> {
        let flush = self.flush.as_secs_f64() * 1000.0;
        let shown = format!("writes {}/s, a flush takes {flush:.2} ms", bytes_text(self.bytes_per_second));
        let mut findings = Vec::new();
        if self.bytes_per_second < 2_000_000 || self.flush > Duration::from_millis(200) {
            findings.push(Finding::warning(
                DISK,
                format!("the disk is slow: it {shown}"),
                "pulls wait for it: use a better card (A1 or A2), or a USB or NVMe disk",
            ));
        } else {
            findings.push(Finding::ok(DISK, format!("the disk {shown}")));
        }
        if slow_cells && self.flush < budget::DOCTOR_FLUSH_TIME_MIN {
            findings.push(Finding::warning(
                DISK,
                format!(
                    "a flush takes {flush:.2} ms, faster than such a device can: it may not flush at all"
                ),
                "larder finds what a power cut lost and refetches it; another device would not lose it",
            ));
        }
        findings
    }
}

/// Writes to a file without a name, so that nothing is left whatever happens.
fn measure(folder: &Path) -> io::Result<Speed> {
    let file = nameless(folder)?;
    let began = Instant::now();
    let in_time = || began.elapsed() < budget::DOCTOR_DISK_TIME;
    let small = [0x5au8; 4096];
    let mut flushes = Vec::new();
    for n in (0..budget::DOCTOR_FLUSHES).take_while(|n| *n == 0 || in_time()) {
        let at = Instant::now();
        file.write_all_at(&small, u64::from(n) * small.len() as u64)?;
        file.sync_data()?;
        flushes.push(at.elapsed());
    }
    flushes.sort_unstable();
    let (piece, most) = budget::DOCTOR_DISK_WRITES;
    let large = vec![0xa5u8; piece];
    let at = Instant::now();
    let mut written = 0;
    for n in (0..most).take_while(|n| *n == 0 || in_time()) {
        file.write_all_at(&large, n * piece as u64)?;
        file.sync_data()?;
        written += piece as u64;
    }
    let per_second = written as f64 / at.elapsed().as_secs_f64().max(1e-6);
    Ok(Speed { flush: flushes[flushes.len() / 2], bytes_per_second: per_second as u64 })
}

fn nameless(folder: &Path) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o600);
    match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        // A file system that does not know how: it loses its name at once.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let path = folder.join(format!(".doctor-{}", std::process::id()));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(e) => Err(e.into()),
    }
}
