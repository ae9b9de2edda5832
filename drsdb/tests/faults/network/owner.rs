//! Which process a TCP connection of this machine belongs to, from `/proc`.

use std::fs;

/// The process among `candidates` that has the socket bound to `local` and connected to `remote`, both on IPv4.
pub fn process_of_connection(local: u16, remote: u16, candidates: impl Iterator<Item = u32>) -> Option<u32> {
    let table = fs::read_to_string("/proc/self/net/tcp").ok()?;
    let inode = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (from, to) = (fields.next()?, fields.next()?);
        (port(from)? == local && port(to)? == remote).then(|| fields.nth(6).map(str::to_owned)).flatten()
    })?;
    let socket = format!("socket:[{inode}]");
    for pid in candidates {
        // Processes and their files come and go while this looks.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            if fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket.as_str()) {
                return Some(pid);
            }
        }
    }
    None
}

/// `0100007F:1D08`: address and port in hexadecimal.
fn port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.split_once(':')?.1, 16).ok()
}
