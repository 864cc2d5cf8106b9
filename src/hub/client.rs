//! Requests to a hub and to the targets of its redirects. The token is sent only to the hub.

use std::{
    io::{self, ErrorKind, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ureq::{
    Agent, Body, Proxy,
    config::Config,
    http::{HeaderMap, Request, Response, StatusCode},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    HUB, Settings,
    retry::{Backoff, Failure},
    url::{join, origin, server, shown},
};
use crate::{Error, Result, limits};

/// A server's response: status, headers, and an unread body.
pub(super) type Answer = Response<Body>;

/// Maximum redirects per request.
const REDIRECTS: usize = 5;
/// Connection timeout.
const CONNECT: Duration = Duration::from_secs(15);

/// A hub client.
pub struct Client {
    settings: Settings,
    direct: Agent,
    /// For `https` and for `http` addresses.
    proxied: [Option<Agent>; 2],
    cancel: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
}

impl Client {
    /// Returns a client; setting `cancel` closes its connections.
    pub fn new(settings: Settings, cancel: &Arc<AtomicBool>) -> Result<Self> {
        if settings.offline {
            return Err(Error::Request("HF_HUB_OFFLINE is set; unset it to use the network".into()));
        }
        let tls = tls(&settings)?;
        let agent = |proxy| -> Agent {
            Config::builder()
                .tls_config(tls.clone())
                .proxy(proxy)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("hymba/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(CONNECT))
                .timeout_per_read(Some(settings.patience))
                .timeout_per_write(Some(settings.patience))
                .build()
                .into()
        };
        let through = |address: &Option<String>| {
            let proxy = address.as_deref().map(Proxy::new).transpose();
            // The address may contain a password.
            let proxy =
                proxy.map_err(|_| Error::Request("HTTPS_PROXY or HTTP_PROXY is not a valid proxy address".into()))?;
            Ok::<_, Error>(proxy.map(|proxy| agent(Some(proxy))))
        };
        let proxied = [through(&settings.proxies[0])?, through(&settings.proxies[1])?];
        let client = Self { direct: agent(None), proxied, settings, cancel: cancel.clone(), done: Arc::default() };
        client.watch();
        Ok(client)
    }

    /// Closes the connections, on which threads may block, on cancellation.
    fn watch(&self) {
        let agents: Vec<Agent> = self.proxied.iter().flatten().chain([&self.direct]).cloned().collect();
        let (cancel, done) = (self.cancel.clone(), self.done.clone());
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if cancel.load(Ordering::Relaxed) {
                    return agents.into_iter().for_each(Agent::shutdown);
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
    }

    /// Whether the operation is cancelled.
    pub(super) fn cancel(&self) -> &AtomicBool {
        &self.cancel
    }

    /// Returns its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends a request and returns the response, which may be a redirect.
    pub(super) fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> std::result::Result<Answer, Failure> {
        Error::check_cancelled(&self.cancel)?;
        let host = origin(url).ok_or_else(|| Error::Request(format!("{} is not an HTTP address", shown(url))))?;
        let mut request = Request::builder().method(method).uri(url).header("Accept-Encoding", "identity");
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let is_hub = origin(&self.settings.endpoint).is_some_and(|hub| hub == host);
        if let Some(token) = self.settings.token.as_ref().filter(|_| is_hub) {
            request = request.header("Authorization", token.header());
        }
        let request = request.body(()).map_err(|e| Error::Request(format!("{}: {e}", shown(url))))?;
        let https = host.0 == "https";
        let proxied = self.proxied[usize::from(!https)].as_ref();
        let proxied = proxied.filter(|_| self.settings.proxy(https, &host.1).is_some());
        let agent = proxied.unwrap_or(&self.direct);
        agent.run(request).map_err(|error| self.failure(error, url, proxied.is_some()))
    }

    /// Sends a request and follows redirects while `accepts` accepts their address.
    pub(super) fn follow(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        accepts: impl Fn(&str) -> bool,
    ) -> std::result::Result<(Answer, String), Failure> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let answer = self.send(method, &url, headers)?;
            let Some(next) = redirect(&answer, &url)? else { return Ok((answer, url)) };
            if !accepts(&next) {
                return Ok((answer, url));
            }
            url = next;
        }
        Err(Error::Request(format!("{}: too many redirects", shown(&url))).into())
    }

    /// Whether an address belongs to the hub.
    pub(super) fn is_hub(&self, url: &str) -> bool {
        origin(url).is_some() && origin(url) == origin(&self.settings.endpoint)
    }

    /// Fetches a text of bounded length from the hub, with retries.
    pub(super) fn text(
        &self,
        url: &str,
        check: impl Fn(&Answer) -> std::result::Result<(), Failure>,
    ) -> Result<String> {
        let mut backoff = Backoff::new(self.settings.pause, 4);
        loop {
            let ask = || {
                let (mut answer, _) = self.follow("GET", url, &[], |_| true)?;
                check(&answer)?;
                let mut bytes = Vec::new();
                let mut body = answer.body_mut().as_reader().take(limits::FOLDER_TEXT as u64 + 1);
                body.read_to_end(&mut bytes).map_err(|e| self.broken(&e))?;
                if bytes.len() > limits::FOLDER_TEXT {
                    return Err(Error::Request(format!("{}: the response is too long", shown(url))).into());
                }
                let text = String::from_utf8(bytes);
                text.map_err(|_| Error::Request(format!("{}: the response is not text", shown(url))).into())
            };
            match ask() {
                Ok(text) => return Ok(text),
                Err(failure) => backoff.wait(failure, server(url), &mut |_, _| (), &self.cancel)?,
            }
        }
    }

    /// Converts an error while reading a body.
    pub(super) fn broken(&self, error: &io::Error) -> Failure {
        match Error::check_cancelled(&self.cancel) {
            Err(cancelled) => cancelled.into(),
            Ok(()) => Failure::Again { reason: format!("the connection broke: {error}"), after: None },
        }
    }

    fn failure(&self, error: ureq::Error, url: &str, proxied: bool) -> Failure {
        if let Err(cancelled) = Error::check_cancelled(&self.cancel) {
            return cancelled.into();
        }
        let server = server(url);
        let check = match proxied {
            true => "check the network and the proxy",
            false if self.settings.endpoint == HUB => "check the network",
            false => "check the network and HF_ENDPOINT",
        };
        let unreachable = |reason: &dyn std::fmt::Display| format!("no connection ({reason}); {check}");
        let reason = match error {
            ureq::Error::Io(e) => match e.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => return Error::Request(format!("{server}: {}", insecure(error))).into(),
                None if is_unknown_host(&e) => unreachable(&"unknown host"),
                None if is_unreachable(e.kind()) => unreachable(&e.kind()),
                None => e.to_string(),
            },
            ureq::Error::HostNotFound => unreachable(&"unknown host"),
            ureq::Error::ConnectionFailed => unreachable(&"refused"),
            ureq::Error::Timeout(_) => "timed out".into(),
            ureq::Error::Protocol(e) => format!("the response is not HTTP: {e}"),
            ureq::Error::ConnectProxyFailed(reason) => {
                return Error::Request(format!("{server}: the proxy refuses the connection: {reason}")).into();
            }
            other => return Error::Request(format!("{server}: {other}")).into(),
        };
        Failure::Again { reason, after: None }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Returns the trusted certificates: the system's, or those of SSL_CERT_FILE and SSL_CERT_DIR.
fn tls(settings: &Settings) -> Result<TlsConfig> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() && settings.endpoint.starts_with("https") {
        let reason = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        let problem = format!("no CA certificates found{reason}; set SSL_CERT_FILE to a file of them");
        return Err(Error::Request(problem));
    }
    let certificates: Vec<_> = found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = RootCerts::new_with_certs(&certificates);
    Ok(TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build())
}

fn is_unreachable(kind: ErrorKind) -> bool {
    use ErrorKind::*;
    matches!(kind, ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable)
}

/// Whether a host's name has no address. The standard library has no kind for it.
fn is_unknown_host(error: &io::Error) -> bool {
    error.to_string().starts_with("failed to lookup address")
}

/// Returns why there is no secure connection.
fn insecure(error: &rustls::Error) -> String {
    use rustls::{CertificateError as Wrong, Error::InvalidCertificate};
    let reason = match error {
        InvalidCertificate(Wrong::UnknownIssuer) => {
            "the server's certificate is from an unknown authority; to trust it, set SSL_CERT_FILE to a file with the authority's certificate"
        }
        InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
            "the server's certificate has expired; check this machine's clock too"
        }
        InvalidCertificate(Wrong::NotValidYet | Wrong::NotValidYetContext { .. }) => {
            "the server's certificate is not valid yet; check this machine's clock"
        }
        InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            "the server's certificate is for another host; check the address and the proxy"
        }
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS; check the address and the proxy",
        other => return format!("no secure connection: {other}"),
    };
    reason.into()
}

/// Returns a header's value, if it is text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns the target of a redirect.
pub(super) fn redirect(answer: &Answer, url: &str) -> Result<Option<String>> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let to = header(answer.headers(), "Location").and_then(|to| join(url, to));
    let is_safe = |to: &String| !url.starts_with("https:") || to.starts_with("https:");
    match to.filter(is_safe) {
        Some(to) => Ok(Some(to)),
        None => Err(Error::Request(format!("{} redirects to an invalid address", shown(url)))),
    }
}

/// Returns the wait that a server requests.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = header(headers, "Retry-After").and_then(|value| value.trim().parse().ok());
    // The hub's own: `"api";r=0;t=55`, the last the seconds until the window ends.
    let window = || {
        let limit = header(headers, "RateLimit")?;
        limit.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    seconds.or_else(window).map(Duration::from_secs)
}

/// Returns the reason of a status that may succeed on retry; else `None`.
pub(super) fn passing(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    let reason = match status.as_u16() {
        429 => "too many requests".to_owned(),
        408 | 425 | 500..=599 => format!("server error (status {})", status.as_u16()),
        _ => return None,
    };
    Some(Failure::Again { reason, after: retry_after(headers) })
}
