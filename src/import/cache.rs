//! Hugging Face's download cache: `models--ORGANIZATION--NAME/{refs,blobs,snapshots/HASH}`.

use std::{
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "models--";

/// A repository in the cache.
pub(super) struct Repository {
    pub(super) organization: Option<String>,
    pub(super) name: String,
}

/// Returns the repository of which the absolute path `folder` is a snapshot.
pub(super) fn repository(folder: &Path) -> Option<Repository> {
    let names = folder.components().rev().filter_map(|component| component.as_os_str().to_str());
    let id = names.take(3).find_map(|name| name.strip_prefix(PREFIX))?;
    let (organization, name) = match id.split_once("--") {
        Some((organization, name)) => (Some(organization.to_owned()), name),
        None => (None, id),
    };
    Some(Repository { organization, name: name.to_owned() })
}

/// Whether a folder's name is a commit hash, as for snapshots.
pub(super) fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the checkpoint's folder: `path`, or its snapshot if it is a repository in the cache.
pub fn checkpoint_folder(path: &Path) -> PathBuf {
    if path.join("config.json").exists() {
        return path.into();
    }
    let (repository, snapshots) = match path.file_name().is_some_and(|name| name == "snapshots") {
        true => (path.parent().unwrap_or(path), path.to_owned()),
        false => (path, path.join("snapshots")),
    };
    let holds = |folder: &PathBuf| folder.join("config.json").exists();
    let main = fs::read_to_string(repository.join("refs/main")).ok();
    let main = main.map(|hash| snapshots.join(hash.trim())).filter(holds);
    main.or_else(|| {
        let mut folders = fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path()).filter(holds);
        // With several snapshots it would be ambiguous.
        folders.next().filter(|_| folders.next().is_none())
    })
    .unwrap_or_else(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_resolve_to_their_only_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("models--NVIDIA--Hymba-1.5B-Base");
        let [old, new] = ["a", "b"].map(|digit| repository.join("snapshots").join(digit.repeat(40)));
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("config.json"), "{}").unwrap();
        let snapshots = repository.join("snapshots");
        for path in [&repository, &snapshots, &old] {
            assert_eq!(checkpoint_folder(path), old);
        }
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("config.json"), "{}").unwrap();
        assert_eq!(checkpoint_folder(&repository), repository, "one of two");
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "b".repeat(40)).unwrap();
        assert_eq!(checkpoint_folder(&repository), new);
        assert_eq!(checkpoint_folder(&snapshots), new);
        assert_eq!(checkpoint_folder(dir.path()), dir.path());
    }

    #[test]
    fn repository_names_are_parsed_from_cache_paths() {
        let of = |path: &str| repository(Path::new(path)).map(|r| (r.organization.unwrap_or_default(), r.name));
        let named = |organization: &str, name: &str| Some((organization.to_owned(), name.to_owned()));
        assert_eq!(of("/hub/models--NVIDIA--Hymba-1.5B-Base/snapshots/0a1b"), named("NVIDIA", "Hymba-1.5B-Base"));
        assert_eq!(of("/hub/models--GPT2/snapshots/0a1b"), named("", "GPT2"));
        assert_eq!(of("/home/me/Hymba-1.5B-Base"), None);
        assert!(is_hash(&"0a".repeat(20)) && !is_hash("Hymba-1.5B-Base") && !is_hash("0a1b"));
    }
}
