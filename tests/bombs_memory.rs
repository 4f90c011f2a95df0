//! What documents of 4 MB become in memory. A binary of its own: it counts every byte that is allocated.

// Where a test cannot go on, it stops; an allocator is unsafe by nature.
#![allow(clippy::unwrap_used, unsafe_code)]

#[path = "it/board/documents.rs"]
mod documents;

use larder::budget;
use larder::oci::Manifest;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while the bytes are moved.
        took(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `work` returns, and the most bytes that were allocated for it at a time.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let done = work();
    (done, (PEAK.load(Ordering::Relaxed) - before) as u64)
}

#[test]
fn a_document_of_any_kind_becomes_no_more_than_the_table_of_limits_says() {
    let mut most = 0;
    for (name, bomb) in documents::bombs() {
        let (parsed, peak) = peak_of(|| Manifest::parse(&bomb, None));
        let (_, again) = peak_of(|| larder::oci::annotations(&bomb));
        let outcome = match parsed {
            Ok(manifest) => format!("{} children", manifest.children.len()),
            Err(why) => {
                assert!(why.to_string().len() < 400, "{name}: {why}");
                why.to_string()
            }
        };
        println!("{name:32} {:>9} bytes  {peak:>9} peak  {again:>9} annotations  {outcome}", bomb.len());
        assert!(peak <= budget::MANIFEST_DECODED_BYTES_MAX, "{name} became {peak} bytes");
        assert!(again <= budget::MANIFEST_DECODED_BYTES_MAX, "annotations of {name} became {again} bytes");
        most = most.max(peak);
    }
    assert!(most > 100_000, "nothing was counted: {most}");
}
