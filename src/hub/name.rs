//! Names of models: `owner/name`, or `owner/name:type` for one of its types.

use std::{fmt, str::FromStr};

/// A repository on the hub.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    owner: String,
    name: String,
}

/// A model's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Its repository.
    pub repo: Repo,
    /// Its type in lower case; `None`: any, or the default.
    pub kind: Option<String>,
}

impl Repo {
    /// Maximum length of a name on the hub.
    const LENGTH: usize = 96;

    /// Its owner.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Its name without the owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its folder in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

/// Whether this is a valid name of an owner or repository, none of which is a path.
fn is_allowed(part: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.chars().all(inner)
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

impl FromStr for Repo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((owner, name)) if text.len() <= Self::LENGTH && is_allowed(owner) && is_allowed(name) => {
                Ok(Self { owner: owner.into(), name: name.into() })
            }
            _ => Err(format!("`{text}` is not a model name such as nvidia/Hymba-1.5B-Instruct")),
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repo, kind) = match text.split_once(':') {
            Some((repo, kind)) => (repo, Some(kind.to_ascii_lowercase())),
            None => (text, None),
        };
        let repo = repo.parse()?;
        match kind {
            Some(kind) if !is_type(&kind) => Err(format!("`{kind}` is not a type; types look like q4 or q4_0")),
            kind => Ok(Self { repo, kind }),
        }
    }
}

/// Whether this could be the name of a type, known or not.
pub(super) fn is_type(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 32
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "{}:{kind}", self.repo),
            None => self.repo.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in ["nvidia/Hymba-1.5B-Instruct", "a/b:q4_0", "A_b/c.d:small"] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        assert_eq!("a/b:Q4_0".parse::<Name>().unwrap().kind.as_deref(), Some("q4_0"));
        assert_eq!("NVIDIA/Hymba".parse::<Repo>().unwrap().folder(), "models--NVIDIA--Hymba");
    }

    #[test]
    fn paths_are_not_names() {
        let long = format!("a/{}", "b".repeat(95));
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "./b",
            "a/.b",
            "a/b.",
            "-A/b",
            "a/b--C",
            "a\\b/c",
            "a b/c",
            "a/b:",
            "a/b:q4/0",
            "a/b:..",
            "a/b:q4:q5",
            "ä/b",
            "C:/b",
            &long,
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
