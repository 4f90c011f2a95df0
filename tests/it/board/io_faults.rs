//! A file system that records every change, so that power cuts can be made up from the recording, and that fails on
//! command: a library below the server, [`SHIM_SOURCE`].

use super::{Environment, Folder, Random, output};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library's source, from the top of the repository.
const SHIM_SOURCE: &str = "tests/io_faults/shim.c";
/// The medium writes so many bytes at once or not at all.
const SECTOR: usize = 512;

/// The library that is put below the server; compiled once.
pub fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let folder = Folder::new();
        let made_at = folder.0.join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(SHIM_SOURCE);
        // A C compiler is needed, as for the build itself: gcc and libc6-dev.
        let flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"];
        let made = output(Command::new("cc").args(flags).args([&made_at, &source]).arg("-ldl"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Where it outlives this process, which has no end at which it would be removed; other binaries do the same.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (new, path) =
            (kept.join(format!("io_faults.{}.so", std::process::id())), kept.join("io_faults.so"));
        std::fs::copy(&made_at, &new).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    })
}

/// The environment of a server whose changes below `root` are seen. `more` says what is done about them.
pub fn environment(root: &Path, more: &[(&'static str, String)]) -> Environment {
    let mut environment =
        vec![("LD_PRELOAD", shim().display().to_string()), ("LARDER_DISK_ROOT", root.display().to_string())];
    environment.extend_from_slice(more);
    environment
}

/// One change, as the shim wrote it down.
#[derive(Debug, Clone)]
pub struct Change {
    /// See `struct entry` of the shim.
    pub what: u8,
    pub synced: bool,
    pub path: String,
    pub other: String,
    pub inode: u64,
    pub offset: u64,
    pub data: Vec<u8>,
    /// Where its entry ends in the log.
    pub end: u64,
}

impl Change {
    /// What was done to which kind of file, for counting: digests and numbers are left out.
    pub fn site(&self) -> String {
        let name = self.path.split('/').next().unwrap_or("");
        let name = match (name, self.path.rsplit_once('.')) {
            ("staging", Some((_, "origin"))) => "staging origin",
            ("staging", Some((_, "scratch"))) => "staging scratch",
            _ => name,
        };
        let what = match self.what.to_ascii_uppercase() {
            b'C' => "create",
            b'W' => "write",
            b'S' => "flush",
            b'D' => "flush folder",
            b'R' => "rename",
            b'U' => "unlink",
            b'M' => "mkdir",
            b'X' => "rmdir",
            b'L' => "truncate",
            b'P' => "chmod",
            other => panic!("the shim wrote {other}"),
        };
        format!("{what} {name}")
    }
}

/// Every change in the log.
pub fn changes(log: &Path) -> Vec<Change> {
    let bytes = std::fs::read(log).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let u16_at = |at: usize| usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (what, synced, path, other) = (bytes[at], bytes[at + 1] != 0, u16_at(at + 2), u16_at(at + 4));
        let (inode, offset) = (u64_at(at + 6), u64_at(at + 14));
        let data = u32::from_le_bytes(bytes[at + 22..at + 26].try_into().unwrap()) as usize;
        at += 26;
        let mut take = |n: usize| {
            at += n;
            bytes[at - n..at].to_vec()
        };
        let (path, other) = (take(path), take(other));
        let data = take(data);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        found.push(Change {
            what,
            synced,
            path: text(path),
            other: text(other),
            inode,
            offset,
            data,
            end: at as u64,
        });
    }
    found
}

/// A file of an inode that may be used again after it has gone.
type Node = (u64, u32);

/// What a power cut may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A journalling file system: changes of names stay in order, and a flush of anything makes all before it stay.
    Ordered,
    /// No more than POSIX says: a name stays once its folder was flushed, and of the others any may be lost.
    Loose,
}

#[derive(Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    mode: u32,
}

/// The files of a disk after a cut behind the first `upto` changes. Of what was not flushed any part may be there: each
/// sector of a write, each change of a name.
pub fn after_a_cut(changes: &[Change], upto: usize, cut: Cut, random: &mut Random) -> Crash {
    let happened = &changes[..upto];
    // How much of what was not flushed got there, in thousandths: nothing, all, or some.
    let chance = match random.below(4) {
        0 => 0,
        1 => 1_000,
        _ => random.below(1_001),
    };
    let nodes = nodes_of(happened);
    let mut content: BTreeMap<Node, Content> = BTreeMap::new();
    let mut names: BTreeMap<String, Node> = BTreeMap::new();
    let mut folders: BTreeSet<String> = BTreeSet::new();
    let last_flush = happened.iter().rposition(|change| matches!(change.what, b'S' | b'D'));
    // In an ordered cut a prefix of the changes of names is there, at least up to the last flush.
    let from = last_flush.map_or(0, |at| at + 1);
    let prefix = from + random.below(upto - from + 1);
    let mut lost_sectors = 0;
    // From behind: which files, and which folders, are flushed after each change.
    let (mut files, mut flushed_folders) = (BTreeSet::new(), BTreeSet::new());
    let mut flushed: Vec<bool> = (0..upto)
        .rev()
        .map(|at| {
            let change = &happened[at];
            match change.what {
                b'S' => drop(files.insert(nodes[at])),
                b'D' => drop(flushed_folders.insert(change.path.as_str())),
                _ => {}
            }
            let named = if change.what == b'R' { &change.other } else { &change.path };
            let folder = named.rsplit_once('/').map_or("", |(folder, _)| folder);
            match change.what {
                // A mode is in the inode.
                b'W' | b'L' | b'P' => change.synced || files.contains(&nodes[at]),
                _ if cut == Cut::Ordered => at < prefix,
                _ => flushed_folders.contains(folder),
            }
        })
        .collect();
    flushed.reverse();
    for (at, change) in happened.iter().enumerate() {
        let node = nodes[at];
        let is_name = matches!(change.what, b'C' | b'R' | b'U' | b'M' | b'X');
        let flushed = flushed[at];
        let mut lucky = || random.below(1_000) < chance;
        let stays = flushed || !(is_name && cut == Cut::Ordered) && change.what != b'W' && lucky();
        match change.what {
            b'W' => {
                let file = &mut content.entry(node).or_default().bytes;
                let (mut done, offset) = (0, change.offset as usize);
                while done < change.data.len() {
                    // Up to the end of the sector that it falls into.
                    let n = (SECTOR - (offset + done) % SECTOR).min(change.data.len() - done);
                    if flushed || lucky() {
                        let end = offset + done + n;
                        if file.len() < end {
                            file.resize(end, 0);
                        }
                        file[offset + done..end].copy_from_slice(&change.data[done..done + n]);
                    } else {
                        lost_sectors += 1;
                    }
                    done += n;
                }
            }
            b'L' if stays => content.entry(node).or_default().bytes.resize(change.offset as usize, 0),
            b'P' if stays => content.entry(node).or_default().mode = change.offset as u32,
            b'C' => {
                content.entry(node).or_default().mode = change.offset as u32;
                if stays {
                    names.insert(change.path.clone(), node);
                }
            }
            b'U' if stays => drop(names.remove(&change.path)),
            b'M' if stays => drop(folders.insert(change.path.clone())),
            b'X' if stays => {
                folders.remove(&change.path);
                names.retain(|name, _| !name.starts_with(&format!("{}/", change.path)));
            }
            b'R' if stays => rename(change, node, &mut names, &mut folders),
            _ => {}
        }
    }
    // Nothing is in a folder that is not there.
    let there = |name: &str| name.match_indices('/').all(|(at, _)| folders.contains(&name[..at]));
    names.retain(|name, _| there(name));
    let files = names.into_iter().map(|(name, node)| (name, content.remove(&node).unwrap_or_default()));
    let files = files.map(|(name, content)| (name, content.bytes, content.mode)).collect();
    let kept: Vec<String> = folders.iter().filter(|name| there(name)).cloned().collect();
    Crash { folders: kept, files, lost_sectors }
}

fn rename(change: &Change, node: Node, names: &mut BTreeMap<String, Node>, folders: &mut BTreeSet<String>) {
    if node != (0, 0) {
        names.remove(&change.path);
        names.insert(change.other.clone(), node);
        return;
    }
    // A folder, with all that is in it.
    let inside = format!("{}/", change.path);
    folders.remove(&change.path);
    folders.insert(change.other.clone());
    let moved: Vec<String> = names.keys().filter(|name| name.starts_with(&inside)).cloned().collect();
    for name in moved {
        let node = names.remove(&name).unwrap();
        names.insert(format!("{}/{}", change.other, &name[inside.len()..]), node);
    }
}

/// The file that each change is about, told apart from others that had the same inode; (0, 0) for folders.
fn nodes_of(changes: &[Change]) -> Vec<Node> {
    let mut lives: BTreeMap<u64, u32> = BTreeMap::new();
    let mut names: BTreeMap<String, Node> = BTreeMap::new();
    let mut nodes = Vec::with_capacity(changes.len());
    for change in changes {
        let node = match change.what {
            b'C' => {
                let life = lives.entry(change.inode).or_default();
                *life += 1;
                let node = (change.inode, *life);
                names.insert(change.path.clone(), node);
                node
            }
            b'W' | b'L' | b'S' => (change.inode, lives.get(&change.inode).copied().unwrap_or(0)),
            b'R' => match names.remove(&change.path) {
                Some(node) => {
                    names.insert(change.other.clone(), node);
                    node
                }
                None => {
                    let inside = format!("{}/", change.path);
                    let moved: Vec<String> =
                        names.keys().filter(|name| name.starts_with(&inside)).cloned().collect();
                    for name in moved {
                        let node = names.remove(&name).unwrap();
                        names.insert(format!("{}/{}", change.other, &name[inside.len()..]), node);
                    }
                    (0, 0)
                }
            },
            b'U' => names.remove(&change.path).unwrap_or((0, 0)),
            b'P' => names.get(&change.path).copied().unwrap_or((0, 0)),
            _ => (0, 0),
        };
        nodes.push(node);
    }
    nodes
}

/// What is on a disk after a power cut.
pub struct Crash {
    folders: Vec<String>,
    files: Vec<(String, Vec<u8>, u32)>,
    /// Sectors that were written and did not get there.
    pub lost_sectors: u64,
}

impl Crash {
    /// Puts it into a folder. Uses are of long ago, so that whatever can be suspect is.
    pub fn write(&self, root: &Path) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(root).unwrap();
        for folder in &self.folders {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (name, bytes, mode) in &self.files {
            let path = root.join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
        }
    }
}
