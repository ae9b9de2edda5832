//! Session settings without a session: they live in a cookie that the client sends back.
//!
//! `SET name = value` answers with `set-cookie: drsdb_session=...`, which holds the settings themselves. A client without
//! cookies simply has the defaults. Settings change how a query runs, never what a user may do, so that the cookie needs
//! no signature; it is checked like any other input.

use std::{str::FromStr, time::Duration};

use arrow::array::timezone::Tz;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use drsdb_core::{ErrorCode, Result, Ulid, WireError, nearest_name, parse_ulid, query_session::QueryOptions, v1};
use prost::Message;
use tonic::{Response, Status, metadata::MetadataMap};

use crate::{
    raft::ReadConsistency,
    transaction::{Handle, Timeouts},
};

const COOKIE: &str = "drsdb_session";

/// The settings: name, what it does.
pub const SETTINGS: &[(&str, &str)] = &[
    ("time_zone", "conversions between TIMESTAMP and TIMESTAMP WITH TIME ZONE: +02:00"),
    ("batch_rows", "rows in a batch of a result, at most"),
    ("target_partitions", "threads of a query on each storage server"),
    ("idle_in_transaction_timeout", "how long a transaction may wait for its next statement: '60s'; 0: for ever"),
    ("statement_timeout", "how long a statement may take: '30s'; 0: for ever"),
    ("read_consistency", "how new what is read must be: 'linearizable', or 'bounded 5s': at most so old"),
];

/// What a client has set.
#[derive(Debug, Clone)]
pub struct Session {
    options: QueryOptions,
    defaults: QueryOptions,
    timeouts: Timeouts,
    read_consistency: ReadConsistency,
    /// The transaction that BEGIN opened.
    transaction: Option<Handle>,
    /// A COMMIT of which it was not known what came, by the client's id of it, and the transaction that it ended.
    ended: Option<(Ulid, Handle)>,
    changed: bool,
}

impl Session {
    /// The session of a request's cookie.
    pub fn of(metadata: &MetadataMap, defaults: &QueryOptions) -> Result<Self> {
        let mut session = Self {
            options: defaults.clone(),
            defaults: defaults.clone(),
            timeouts: Timeouts::default(),
            read_consistency: ReadConsistency::default(),
            transaction: None,
            ended: None,
            changed: false,
        };
        if let Some(value) = find_cookie(metadata) {
            let broken = || {
                WireError::new(ErrorCode::InvalidArgument, format!("the cookie {COOKIE} is broken"))
                    .with_hint("connect again without cookies")
            };
            let bytes = URL_SAFE_NO_PAD.decode(value).map_err(|_| broken())?;
            let set = v1::SessionOptions::decode(bytes.as_slice()).map_err(|_| broken())?;
            // Only what was set is in the cookie; everything is checked as SET checks it.
            let texts = [
                ("time_zone", set.time_zone),
                ("batch_rows", number_text(set.batch_rows)),
                ("target_partitions", number_text(set.target_partitions)),
                ("idle_in_transaction_timeout", milliseconds_text(set.idle_in_transaction_timeout_ms)),
                ("statement_timeout", milliseconds_text(set.statement_timeout_ms)),
                ("read_consistency", set.read_bound_ms.map(|ms| format!("bounded {ms}ms")).unwrap_or_default()),
            ];
            for (name, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
                session.set(Some(name), Some(text)).map_err(|_| broken())?;
            }
            if !set.transaction.is_empty() {
                session.transaction = Some(Handle::decode(&set.transaction)?);
            }
            if !set.ended.is_empty() {
                session.ended = Some((parse_ulid(&set.ended_by)?, Handle::decode(&set.ended)?));
            }
            session.changed = false;
        }
        Ok(session)
    }

    /// How long its client may take.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// How new what is read must be.
    pub fn read_consistency(&self) -> ReadConsistency {
        self.read_consistency
    }

    /// The same for tickets and cookies.
    pub fn read_bound_ms(&self) -> Option<u64> {
        match self.read_consistency {
            ReadConsistency::Linearizable => None,
            ReadConsistency::Bounded(bound) => Some(milliseconds(Some(bound))),
        }
    }

    /// The transaction that BEGIN opened.
    pub fn transaction(&self) -> Option<&Handle> {
        self.transaction.as_ref()
    }

    /// The transaction that this COMMIT has ended before, if nobody knew what came of it.
    pub fn ended_by(&self, statement: Option<Ulid>) -> Option<&Handle> {
        self.ended.as_ref().filter(|(by, _)| Some(*by) == statement).map(|(_, handle)| handle)
    }

    /// See [`Session::ended_by`].
    pub fn set_ended(&mut self, ended: Option<(Ulid, Handle)>) {
        self.changed |= self.ended != ended;
        self.ended = ended;
    }

    /// A transaction was begun, or ended.
    pub fn set_transaction(&mut self, transaction: Option<Handle>) {
        self.changed |= self.transaction != transaction;
        self.transaction = transaction;
    }

    /// The options for planning.
    pub fn options(&self) -> &QueryOptions {
        &self.options
    }

    /// SET and RESET; no name: every setting.
    pub fn set(&mut self, name: Option<&str>, value: Option<&str>) -> Result<()> {
        self.changed = true;
        let Some(name) = name else {
            self.options = self.defaults.clone();
            self.timeouts = Timeouts::default();
            self.read_consistency = ReadConsistency::default();
            return Ok(());
        };
        let bad = |hint: &str| {
            let message = format!("{:?} is no value for the setting {name}", value.unwrap_or_default());
            WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint)
        };
        let number = |most: usize, default: usize| match value {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .filter(|number| (1..=most).contains(number))
                .ok_or_else(|| bad(&format!("write a number from 1 to {most}"))),
        };
        match name {
            "time_zone" | "timezone" => {
                let zone = value.unwrap_or(&self.defaults.time_zone);
                let zone = if zone.eq_ignore_ascii_case("utc") { "+00:00" } else { zone };
                Tz::from_str(zone).map_err(|_| bad("write an offset from UTC: SET time_zone = '+02:00'"))?;
                self.options.time_zone = zone.to_owned();
            }
            "batch_rows" => self.options.batch_rows = number(65_536, self.defaults.batch_rows)?,
            "target_partitions" => self.options.target_partitions = number(256, self.defaults.target_partitions)?,
            "idle_in_transaction_timeout" => {
                let default = Timeouts::default().idle;
                self.timeouts.idle =
                    value.map_or(Ok(default), |text| parse_timeout(text).ok_or_else(|| bad(DURATIONS)))?;
            }
            "statement_timeout" => {
                let default = Timeouts::default().statement;
                self.timeouts.statement =
                    value.map_or(Ok(default), |text| parse_timeout(text).ok_or_else(|| bad(DURATIONS)))?;
            }
            "read_consistency" => {
                let parse = |text| parse_consistency(text).ok_or_else(|| bad(CONSISTENCIES));
                self.read_consistency = value.map_or(Ok(ReadConsistency::default()), parse)?;
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// A setting's value.
    pub fn get(&self, name: &str) -> Result<String> {
        match name {
            "time_zone" | "timezone" => Ok(self.options.time_zone.clone()),
            "batch_rows" => Ok(self.options.batch_rows.to_string()),
            "target_partitions" => Ok(self.options.target_partitions.to_string()),
            "idle_in_transaction_timeout" => Ok(timeout_text(self.timeouts.idle)),
            "statement_timeout" => Ok(timeout_text(self.timeouts.statement)),
            "read_consistency" => Ok(match self.read_consistency {
                ReadConsistency::Linearizable => "linearizable".to_owned(),
                ReadConsistency::Bounded(bound) => format!("bounded {}", timeout_text(Some(bound))),
            }),
            _ => Err(unknown(name)),
        }
    }

    /// The response with the cookie, if settings changed.
    pub fn attach<T>(&self, mut response: Response<T>) -> Response<T> {
        self.set_cookie(response.metadata_mut());
        response
    }

    /// The refusal with the cookie: a COMMIT that fails ends the transaction as well.
    pub fn attach_status(&self, mut status: Status) -> Status {
        self.set_cookie(status.metadata_mut());
        status
    }

    fn set_cookie(&self, metadata: &mut MetadataMap) {
        if !self.changed {
            return;
        }
        let mut set = v1::SessionOptions::default();
        if self.options.time_zone != self.defaults.time_zone {
            set.time_zone = self.options.time_zone.clone();
        }
        if self.options.batch_rows != self.defaults.batch_rows {
            set.batch_rows = self.options.batch_rows as u32;
        }
        if self.options.target_partitions != self.defaults.target_partitions {
            set.target_partitions = self.options.target_partitions as u32;
        }
        let defaults = Timeouts::default();
        if self.timeouts.idle != defaults.idle {
            set.idle_in_transaction_timeout_ms = Some(milliseconds(self.timeouts.idle));
        }
        if self.timeouts.statement != defaults.statement {
            set.statement_timeout_ms = Some(milliseconds(self.timeouts.statement));
        }
        set.read_bound_ms = self.read_bound_ms();
        set.transaction = self.transaction.as_ref().map(Handle::encode).unwrap_or_default().into();
        if let Some((by, handle)) = &self.ended {
            (set.ended_by, set.ended) = (by.to_string(), handle.encode().into());
        }
        let cookie = format!("{COOKIE}={}; Path=/; Secure; HttpOnly", URL_SAFE_NO_PAD.encode(set.encode_to_vec()));
        let cookie = cookie.parse().expect("base64 and ASCII text make a header");
        metadata.insert("set-cookie", cookie);
    }
}

const DURATIONS: &str = "write a time with its unit, '500ms', '30s' or '5min', or 0 for none";

/// A time as SQL users write it; a number alone is milliseconds, and 0 is no limit.
fn parse_timeout(text: &str) -> Option<Option<Duration>> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let ms = number.checked_mul(unit_ms)?;
    Some((ms > 0).then(|| Duration::from_millis(ms)))
}

/// What [`Session::read_bound_ms`] stands for.
pub fn bounded(read_bound_ms: Option<u64>) -> ReadConsistency {
    read_bound_ms.map_or(ReadConsistency::Linearizable, |ms| ReadConsistency::Bounded(Duration::from_millis(ms)))
}

const CONSISTENCIES: &str = "write 'linearizable', or 'bounded' and a time with its unit, such as 'bounded 5s'";

fn parse_consistency(text: &str) -> Option<ReadConsistency> {
    let text = text.trim().to_ascii_lowercase();
    if text == "linearizable" {
        return Some(ReadConsistency::Linearizable);
    }
    let bound = text.strip_prefix("bounded")?;
    if !bound.starts_with(char::is_whitespace) {
        return None;
    }
    // No time at all would be no bound, or the strictest: nobody can tell which is meant.
    parse_timeout(bound)?.map(ReadConsistency::Bounded)
}

fn milliseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

fn milliseconds_text(ms: Option<u64>) -> String {
    ms.map(|ms| ms.to_string()).unwrap_or_default()
}

fn timeout_text(timeout: Option<Duration>) -> String {
    match milliseconds(timeout) {
        0 => "0".to_owned(),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

fn number_text(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

fn unknown(name: &str) -> drsdb_core::Error {
    let names = SETTINGS.iter().map(|(name, _)| *name);
    let error = WireError::new(ErrorCode::NotFound, format!("there is no setting {name}"));
    match nearest_name(name, names.clone()) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error.with_hint(format!("the settings are {}", names.collect::<Vec<_>>().join(", "))),
    }
    .into()
}

fn find_cookie(metadata: &MetadataMap) -> Option<&str> {
    let headers = metadata.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
    let mut cookies = headers.flat_map(|value| value.split(';'));
    cookies.find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cookie(cookie: &str) -> Result<Session> {
        let mut metadata = MetadataMap::new();
        metadata.insert("cookie", cookie.parse().unwrap());
        Session::of(&metadata, &QueryOptions::default())
    }

    #[test]
    fn settings_survive_in_the_cookie() {
        let mut session = Session::of(&MetadataMap::new(), &QueryOptions::default()).unwrap();
        session.set(Some("time_zone"), Some("+02:00")).unwrap();
        session.set(Some("batch_rows"), Some("100")).unwrap();
        let response = session.attach(Response::new(()));
        let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap();
        let back = with_cookie(&format!("other=1; {}", cookie.split(';').next().unwrap())).unwrap();
        assert_eq!(back.get("time_zone").unwrap(), "+02:00");
        assert_eq!(back.get("batch_rows").unwrap(), "100");
        assert_eq!(back.get("target_partitions").unwrap(), QueryOptions::default().target_partitions.to_string());
        assert!(back.attach(Response::new(())).metadata().get("set-cookie").is_none());
    }

    #[test]
    fn an_open_transaction_and_timeouts_survive_in_the_cookie() {
        let mut session = Session::of(&MetadataMap::new(), &QueryOptions::default()).unwrap();
        let handle = Handle { id: drsdb_core::ids::new_ulid(), server: "https://index:1".to_owned() };
        session.set_transaction(Some(handle.clone()));
        session.set_ended(Some((Ulid(3), handle.clone())));
        session.set(Some("statement_timeout"), Some("2s")).unwrap();
        session.set(Some("idle_in_transaction_timeout"), Some("0")).unwrap();
        let status = session.attach_status(Status::aborted("x"));
        let cookie = status.metadata().get("set-cookie").unwrap().to_str().unwrap();
        let back = with_cookie(cookie.split(';').next().unwrap()).unwrap();
        assert_eq!(back.transaction(), Some(&handle));
        assert_eq!(
            (back.ended_by(Some(Ulid(3))), back.ended_by(Some(Ulid(4))), back.ended_by(None)),
            (Some(&handle), None, None)
        );
        assert_eq!(back.timeouts(), Timeouts { idle: None, statement: Some(Duration::from_secs(2)) });
        assert_eq!(back.get("statement_timeout").unwrap(), "2s");
    }

    #[test]
    fn read_consistency_is_set_shown_and_kept() {
        let mut session = Session::of(&MetadataMap::new(), &QueryOptions::default()).unwrap();
        assert_eq!(session.get("read_consistency").unwrap(), "linearizable");
        for (text, shown) in [("bounded 5s", "bounded 5s"), ("Bounded  1500 ms", "bounded 1500ms")] {
            session.set(Some("read_consistency"), Some(text)).unwrap();
            assert_eq!(session.get("read_consistency").unwrap(), shown);
        }
        let response = session.attach(Response::new(()));
        let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap();
        let mut back = with_cookie(cookie.split(';').next().unwrap()).unwrap();
        assert_eq!(back.read_consistency(), ReadConsistency::Bounded(Duration::from_millis(1500)));
        back.set(Some("read_consistency"), None).unwrap();
        assert_eq!(back.read_consistency(), ReadConsistency::Linearizable);
        for text in ["bounded", "bounded 0", "bounded5s", "bounded soon", "eventual", ""] {
            let error = back.set(Some("read_consistency"), Some(text)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{text}");
            assert!(error.to_wire().hint.contains("'bounded 5s'"), "{error}");
        }
    }

    #[test]
    fn broken_settings_and_cookies_are_refused() {
        let mut session = Session::of(&MetadataMap::new(), &QueryOptions::default()).unwrap();
        assert_eq!(session.set(Some("batch_row"), Some("1")).unwrap_err().to_wire().hint, "did you mean batch_rows?");
        for (name, value) in [
            ("batch_rows", "0"),
            ("batch_rows", "x"),
            ("time_zone", "Moon"),
            ("target_partitions", "999"),
            ("statement_timeout", "2 weeks"),
        ] {
            assert_eq!(session.set(Some(name), Some(value)).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        assert_eq!(with_cookie("drsdb_session=%%%").unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
