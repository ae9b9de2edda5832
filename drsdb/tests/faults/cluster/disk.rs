//! A small disk: a tmpfs in a mount namespace that outlives the servers in it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Enough for everything that the workloads write.
const SIZE: &str = "192m";

/// Mounted until it is dropped.
pub struct SmallDisk {
    holder: Child,
    pid: u32,
    /// As processes outside the namespace see it.
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it at `folder`, for those who [`enter`](Self::enter); `None` where nobody may mount, which says
    /// on stderr why.
    pub async fn mount(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let script = format!("mount -t tmpfs -o size={SIZE} tmpfs \"$0\" && echo ready && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let pid = holder.id()?;
        let line = BufReader::new(holder.stdout.take()?).lines().next_line().await.ok()??;
        let absolute = folder.canonicalize().unwrap();
        let outside = Path::new("/proc").join(pid.to_string()).join("root").join(absolute.strip_prefix("/").unwrap());
        (line == "ready").then_some(Self { holder, pid, folder: outside })
    }

    /// What to put before a command that shall see the disk.
    pub fn enter(&self) -> Vec<String> {
        let target = self.pid.to_string();
        ["nsenter", "--user", "--mount", "--preserve-credentials", "--target", &target, "--"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Where it is for processes outside the namespace.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves no byte free.
    pub fn fill(&self) {
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let chunk = vec![0u8; size];
            while ballast.write_all(&chunk).is_ok() {}
        }
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.start_kill();
    }
}
