//! `WITH (engine = 'column', shards = 12, replicas = 3, shard_key = 'a,b', cluster_key = 'a,b')`.

use datafusion::sql::sqlparser::ast::{Expr, Ident, SqlOption, Value};
use drsdb_core::{Engine, ErrorCode, Result, WireError, nearest_name, shard::MAX_SHARDS};

use super::{create_table::parse_name_list, names::positioned};

const NAMES: &[&str] = &["engine", "shards", "replicas", "shard_key", "cluster_key"];
/// More copies than any cluster has use for.
const MAX_REPLICAS: u32 = 7;

/// What WITH says about a table; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// How shards are stored.
    pub engine: Option<Engine>,
    /// How many shards.
    pub shards: Option<u32>,
    /// How many copies of each shard.
    pub replicas: Option<u32>,
    /// Names of the columns that decide a row's shard.
    pub shard_key: Option<Vec<String>>,
    /// Names of the columns that order segments.
    pub cluster_key: Option<Vec<String>>,
}

impl TableOptions {
    /// Reads the list of a WITH clause.
    pub fn parse(options: &[SqlOption]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let SqlOption::KeyValue { key, value } = option else {
                let error = WireError::new(ErrorCode::Syntax, format!("{option} is not an option of a table"));
                return Err(error.with_hint(all_names()).into());
            };
            let text = option_text(key, value)?;
            parsed.set(&key.value.to_lowercase(), &text).map_err(|error| positioned(error, key.span.start))?;
        }
        Ok(parsed)
    }

    /// Sets one option; each at most once.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), WireError> {
        let bad = |hint: String| {
            WireError::new(ErrorCode::InvalidArgument, format!("{text:?} is no value for the table option {name}"))
                .with_hint(hint)
        };
        let before = match name {
            "engine" => self
                .engine
                .replace(match text.to_lowercase().as_str() {
                    "row" => Engine::Row,
                    "column" => Engine::Column,
                    _ => return Err(bad("write engine = 'row' or engine = 'column'".to_owned())),
                })
                .is_some(),
            "shards" => {
                let shards = text.parse::<u32>().ok().filter(|shards| (1..=MAX_SHARDS).contains(shards));
                self.shards
                    .replace(shards.ok_or_else(|| bad(format!("write a number from 1 to {MAX_SHARDS}")))?)
                    .is_some()
            }
            "replicas" => {
                let replicas = text.parse::<u32>().ok().filter(|replicas| (1..=MAX_REPLICAS).contains(replicas));
                self.replicas
                    .replace(replicas.ok_or_else(|| bad(format!("write a number from 1 to {MAX_REPLICAS}")))?)
                    .is_some()
            }
            "shard_key" | "cluster_key" => {
                let columns = parse_name_list(text).ok_or_else(|| bad(format!("write {name} = 'column, column'")))?;
                if name == "shard_key" { &mut self.shard_key } else { &mut self.cluster_key }.replace(columns).is_some()
            }
            _ => {
                let hint = match nearest_name(name, NAMES.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => all_names(),
                };
                return Err(
                    WireError::new(ErrorCode::NotFound, format!("tables have no option {name}")).with_hint(hint)
                );
            }
        };
        if before {
            return Err(WireError::new(ErrorCode::InvalidArgument, format!("the table option {name} is there twice")));
        }
        Ok(())
    }
}

fn all_names() -> String {
    format!("the options are {}", NAMES.join(", "))
}

fn option_text(key: &Ident, value: &Expr) -> Result<String> {
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => return Ok(text.clone()),
            _ => {}
        },
        Expr::Identifier(ident) => return Ok(ident.value.clone()),
        _ => {}
    }
    let error = WireError::new(ErrorCode::InvalidArgument, format!("{value} is no value for a table option"))
        .with_hint(format!("write {} = 'text' or a number", key.value));
    Err(positioned(error, key.span.start).into())
}
