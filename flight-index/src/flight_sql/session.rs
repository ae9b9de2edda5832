//! Session settings without a session: they live in a cookie that the client sends back.
//!
//! `SET name = value` answers with `set-cookie: drsdb_session=...`, which holds the settings themselves. A client without
//! cookies simply has the defaults. Settings change how a query runs, never what a user may do, so that the cookie needs
//! no signature; it is checked like any other input.

use std::str::FromStr;

use arrow::array::timezone::Tz;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use drsdb_core::{ErrorCode, Result, WireError, nearest_name, query_session::QueryOptions, v1};
use prost::Message;
use tonic::{Response, metadata::MetadataMap};

const COOKIE: &str = "drsdb_session";

/// The settings: name, what it does.
pub const SETTINGS: &[(&str, &str)] = &[
    ("time_zone", "conversions between TIMESTAMP and TIMESTAMP WITH TIME ZONE: +02:00"),
    ("batch_rows", "rows in a batch of a result, at most"),
    ("target_partitions", "threads of a query on each storage server"),
];

/// What a client has set.
#[derive(Debug, Clone)]
pub struct Session {
    options: QueryOptions,
    defaults: QueryOptions,
    changed: bool,
}

impl Session {
    /// The session of a request's cookie.
    pub fn of(metadata: &MetadataMap, defaults: &QueryOptions) -> Result<Self> {
        let mut session = Self { options: defaults.clone(), defaults: defaults.clone(), changed: false };
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
            ];
            for (name, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
                session.set(Some(name), Some(text)).map_err(|_| broken())?;
            }
            session.changed = false;
        }
        Ok(session)
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
            _ => Err(unknown(name)),
        }
    }

    /// The response with the cookie, if settings changed.
    pub fn attach<T>(&self, mut response: Response<T>) -> Response<T> {
        if self.changed {
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
            let cookie = format!("{COOKIE}={}; Path=/; Secure; HttpOnly", URL_SAFE_NO_PAD.encode(set.encode_to_vec()));
            let cookie = cookie.parse().expect("base64 and ASCII text make a header");
            response.metadata_mut().insert("set-cookie", cookie);
        }
        response
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
    fn broken_settings_and_cookies_are_refused() {
        let mut session = Session::of(&MetadataMap::new(), &QueryOptions::default()).unwrap();
        assert_eq!(session.set(Some("batch_row"), Some("1")).unwrap_err().to_wire().hint, "did you mean batch_rows?");
        for (name, value) in
            [("batch_rows", "0"), ("batch_rows", "x"), ("time_zone", "Moon"), ("target_partitions", "999")]
        {
            assert_eq!(session.set(Some(name), Some(value)).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        assert_eq!(with_cookie("drsdb_session=%%%").unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
