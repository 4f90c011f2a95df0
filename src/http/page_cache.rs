//! Frees the page cache of big bodies where memory is scarce.
//!
//! A control group's memory limit counts page cache. If the process's own group, or one above it, is limited to less than
//! [`budget::SMALL_GROUP_BYTES`], a layer that was served once displaces pages that are needed, and the kernel has to
//! reclaim memory while a client waits. On a board with little memory it displaces what its pods need, and a kubelet counts
//! pages that were read twice as memory in use, for which it evicts pods. There the last reader of a big file tells the
//! kernel that its pages are not needed. Elsewhere the kernel knows better what to keep. Nothing here can fail: it is advice.

use crate::budget;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Readers of each file, by device and inode.
static READERS: Mutex<Readers> = Mutex::new(Readers(None));

/// The map is made for the first file.
struct Readers(Option<HashMap<(u64, u64), usize>>);

/// A file that a body reads.
pub(super) struct PageCacheUse {
    file: Arc<File>,
    id: (u64, u64),
}

/// Counts a reader of a file, until the result is dropped; `None` where memory is not scarce.
pub(super) fn track(file: &Arc<File>) -> Option<PageCacheUse> {
    static SCARCE: LazyLock<bool> = LazyLock::new(|| {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let info = rustix::system::sysinfo();
        // The type differs from one architecture to the next.
        #[allow(clippy::useless_conversion)]
        let all = u64::from(info.totalram).saturating_mul(info.mem_unit.into());
        is_scarce(limit(&groups, Path::new("/sys/fs/cgroup")), all)
    });
    // It may come later than the server.
    (*SCARCE || has_kubelet(Path::new("/"))).then(|| PageCacheUse::new(file)).flatten()
}

/// Whether memory is scarce by the limit of the group and by the memory of the board, in bytes.
fn is_scarce(group: Option<u64>, board: u64) -> bool {
    group.is_some_and(|limit| limit < budget::SMALL_GROUP_BYTES) || board < budget::SMALL_BOARD_BYTES
}

/// Whether a kubelet keeps its state below `root`, that of K3s included.
fn has_kubelet(root: &Path) -> bool {
    root.join("var/lib/kubelet").is_dir()
}

impl PageCacheUse {
    fn new(file: &Arc<File>) -> Option<PageCacheUse> {
        let meta = file.metadata().ok()?;
        let id = (meta.dev(), meta.ino());
        let mut readers = READERS.lock();
        *readers.0.get_or_insert_default().entry(id).or_insert(0) += 1;
        Some(PageCacheUse { file: Arc::clone(file), id })
    }
}

impl Drop for PageCacheUse {
    fn drop(&mut self) {
        {
            let mut readers = READERS.lock();
            let readers = readers.0.get_or_insert_default();
            let left = readers.get(&self.id).map_or(0, |count| count.saturating_sub(1));
            if left > 0 {
                readers.insert(self.id, left);
                return;
            }
            readers.remove(&self.id);
        }
        let file = Arc::clone(&self.file);
        let free = move || {
            if file.metadata().is_ok_and(|meta| meta.len() >= budget::GIVE_BACK_BYTES_MIN) {
                let _ = rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed);
            }
        };
        if tokio::runtime::Handle::try_current().is_ok() {
            // It waits for the disk. With too much to do the kernel has to help itself.
            let _ = crate::sync::in_background(free);
        } else {
            free();
        }
    }
}

/// The least limit, in bytes, of the memory groups of a process whose `/proc/self/cgroup` is `groups`, if there is one.
/// Both versions of control groups, mounted at `root`.
fn limit(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let own = top.join(path.trim_start_matches('/'));
        // No limit is the text "max", or a number beyond any memory.
        let limits = own
            .ancestors()
            .take_while(|group| group.starts_with(&top))
            .filter_map(|group| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok());
        least = least.into_iter().chain(limits).min();
    }
    least.filter(|limit| *limit < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::sendfile::{PageCacheProbe, probe_page_cache};

    #[test]
    fn the_least_limit_counts_in_both_versions() {
        let root = std::env::temp_dir().join(format!("larder-groups-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("system.slice/memory.max", "134217728\n");
        put("system.slice/larder.service/memory.max", "max\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/board/memory.limit_in_bytes", "67108864\n");
        let of = |groups: &str| limit(groups, &root);
        assert_eq!(of("0::/system.slice/larder.service\n"), Some(134_217_728));
        assert_eq!(of("4:cpu,memory:/board\n1:cpu:/\n"), Some(67_108_864));
        assert_eq!(of("4:memory:/\n0::/\n"), None);
        assert_eq!(of("4:memory:/gone\n"), None);
        assert_eq!(of("nonsense"), None);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn memory_is_scarce_in_a_small_group_on_a_small_board_and_beside_a_kubelet() {
        let (small, large) = (budget::SMALL_GROUP_BYTES - 1, 8 << 30);
        assert!(is_scarce(Some(small), large) && is_scarce(None, (4 << 30) - 1));
        assert!(!is_scarce(None, large) && !is_scarce(Some(budget::SMALL_GROUP_BYTES), 4 << 30));
        let root = std::env::temp_dir().join(format!("larder-kubelet-{}", std::process::id()));
        assert!(!has_kubelet(&root));
        std::fs::create_dir_all(root.join("var/lib/kubelet")).unwrap();
        assert!(has_kubelet(&root));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_last_reader_of_a_big_file_frees_its_pages() {
        let path = std::env::temp_dir().join(format!("larder-cache_use-{}", std::process::id()));
        let size = usize::try_from(budget::GIVE_BACK_BYTES_MIN).unwrap();
        std::fs::write(&path, vec![1; size]).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        // Dirty pages stay.
        file.sync_all().unwrap();
        let before = probe_page_cache(&file, 0, size);
        let (first, second) = (PageCacheUse::new(&file), PageCacheUse::new(&file));
        drop(first);
        assert_eq!(probe_page_cache(&file, 0, size), before);
        drop(second);
        // The kernel keeps pages that something else of it holds for a moment: then another last reader frees them.
        let freed = || {
            let freed = probe_page_cache(&file, 0, size) == PageCacheProbe::NotCached;
            if !freed {
                drop(PageCacheUse::new(&file));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            freed
        };
        assert!(before != PageCacheProbe::Cached(size) || (0..500).any(|_| freed()));
    }
}
