//! URL handling for the hub client.

/// Returns scheme, host and port: a token is sent only to the hub's origin.
pub(super) fn origin(url: &str) -> Option<(String, String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_lowercase();
    let default_port = match &*scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    // User info before an @ is not a host, and our addresses never have it.
    if authority.contains(['@', '\\']) {
        return None;
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default_port),
    };
    (!host.is_empty()).then(|| (scheme, host.to_lowercase(), port))
}

/// Resolves the redirect target `location` against `base`.
pub(super) fn join(base: &str, location: &str) -> Option<String> {
    let (scheme, rest) = base.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    if location.contains("://") && origin(location).is_some() {
        return Some(location.into());
    }
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    location.starts_with('/').then(|| format!("{scheme}://{host}{location}"))
}

/// Percent-encodes `text` for a path; keeps `/` if `keep_slash`.
pub(super) fn encode(text: &str, keep_slash: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'/' if keep_slash => encoded.push('/'),
            b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Returns an address for messages, without its query, which may contain an access signature.
pub(super) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Returns scheme, host and port of an address, for messages.
pub(super) fn server(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    &url[..url[host..].find(['/', '?', '#']).map_or(url.len(), |length| host + length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(a).is_some() && origin(a) == origin(b);
        assert!(same("https://a.b/c?d", "HTTPS://A.b:443/e"));
        assert!(same("http://[::1]:8080/x", "http://[::1]:8080"));
        for other in ["http://a.b/c", "https://a.b:444/", "https://b.a.b/", "https://a.b.c/", "https://a.b@c/", "//a.b"]
        {
            assert!(!same("https://a.b", other), "{other}");
        }
    }

    #[test]
    fn relative_redirects_resolve_against_the_request() {
        for (location, wanted) in [
            ("/x/y", Some("https://a:1/x/y")),
            ("http://b/z?s", Some("http://b/z?s")),
            ("//c/d", Some("https://c/d")),
            ("file:///etc/passwd", None),
            ("other", None),
        ] {
            assert_eq!(join("https://a:1/b?c", location).as_deref(), wanted);
        }
        assert_eq!(shown("https://a/b?Signature=s#f"), "https://a/b");
        assert_eq!((server("https://a:1/b?c"), server("https://a")), ("https://a:1", "https://a"));
        assert_eq!((&*encode("refs/pr/1", false), &*encode("a b/c+ä", true)), ("refs%2Fpr%2F1", "a%20b/c%2B%C3%A4"));
    }
}
