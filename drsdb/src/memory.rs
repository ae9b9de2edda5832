//! How a process gets its memory from the operating system.

/// Keeps the number of malloc's arenas small. By default glibc makes up to eight for each core, and what is freed in one
/// serves no thread of another: an index server, through which all rows of loads pass and none of them stays, then holds
/// several times what it uses. Costs a few per cent of a load's speed. Call it before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn share_arenas() {
    // SAFETY: it sets a parameter of malloc, and nothing else runs yet.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    if done == 0 {
        tracing::warn!("malloc takes no limit of its arenas: more memory will be held");
    }
}

/// Other allocators have no such setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_arenas() {}
