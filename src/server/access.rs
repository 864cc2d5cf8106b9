//! Access control: host names and origins, which protect against DNS rebinding and cross-site requests; API keys; the
//! content type.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts, uri::Authority};
use subtle::{Choice, ConstantTimeEq};

use super::error::{ApiError, Result};

/// The access rules.
#[derive(Default)]
pub struct Access {
    /// BLAKE3 hashes of the API keys; empty: no key is needed.
    keys: Vec<blake3::Hash>,
    /// Allowed host names in addition to `localhost` and IP addresses; `None`: any, for a Unix socket, which web pages
    /// cannot reach.
    hosts: Option<Vec<String>>,
    /// Allowed origins of web pages, such as `https://chat.example.org`; `*`: all.
    origins: Vec<String>,
    hints: Hints,
}

/// Advice for the operator, appended to error messages after a semicolon.
#[derive(Clone, Copy, Debug)]
pub struct Hints {
    /// For an unknown host name.
    pub host: &'static str,
    /// For an origin that is not allowed.
    pub origin: &'static str,
}

impl Default for Hints {
    fn default() -> Self {
        Self { host: "use localhost or an address", origin: "send the request without an Origin header" }
    }
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Derived from the API key; empty without one. Cached state is never shared between owners.
    pub owner: String,
}

impl Access {
    /// Allows clients that have one of `keys` (all clients if empty), use one of the names `hosts`, and are not web
    /// pages or belong to one of `origins`.
    pub fn new(keys: &[String], hosts: Option<Vec<String>>, origins: Vec<String>) -> Self {
        let keys = keys.iter().map(|key| blake3::hash(key.as_bytes())).collect();
        Self { keys, hosts, origins, hints: Hints::default() }
    }

    /// Replaces the hints.
    pub fn with_hints(self, hints: Hints) -> Self {
        Self { hints, ..self }
    }

    /// Returns the caller, or the reason for the refusal. Whether a key is needed depends on the route.
    pub fn check(&self, request: &Parts, needs_key: bool) -> Result<Caller> {
        self.check_host(request)?;
        self.check_origin(&request.headers)?;
        let caller = if needs_key { self.caller(&request.headers)? } else { Caller { owner: String::new() } };
        if request.method == Method::POST {
            check_type(&request.headers)?;
        }
        Ok(caller)
    }

    /// Prevents DNS rebinding: a page whose name resolves to this machine uses that name as the host.
    fn check_host(&self, request: &Parts) -> Result<()> {
        let mut hosts_given = request.headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts_given.next(), hosts_given.next()) else {
            return Err(ApiError::bad("the request must have one Host header"));
        };
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        let authorities = [authority.as_ref(), request.uri.authority()];
        let refused = match &authority {
            None => String::from_utf8_lossy(host.as_bytes()).into_owned(),
            Some(_) => match authorities.into_iter().flatten().find(|a| !is_allowed_host(a.host(), hosts)) {
                None => return Ok(()),
                Some(refused) => refused.host().to_owned(),
            },
        };
        let message = format!("the host name `{refused}` is not allowed; {}", self.hints.host);
        Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("host_not_allowed"))
    }

    /// Browsers send the origin of the page.
    fn check_origin(&self, headers: &HeaderMap) -> Result<()> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_own = |origin: &str| {
            let host = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            host.is_some() && host == own
        };
        if self.allows(origin) || origin.to_str().is_ok_and(is_own) {
            return Ok(());
        }
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let message = format!("the origin `{origin}` is not allowed; {}", self.hints.origin);
        Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("origin_not_allowed"))
    }

    /// Whether requests from `origin` are allowed.
    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || origin == allowed.as_str())
    }

    /// Compares with all keys in constant time.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        if self.keys.is_empty() {
            return Ok(Caller { owner: String::new() });
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let hash = blake3::hash(given.unwrap_or_default());
        let same = |key: &blake3::Hash| key.as_bytes().ct_eq(hash.as_bytes());
        let is_valid = self.keys.iter().fold(Choice::from(0), |is_valid, key| is_valid | same(key));
        if given.is_some() && bool::from(is_valid) {
            return Ok(Caller { owner: hash.to_hex().to_string() });
        }
        let message = match given {
            Some(_) => "invalid API key",
            None => "an API key is required: send the header `Authorization: Bearer KEY`",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
    }

    /// Adds the CORS headers that let pages of allowed origins read `answer`; `request_headers` are the request headers.
    pub fn add_cors(&self, request_headers: &HeaderMap, answer: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        answer.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = request_headers.get(header::ORIGIN).filter(|origin| self.allows(origin)) else { return };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
        if request_headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            if let Some(wanted) = request_headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
                answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
            }
        }
    }
}

/// Whether the server accepts the host name. A web page's own name is never an IP address of this machine, or
/// `localhost`.
fn is_allowed_host(host: &str, is_valid: &[String]) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || is_valid.iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// Returns the key of a bearer token.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// Browsers send JSON across origins only after a preflight request, unlike other content types.
fn check_type(headers: &HeaderMap) -> Result<()> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mime = value.split(';').next().unwrap_or_default().trim();
    if mime.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the body must be JSON, with the header `Content-Type: application/json`";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).with_code("unsupported_media_type"))
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn status(access: &Access, headers: &[(&str, &str)], post: bool) -> u16 {
        let mut request = Request::builder().uri("/v1/models").method(if post { "POST" } else { "GET" });
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        access.check(&parts, true).map_or_else(|e| e.status.as_u16(), |_| 200)
    }

    #[test]
    fn unknown_host_names_are_rejected() {
        let access = Access::new(&[], Some(vec!["llm.example.org".into()]), Vec::new());
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:1", "10.0.0.7", "llm.example.org:443"] {
            assert_eq!(status(&access, &[("host", host)], false), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8080", "", "a b"] {
            assert_eq!(status(&access, &[("host", host)], false), 403, "{host}");
        }
        assert_eq!(status(&access, &[], false), 400);
        assert_eq!(status(&access, &[("host", "localhost"), ("host", "localhost")], false), 400);
        let socket = Access::new(&[], None, Vec::new());
        assert_eq!(status(&socket, &[("host", "anything")], false), 200);
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let access = Access::new(&[], Some(Vec::new()), vec!["https://chat.example.org".into()]);
        let host = ("host", "localhost:8080");
        for (origin, expected) in [
            ("http://localhost:8080", 200),
            ("https://chat.example.org", 200),
            ("http://localhost:3000", 403),
            ("https://chat.example.org.evil", 403),
            ("null", 403),
        ] {
            assert_eq!(status(&access, &[host, ("origin", origin)], false), expected, "{origin}");
        }
    }

    #[test]
    fn api_keys_are_required_and_identify_owners() {
        let access = Access::new(&["one".into(), "two".into()], Some(Vec::new()), Vec::new());
        let host = ("host", "localhost");
        for (key, expected) in
            [("Bearer one", 200), ("bearer two ", 200), ("Bearer ", 401), ("one", 401), ("Bearer on", 401)]
        {
            assert_eq!(status(&access, &[host, ("authorization", key)], false), expected, "{key}");
        }
        assert_eq!(status(&access, &[host], false), 401);
        let owner = |key: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap())]);
            access.caller(&headers).unwrap().owner
        };
        assert!(owner("one") != owner("two") && !owner("one").contains("one"));
    }

    #[test]
    fn posts_must_be_json() {
        let access = Access::new(&[], Some(Vec::new()), Vec::new());
        for (kind, expected) in
            [("application/json; charset=utf-8", 200), ("text/plain", 415), ("application/x-www-form-urlencoded", 415)]
        {
            assert_eq!(status(&access, &[("host", "localhost"), ("content-type", kind)], true), expected, "{kind}");
        }
        assert_eq!(status(&access, &[("host", "localhost")], true), 415);
    }
}
