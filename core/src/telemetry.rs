//! What a process says while it runs: `tracing` events, as lines on standard error. Standard output belongs to results.

use std::io::IsTerminal;

use drsdb_proto::{ErrorCode, WireError};
use tracing_subscriber::EnvFilter;

use crate::Result;

/// Libraries that speak of every frame, page or packet: their warnings are enough unless someone asks for more.
const QUIET: &[&str] = &["h2", "hyper", "hyper_util", "rustls", "tonic", "tower", "sqlparser", "openraft"];

/// Starts logging at `level`: `error`, `warn`, `info`, `debug` or `trace`, or filters as `info,drsdb_index=debug`.
/// Starting it again, as tests do, changes nothing.
///
/// Errors: `invalid_argument` for a level that is none.
pub fn init(level: &str) -> Result<()> {
    let filter = filter(level)?;
    let _already_started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter> {
    let bad = |why: &dyn std::fmt::Display| {
        WireError::new(ErrorCode::InvalidArgument, format!("{level:?} is no log level: {why}"))
            .with_hint("use error, warn, info, debug or trace, or filters as info,drsdb_index=debug")
    };
    let mut filters = Vec::new();
    for part in level.split(',').map(str::trim) {
        // Alone, a word that is no level would be a filter for a module of that name, and silence everything else.
        let is_level = ["error", "warn", "info", "debug", "trace", "off"].contains(&part.to_ascii_lowercase().as_str());
        if !is_level && !part.contains('=') {
            return Err(bad(&format!("{part:?} is neither a level nor a filter")).into());
        }
        filters.push(part.to_owned());
    }
    let mentioned = |name: &str| filters.iter().any(|filter| filter.starts_with(&format!("{name}=")));
    let quiet: Vec<String> = QUIET.iter().filter(|name| !mentioned(name)).map(|name| format!("{name}=warn")).collect();
    filters.extend(quiet);
    EnvFilter::builder().parse(filters.join(",")).map_err(|error| bad(&error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken() {
        for level in ["info", "WARN", "info,drsdb_index=debug", "debug,h2=trace"] {
            filter(level).unwrap();
        }
        assert!(filter("debug,h2=trace").unwrap().to_string().contains("h2=trace"));
        assert!(filter("debug").unwrap().to_string().contains("h2=warn"));
    }

    #[test]
    fn other_words_are_refused() {
        for level in ["", "loud", "info,,", "info,drsdb=loud"] {
            assert_eq!(filter(level).unwrap_err().code(), ErrorCode::InvalidArgument, "{level:?}");
        }
        assert_eq!(init("loud").unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
