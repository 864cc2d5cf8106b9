//! Metadata of repositories and files from the hub.

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
    /// Its current name, which may differ from the requested one.
    pub repo: Repo,
    /// The commit of the revision.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
    /// The license given by its card.
    pub license: Option<License>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size in bytes, if known.
    pub size: Option<u64>,
}

/// A license.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct License {
    /// Hugging Face's identifier, such as `apache-2.0` or `other`.
    pub id: String,
    /// Its name, if `id` is `other`.
    pub name: Option<String>,
    /// Link to its text.
    pub link: String,
}

/// A file to download.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub path: String,
    /// Its hash, which is also its name in the cache.
    pub hash: Hash,
    pub size: u64,
    /// The address of its contents.
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

/// Whether `text` is a commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Client {
    /// Requests the files of `repo` at `revision`: a branch, a tag or a commit.
    pub fn info(&self, repo: &Repo, revision: &str) -> Result<Info> {
        let endpoint = &self.settings().endpoint;
        let url = format!("{endpoint}/api/models/{repo}/revision/{}?blobs=true", encode(revision, false));
        let text = self.text(&url, |answer| self.check(answer, repo, revision, None))?;
        let bad = |problem: String| Error::Request(format!("{}: {problem}; is {endpoint} a hub?", shown(&url)));
        let raw: Raw = serde_json::from_str(&text).map_err(|e| bad(format!("unexpected response: {e}")))?;
        if !is_commit(&raw.sha) {
            return Err(bad(format!("`{}` is not a commit", raw.sha)));
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

    /// Returns the address of a file in a repository.
    fn resolve(&self, info: &Info, path: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.settings().endpoint, info.repo, info.commit, encode(path, true))
    }

    /// Fetches a short text file of the repository without storing it.
    pub(super) fn file_text(&self, info: &Info, path: &str) -> Result<String> {
        self.text(&self.resolve(info, path), |answer| self.check(answer, &info.repo, &info.commit, Some(path)))
    }

    /// Requests a file's hash, size and address.
    pub(super) fn remote(&self, info: &Info, file: &RemoteFile) -> Result<Remote> {
        let mut backoff = Backoff::new(self.settings().pause, 6);
        loop {
            match self.head(info, &file.path) {
                Ok(remote) if file.size.is_some_and(|size| size != remote.size) => {
                    let (path, announced) = (&file.path, file.size.unwrap_or_default());
                    let problem = format!("the hub reports two sizes of {path}: {announced} and {} bytes", remote.size);
                    return Err(Error::Request(problem));
                }
                Ok(remote) => return Ok(remote),
                Err(failure) => backoff.wait(failure, &file.path, &mut |_, _| (), self.cancel())?,
            }
        }
    }

    /// A single attempt of [`Client::remote`].
    pub(super) fn head(&self, info: &Info, path: &str) -> std::result::Result<Remote, Failure> {
        let (answer, url) = self.follow("HEAD", &self.resolve(info, path), &[], |next| self.is_hub(next))?;
        let elsewhere = redirect(&answer, &url)?;
        if elsewhere.is_none() {
            self.check(&answer, &info.repo, &info.commit, Some(path))?;
        }
        let get = |name: &str| header(answer.headers(), name);
        let bad = |problem: &str| Failure::from(Error::Request(format!("{}: {problem}", shown(&url))));
        match get("X-Repo-Commit") {
            Some(commit) if commit == info.commit => (),
            Some(_) => return Err(bad("the hub answered for another commit")),
            None => {
                return Err(bad("the response has no commit, so this is not a hub; check HF_ENDPOINT and the proxy"));
            }
        }
        let hash = get("X-Linked-ETag").or_else(|| get("ETag")).and_then(Hash::from_etag);
        let size = get("X-Linked-Size").or_else(|| get("Content-Length").filter(|_| elsewhere.is_none()));
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| bad("the hub reports no size"))?;
        let hash = hash.ok_or_else(|| bad("the hub reports no hash to verify the file"))?;
        Ok(Remote { path: path.into(), hash, size, location: elsewhere.unwrap_or(url) })
    }

    /// Checks the response for `path` of `repo`, or for `repo` itself.
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
        let message = header(headers, "X-Error-Message").unwrap_or_default();
        let problem = match (status.as_u16(), header(headers, "X-Error-Code").unwrap_or_default()) {
            (_, "GatedRepo") => {
                let then = if has_token { "" } else { ", and set HF_TOKEN to a token of your account" };
                format!("{repo} requires accepting its license: do so at {endpoint}/{repo}{then}; then try again")
            }
            (_, "RevisionNotFound") => format!("{repo} has no revision `{revision}`"),
            (_, "EntryNotFound") => format!("{repo} has no file {}", path.unwrap_or_default()),
            (401, _) if message.starts_with("Invalid credentials") => {
                format!("{endpoint} rejected the token; check HF_TOKEN, or run `hf auth login` again")
            }
            (401 | 404, _) if has_token => {
                format!("{repo} was not found at {endpoint}, or the token has no access to it")
            }
            (401 | 404, _) => {
                format!("{repo} was not found at {endpoint}; if it is private, set HF_TOKEN to a token of your account")
            }
            (403, _) => format!("{endpoint} denies access to {repo}; see {endpoint}/{repo}"),
            (status, _) => format!("{endpoint} responded with status {status} for {repo}"),
        };
        Err(Error::Request(problem).into())
    }
}
