//! Settings from the environment: the variables of Hugging Face's tools, with the same meaning.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    path::PathBuf,
    time::Duration,
};

use crate::{Error, Result};

/// The default hub.
pub const HUB: &str = "https://huggingface.co";

/// Connection settings and the cache folder.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The folder that holds `models--OWNER--NAME`.
    pub cache: PathBuf,
    /// The access token.
    pub token: Option<Token>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Whether snapshots may use links to blobs.
    pub links: bool,
    /// Proxies for `https` and for `http` addresses.
    pub proxies: [Option<String>; 2],
    /// Hosts to reach without a proxy.
    pub no_proxy: Vec<String>,
    /// Stall timeout of a connection.
    pub patience: Duration,
    /// Delay before the first retry; it doubles with each one.
    pub pause: Duration,
}

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Parses a token; `None` if `text` is empty.
    fn new(text: &str, origin: &str) -> Result<Option<Self>> {
        match text.trim() {
            "" => Ok(None),
            token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(Self(token.into()))),
            _ => {
                Err(Error::Request(format!("{origin} is not a valid token: it has spaces or other invalid characters")))
            }
        }
    }

    /// Returns the value of the Authorization header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Parses a switch like Python's tools.
fn is_true(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&&*value.to_uppercase()))
}

/// Expands `~` to the home folder.
fn expand(path: OsString) -> PathBuf {
    let path = PathBuf::from(path);
    match (path.strip_prefix("~"), dirs::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

impl Settings {
    /// Reads this process's environment.
    pub fn from_env() -> Result<Self> {
        Self::from(|name| std::env::var_os(name))
    }

    /// Reads variables through `var`; empty ones count as unset.
    pub fn from(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| match var(name).map(OsString::into_string).transpose() {
            Ok(text) => Ok(text),
            Err(_) => Err(Error::Request(format!("{name} is not UTF-8 text"))),
        };
        let first = |names: &[&str]| names.iter().find_map(|name| var(name));
        let first_text = |names: &[&str]| names.iter().map(|name| text(name)).find_map(Result::transpose).transpose();
        let home = match var("HF_HOME") {
            Some(home) => expand(home),
            None => match var("XDG_CACHE_HOME").map(expand).or_else(|| Some(dirs::home_dir()?.join(".cache"))) {
                Some(cache) => cache.join("huggingface"),
                None => {
                    return Err(Error::Request("there is no home folder; set HF_HOME to a download folder".into()));
                }
            },
        };
        let seconds = |name: &str| Ok(text(name)?.and_then(|text| text.trim().parse::<u64>().ok()));
        let token_path = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), expand);
        let switch = |name: &str| var(name).is_some_and(|value| is_true(&value));
        let token = match first_text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])? {
            Some(token) => Token::new(&token, "HF_TOKEN")?,
            None if switch("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => match fs::read_to_string(&token_path) {
                Ok(token) => Token::new(&token, &token_path.display().to_string())?,
                Err(_) => None,
            },
        };
        let endpoint = text("HF_ENDPOINT")?.unwrap_or(HUB.into()).trim_end_matches('/').to_owned();
        if !["http://", "https://"]
            .iter()
            .any(|scheme| endpoint.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
        {
            return Err(Error::Request(format!("HF_ENDPOINT is `{endpoint}`, which is not an http or https address")));
        }
        let proxy = |upper: &str, lower: &str| first_text(&[upper, lower, "ALL_PROXY", "all_proxy"]);
        let no_proxy = first_text(&["NO_PROXY", "no_proxy"])?.unwrap_or_default();
        Ok(Self {
            endpoint,
            cache: first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map_or_else(|| home.join("hub"), expand),
            token,
            offline: switch("HF_HUB_OFFLINE") || switch("TRANSFORMERS_OFFLINE"),
            links: !switch("HF_HUB_DISABLE_SYMLINKS"),
            proxies: [proxy("HTTPS_PROXY", "https_proxy")?, proxy("HTTP_PROXY", "http_proxy")?],
            no_proxy: no_proxy
                .split(',')
                .map(|host| host.trim().to_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
            patience: Duration::from_secs(seconds("HF_HUB_DOWNLOAD_TIMEOUT")?.filter(|&n| n > 0).unwrap_or(20)),
            pause: Duration::from_millis(500),
        })
    }

    /// Returns the proxy to use for `host`, if there is one for this kind of address.
    pub(super) fn proxy(&self, https: bool, host: &str) -> Option<&str> {
        let host = host.to_lowercase();
        let without = |pattern: &String| {
            let suffix = pattern.trim_start_matches('*').trim_start_matches('.');
            pattern == "*" || host == suffix || host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
        };
        let proxy = self.proxies[usize::from(!https)].as_deref();
        proxy.filter(|_| !self.no_proxy.iter().any(without))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let all: Vec<_> =
            [("HF_HOME", "/hf")].iter().chain(variables).map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Settings::from(move |name| all.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn environment_variables_of_python_tools_are_honored() {
        let defaults = settings(&[]).unwrap();
        assert_eq!((defaults.endpoint.as_str(), defaults.cache), (HUB, PathBuf::from("/hf/hub")));
        assert!(!defaults.offline && defaults.links && defaults.token.is_none());
        let set = settings(&[
            ("HF_ENDPOINT", "http://here:80/"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DISABLE_SYMLINKS", "1"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "3"),
        ])
        .unwrap();
        assert_eq!((set.endpoint.as_str(), set.cache.to_str()), ("http://here:80", Some("/c")));
        assert!(set.offline && !set.links && set.patience == Duration::from_secs(3));
        assert_eq!(set.token.as_ref().unwrap().header(), "Bearer hf_secret");
        assert!(!format!("{:?}", set.token).contains("secret"));
        for wrong in [("HF_TOKEN", "hf_a b"), ("HF_ENDPOINT", "huggingface.co"), ("HF_ENDPOINT", "ftp://a")] {
            let error = settings(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(wrong.0) && !error.contains("hf_a"), "{error}");
        }
    }

    #[test]
    fn the_token_may_be_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "hf_file\n").unwrap();
        let path = path.to_str().unwrap();
        let token = |more: &[(&str, &str)]| settings(&[&[("HF_TOKEN_PATH", path)], more].concat()).unwrap().token;
        assert_eq!(token(&[]).unwrap().header(), "Bearer hf_file");
        assert_eq!(token(&[("HF_TOKEN", "hf_var")]).unwrap().header(), "Bearer hf_var");
        assert!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).is_none());
    }

    #[test]
    fn proxies_apply_except_to_no_proxy_hosts() {
        let set =
            settings(&[("HTTPS_PROXY", "http://p:1"), ("http_proxy", "q:2"), ("NO_PROXY", "localhost, .in.org,*.x")]);
        let set = set.unwrap();
        for (https, host, proxy) in [
            (true, "huggingface.co", Some("http://p:1")),
            (false, "huggingface.co", Some("q:2")),
            (true, "LOCALHOST", None),
            (true, "a.in.org", None),
            (true, "in.org", None),
            (true, "begin.org", Some("http://p:1")),
            (false, "a.x", None),
        ] {
            assert_eq!(set.proxy(https, host), proxy, "{host}");
        }
        assert_eq!(settings(&[("ALL_PROXY", "a"), ("NO_PROXY", "*")]).unwrap().proxy(true, "b"), None);
    }
}
