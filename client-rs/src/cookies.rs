//! The session's cookies. Servers keep nothing about a client: what SET changes comes back as a cookie and is sent
//! along with every later call, to whichever index server.

use tonic::metadata::MetadataMap;

/// Name and value of each cookie, in the order in which they came.
#[derive(Debug, Default, Clone)]
pub(crate) struct CookieJar(Vec<(String, String)>);

impl CookieJar {
    /// Adds the cookies to a request.
    pub fn apply(&self, request: &mut MetadataMap) {
        let cookies: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty()
            && let Ok(header) = cookies.join("; ").parse()
        {
            request.insert("cookie", header);
        }
    }

    /// Takes what a response sets. Attributes other than the one that removes a cookie mean nothing here: a client talks
    /// to one cluster, over TLS, and forgets its cookies when it ends.
    pub fn take(&mut self, response: &MetadataMap) {
        for header in response.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()) {
            let mut parts = header.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|cookie| cookie.split_once('=')) else { continue };
            let age =
                parts.filter_map(|part| part.split_once('=')).find(|(key, _)| key.eq_ignore_ascii_case("max-age"));
            let over = age.and_then(|(_, seconds)| seconds.parse::<i64>().ok()).is_some_and(|seconds| seconds <= 0);
            self.0.retain(|(known, _)| known != name);
            if !over {
                self.0.push((name.to_owned(), value.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_comes_back_until_it_is_removed() {
        let mut jar = CookieJar::default();
        let set = |jar: &mut CookieJar, text: &str| {
            let mut response = MetadataMap::new();
            response.append("set-cookie", text.parse().unwrap());
            jar.take(&response);
            let mut request = MetadataMap::new();
            jar.apply(&mut request);
            request.get("cookie").map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(set(&mut jar, "a=1; Path=/; Secure").as_deref(), Some("a=1"));
        assert_eq!(set(&mut jar, "b=x=y").as_deref(), Some("a=1; b=x=y"));
        assert_eq!(set(&mut jar, "a=2; Max-Age=60").as_deref(), Some("b=x=y; a=2"));
        assert_eq!(set(&mut jar, "b=; Max-Age=0").as_deref(), Some("a=2"));
        assert_eq!(set(&mut jar, "a=; max-age=0"), None);
    }
}
