//! Which index servers there are: those that the configuration names, and those that an index server named since.
//!
//! The list of an index server is newer than a file that somebody wrote once; but when none of it answers, the file's may.
//! So the learned ones are asked first, and the others after them. What was learned is kept for the next start.

use std::{path::PathBuf, sync::Arc};

use drsdb_core::{Error, Result, Ulid};
use parking_lot::RwLock;
use url::Url;

use crate::small_file::{read_hint, replace_hint};

/// The index servers. Clones share what is learned.
#[derive(Debug, Clone)]
pub struct IndexServers {
    configured: Arc<Vec<Url>>,
    learned: Arc<RwLock<Vec<Url>>>,
    file: Arc<PathBuf>,
}

impl IndexServers {
    /// With what was learned before, if `file` is there.
    pub fn open(configured: Vec<Url>, file: PathBuf) -> Result<Self> {
        // A list that cannot be read is learned again.
        let kept = read_hint(&file)?.and_then(|bytes| serde_json::from_slice::<Vec<String>>(&bytes).ok());
        let learned = parse(&kept.unwrap_or_default());
        Ok(Self { configured: Arc::new(configured), learned: Arc::new(RwLock::new(learned)), file: Arc::new(file) })
    }

    /// All of them, the likeliest first. Never empty: a configuration names at least one.
    pub fn list(&self) -> Vec<Url> {
        let mut all = self.learned.read().clone();
        let more: Vec<Url> = self.configured.iter().filter(|url| !all.contains(url)).cloned().collect();
        all.extend(more);
        all
    }

    /// The one to ask at the `attempt`th time.
    pub fn at(&self, attempt: usize) -> Url {
        let all = self.list();
        all[attempt % all.len()].clone()
    }

    /// Takes in what an index server says; nothing, if that is empty.
    pub fn learn(&self, urls: &[String]) {
        let urls = parse(urls);
        if urls.is_empty() || *self.learned.read() == urls {
            return;
        }
        tracing::info!(index_servers = ?urls.iter().map(Url::as_str).collect::<Vec<_>>(), "the index servers are");
        *self.learned.write() = urls.clone();
        if let Err(error) = self.save(&urls) {
            tracing::warn!(%error, "could not keep the list of index servers: the next start learns it again");
        }
    }

    fn save(&self, urls: &[Url]) -> Result<()> {
        let texts: Vec<&str> = urls.iter().map(Url::as_str).collect();
        let bytes = serde_json::to_vec(&texts).map_err(|error| Error::internal(error.to_string()))?;
        replace_hint(&self.file, &bytes, "index_servers.written", "index_servers.renamed")
    }
}

fn parse(urls: &[String]) -> Vec<Url> {
    urls.iter().filter_map(|url| Url::parse(url).ok()).collect()
}

/// Whether an index server says it of the storage server `server`, and not of something else.
pub(crate) fn is_about(error: &Error, server: Ulid) -> bool {
    error.to_wire().fields.get("server").is_some_and(|named| *named == server.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(servers: &IndexServers) -> Vec<String> {
        servers.list().iter().map(Url::to_string).collect()
    }

    #[test]
    fn what_was_learned_comes_first_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("index_servers.json");
        let configured = vec![Url::parse("https://a:1").unwrap(), Url::parse("https://b:2").unwrap()];
        let servers = IndexServers::open(configured.clone(), file.clone()).unwrap();
        assert_eq!(texts(&servers), ["https://a:1/", "https://b:2/"]);
        servers.learn(&["https://c:3".to_owned(), "https://b:2/".to_owned()]);
        servers.learn(&[]);
        let again = IndexServers::open(configured, file).unwrap();
        for servers in [servers, again] {
            assert_eq!(texts(&servers), ["https://c:3/", "https://b:2/", "https://a:1/"]);
            assert_eq!(servers.at(4).as_str(), "https://b:2/");
        }
    }
}
