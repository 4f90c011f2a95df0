//! What is freed goes back to the system, so that `memory.max` is also what the process holds afterwards.
//!
//! glibc learns from the first large piece that is freed to keep later ones of that size, in as many arenas as there are
//! threads: twenty indexes of 4 MB, one after the other, left 62 MiB, and 60 at once 98. Where the threshold is set it learns
//! nothing. musl, which the programs for boards are linked with, gives large pieces back as it is. A failure leaves glibc's
//! ways.

/// To be called while there is one thread.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(super) fn give_back_what_is_freed() {
    // SAFETY: as in malloc.h; it takes any numbers.
    unsafe extern "C" {
        safe fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    const M_ARENA_MAX: std::ffi::c_int = -8;
    mallopt(M_MMAP_THRESHOLD, crate::budget::ALLOCATION_OF_ITS_OWN_BYTES);
    mallopt(M_ARENA_MAX, crate::budget::ARENAS_MAX);
}

/// There is nothing to be said to other libraries.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back_what_is_freed() {}
