//! Memory that the program is done with.

/// Gives freed memory back to the host. A whole map leaves much behind, message, steps and answers, and glibc keeps what
/// lies between things that stay; other allocators see to it by themselves.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    trim();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no library has this call")]
fn trim() {
    // SAFETY: the call takes a number and no pointer, and locks the allocator by itself (malloc_trim(3): MT-Safe).
    unsafe { nix::libc::malloc_trim(0) };
}
