//! Values as configurations write them: URLs, lists of them, and the machine's memory as a default.

use serde_json::Value;

/// Removes what is null: a flag that was not given.
pub(super) fn drop_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(drop_nulls);
    }
}

/// Bytes of memory that this process may use at most: the machine's, or its control group's if that is less.
pub fn machine_memory_bytes() -> usize {
    /// Where neither is told.
    const ASSUMED: usize = 4 << 30;
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total(&text));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group).min().unwrap_or(ASSUMED)
}

fn memory_total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A URL as text.
pub(super) mod url {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use url::Url;

    pub(in super::super) fn serialize<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(url.as_str())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
        parse(&String::deserialize(deserializer)?)
    }

    pub(super) fn parse<E: Error>(text: &str) -> Result<Url, E> {
        Url::parse(text.trim()).map_err(|error| E::custom(format!("{text:?} is not https://host:port ({error})")))
    }
}

/// URLs as a list, or as one text with commas, which is what an environment variable can hold.
pub(super) mod urls {
    use serde::{Deserialize, Deserializer, Serializer};
    use url::Url;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum ListOrText {
        List(Vec<String>),
        Text(String),
    }

    pub(in super::super) fn serialize<S: Serializer>(urls: &[Url], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(urls.iter().map(Url::as_str))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Url>, D::Error> {
        let texts = match ListOrText::deserialize(deserializer)? {
            ListOrText::List(texts) => texts,
            ListOrText::Text(text) => {
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
        };
        texts.iter().map(|text| super::url::parse(text)).collect()
    }
}

/// Index servers by their numbers: `{ 1 = "https://a:7432", 2 = "https://b:7432" }`.
pub(super) mod voters {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use url::Url;

    pub(in super::super) fn serialize<S: Serializer>(
        voters: &BTreeMap<u64, Url>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(voters.iter().map(|(id, url)| (id.to_string(), url.as_str())))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u64, Url>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        let voter = |(id, url): (&String, &String)| {
            let id = id.parse().map_err(|_| {
                D::Error::custom(format!("{id:?} is no node_id: voters are written as 1 = \"https://host:port\""))
            })?;
            Ok((id, super::url::parse(url)?))
        };
        texts.iter().map(voter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        assert_eq!(memory_total("MemTotal:       16318480 kB\nMemFree: 1 kB\n"), Some(16_318_480 * 1024));
        assert_eq!(memory_total("nothing"), None);
        assert!(machine_memory_bytes() > 0);
    }

    #[test]
    fn nulls_go_and_the_rest_stays() {
        let mut value = serde_json::json!({"a": null, "b": {"c": null, "d": 0}, "e": false});
        drop_nulls(&mut value);
        assert_eq!(value, serde_json::json!({"b": {"d": 0}, "e": false}));
    }
}
