//! What the hub says about a repository and about its files.

use serde::Deserialize;
use serde_json::Value;
use ureq::http::HeaderMap;

use super::{
    Client, Repo,
    client::{Answer, header, passing, redirect},
    hash::Hash,
    retry::{Backoff, Failure},
    url::{encode, shown},
};
use crate::{Error, Result};

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its name, which may be newer than the one that was asked for.
    pub repo: Repo,
    /// The commit that the revision stands for.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
    /// What its card says of its license.
    pub license: Option<License>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes, if the hub tells.
    pub size: Option<u64>,
}

/// A license.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct License {
    /// What Hugging Face calls it: `apache-2.0`, or `other`.
    pub id: String,
    /// Its name, where `id` is none.
    pub name: Option<String>,
    /// Where it can be read.
    pub link: String,
}

/// A file as it is to be fetched.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub path: String,
    /// What it must hash to, which is also its name in the cache.
    pub hash: Hash,
    pub size: u64,
    /// Where its bytes are.
    pub location: String,
}

#[derive(Deserialize)]
struct Raw {
    id: Option<String>,
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(rename = "cardData")]
    card: Option<Value>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// Whether `text` names a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Client {
    /// Asks what `repo` holds at `revision`: a branch, a tag or a commit.
    pub fn info(&self, repo: &Repo, revision: &str) -> Result<Info> {
        let endpoint = &self.settings().endpoint;
        let url = format!("{endpoint}/api/models/{repo}/revision/{}?blobs=true", encode(revision, false));
        let text = self.text(&url, |answer| self.check(answer, repo, revision, None))?;
        let bad = |what: String| Error::Request(format!("{}: {what}; is {endpoint} a hub?", shown(&url)));
        let raw: Raw = serde_json::from_str(&text).map_err(|e| bad(format!("not the answer of a hub: {e}")))?;
        if !is_commit(&raw.sha) {
            return Err(bad(format!("`{}` is no commit", raw.sha)));
        }
        let repo = raw.id.and_then(|id| id.parse().ok()).unwrap_or_else(|| repo.clone());
        let license = raw.card.as_ref().and_then(|card| self.license(card, &repo));
        let files = raw.siblings.into_iter().map(|file| RemoteFile { path: file.rfilename, size: file.size });
        Ok(Info { commit: raw.sha, files: files.collect(), license, repo })
    }

    fn license(&self, card: &Value, repo: &Repo) -> Option<License> {
        let text = |key: &str| match card.get(key)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Array(all) => Some(all.first()?.as_str()?.to_owned()),
            _ => None,
        };
        let endpoint = &self.settings().endpoint;
        let link = match text("license_link") {
            Some(link) if link.contains("://") => link,
            Some(file) => format!("{endpoint}/{repo}/blob/main/{}", encode(&file, true)),
            None => format!("{endpoint}/{repo}"),
        };
        Some(License { id: text("license")?, name: text("license_name"), link })
    }

    /// The address of a file in a repository.
    fn resolve(&self, info: &Info, path: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.settings().endpoint, info.repo, info.commit, encode(path, true))
    }

    /// A short text file of the repository, not stored anywhere.
    pub fn file_text(&self, info: &Info, path: &str) -> Result<String> {
        self.text(&self.resolve(info, path), |answer| self.check(answer, &info.repo, &info.commit, Some(path)))
    }

    /// Asks for a file's hash, size and place.
    pub(super) fn remote(&self, info: &Info, file: &RemoteFile) -> Result<Remote> {
        let mut backoff = Backoff::new(self.settings().pause, 6);
        loop {
            match self.head(info, &file.path) {
                Ok(remote) if file.size.is_some_and(|size| size != remote.size) => {
                    let (path, announced) = (&file.path, file.size.unwrap_or_default());
                    let what = format!("the hub gives {path} two sizes: {announced} and {} bytes", remote.size);
                    return Err(Error::Request(what));
                }
                Ok(remote) => return Ok(remote),
                Err(failure) => backoff.wait(failure, &file.path, &mut |_, _| (), self.cancel())?,
            }
        }
    }

    /// The same, once.
    pub(super) fn head(&self, info: &Info, path: &str) -> std::result::Result<Remote, Failure> {
        let (answer, url) = self.follow("HEAD", &self.resolve(info, path), &[], |next| self.is_hub(next))?;
        let elsewhere = redirect(&answer, &url)?;
        if elsewhere.is_none() {
            self.check(&answer, &info.repo, &info.commit, Some(path))?;
        }
        let get = |name: &str| header(answer.headers(), name);
        let bad = |what: &str| Failure::from(Error::Request(format!("{}: {what}", shown(&url))));
        match get("X-Repo-Commit") {
            Some(commit) if commit == info.commit => (),
            Some(_) => return Err(bad("the hub answers for another commit than it was asked for")),
            None => return Err(bad("the answer names no commit, so this is no hub; check HF_ENDPOINT and the proxy")),
        }
        let hash = get("X-Linked-ETag").or_else(|| get("ETag")).and_then(Hash::from_etag);
        let size = get("X-Linked-Size").or_else(|| get("Content-Length").filter(|_| elsewhere.is_none()));
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| bad("the hub tells no size"))?;
        let hash = hash.ok_or_else(|| bad("the hub tells no hash that the file could be checked by"))?;
        Ok(Remote { path: path.into(), hash, size, location: elsewhere.unwrap_or(url) })
    }

    /// Whether the hub gave what was asked for: `path` of `repo`, or what it knows of `repo`.
    fn check(
        &self,
        answer: &Answer,
        repo: &Repo,
        revision: &str,
        path: Option<&str>,
    ) -> std::result::Result<(), Failure> {
        let (status, headers): (_, &HeaderMap) = (answer.status(), answer.headers());
        if status.is_success() {
            return Ok(());
        }
        if let Some(failure) = passing(status, headers) {
            return Err(failure);
        }
        let endpoint = &self.settings().endpoint;
        let has_token = self.settings().token.is_some();
        let said = header(headers, "X-Error-Message").unwrap_or_default();
        let what = match (status.as_u16(), header(headers, "X-Error-Code").unwrap_or_default()) {
            (_, "GatedRepo") => {
                let then = if has_token { "" } else { ", and put a token of your account into HF_TOKEN" };
                format!("{repo} is for those who accept its license: do so at {endpoint}/{repo}{then}; then try again")
            }
            (_, "RevisionNotFound") => format!("{repo} has no revision `{revision}`"),
            (_, "EntryNotFound") => format!("{repo} has no file {}", path.unwrap_or_default()),
            (401, _) if said.starts_with("Invalid credentials") => {
                format!(
                    "{endpoint} does not accept the token; is the one in HF_TOKEN, or of `hf auth login`, still good?"
                )
            }
            (401 | 404, _) if has_token => format!("there is no {repo} at {endpoint}, or this token may not see it"),
            (401 | 404, _) => {
                format!("there is no {repo} at {endpoint}; if it is private, put a token of your account into HF_TOKEN")
            }
            (403, _) => format!("{endpoint} does not give {repo} to you; see {endpoint}/{repo}"),
            (status, _) => format!("{endpoint} answers with status {status} for {repo}"),
        };
        Err(Error::Request(what).into())
    }
}
