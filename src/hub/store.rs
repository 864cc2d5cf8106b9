//! Installed models: `owner/name-type.gguf` in a folder of our own.

use std::{
    env,
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{Name, Repo, name::is_type};
use crate::{
    Error, Result,
    format::{Privacy, write_atomically},
};

/// The folder of installed models.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// An installed model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub repo: Repo,
    /// Its type.
    pub kind: String,
    /// The file.
    pub path: PathBuf,
}

/// The source of an installed model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The requested branch, tag or commit.
    pub revision: String,
    /// Its commit at the time.
    pub commit: String,
}

impl Store {
    /// Returns the folder HYMBA_MODELS, or the default in the user's data folder.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = || {
            let own = if cfg!(windows) { dirs::data_local_dir() } else { Some(dirs::home_dir()?.join(".local/share")) };
            Some(var("XDG_DATA_HOME").filter(|path| path.is_absolute()).or(own)?.join("hymba").join("models"))
        };
        let folder = var("HYMBA_MODELS").or_else(data);
        folder
            .map(Self::new)
            .ok_or_else(|| Error::Request("there is no home folder; set HYMBA_MODELS to a folder for models".into()))
    }

    /// Returns the models in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the model of this name and type, whether or not it is installed.
    pub fn model(&self, repo: &Repo, kind: &str) -> Installed {
        let path = self.folder.join(repo.owner()).join(format!("{}-{kind}.gguf", repo.name()));
        Installed { repo: repo.clone(), kind: kind.into(), path }
    }

    /// Returns the path of the lock for creating this model.
    pub fn lock(&self, model: &Installed) -> PathBuf {
        hidden(&model.path, "lock")
    }

    /// Returns all models, sorted by name.
    pub fn list(&self) -> Vec<Installed> {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        let mut all = Vec::new();
        for owner in entries(&self.folder) {
            for file in entries(&owner.path()) {
                let (owner, name) = (owner.file_name(), file.file_name());
                let parse = || {
                    let (name, kind) = name.to_str()?.strip_suffix(".gguf")?.rsplit_once('-')?;
                    let repo = format!("{}/{name}", owner.to_str()?).parse().ok()?;
                    is_type(kind).then(|| self.model(&repo, kind))
                };
                all.extend(parse().filter(|model| model.path.is_file()));
            }
        }
        all.sort_by(|a, b| (&a.repo, &a.kind).cmp(&(&b.repo, &b.kind)));
        all
    }

    /// Returns the models that `text` matches: by full name, without the owner, or by a part between dashes, ignoring
    /// case. Among several types of one model, `preferred` is preferred.
    pub fn find(&self, text: &str, preferred: &str) -> Vec<Installed> {
        let mut found = match text.parse::<Name>() {
            Ok(name) => self
                .list()
                .into_iter()
                .filter(|model| model.repo == name.repo && model.is_type(name.kind.as_deref()))
                .collect(),
            Err(_) => self.find_alias(text),
        };
        let one_repo = found.windows(2).all(|pair| pair[0].repo == pair[1].repo);
        if one_repo && found.len() > 1 && found.iter().any(|model| model.kind == preferred) {
            found.retain(|model| model.kind == preferred);
        }
        found
    }

    fn find_alias(&self, text: &str) -> Vec<Installed> {
        let text = text.to_ascii_lowercase();
        let (alias, kind) = text.split_once(':').map_or((&*text, None), |(alias, kind)| (alias, Some(kind)));
        let all: Vec<Installed> = self.list().into_iter().filter(|model| model.is_type(kind)).collect();
        let name = |model: &Installed| model.repo.name().to_ascii_lowercase();
        let exact: Vec<Installed> = all.iter().filter(|model| name(model) == alias).cloned().collect();
        if !exact.is_empty() || alias.is_empty() {
            return exact;
        }
        all.into_iter().filter(|model| format!("-{}-", name(model)).contains(&format!("-{alias}-"))).collect()
    }
}

/// Returns the path of an auxiliary file next to the model.
fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!(".{name}.{suffix}"))
}

impl Installed {
    fn is_type(&self, kind: Option<&str>) -> bool {
        kind.is_none_or(|kind| self.kind == kind)
    }

    /// Returns its name with its type.
    pub fn name(&self) -> Name {
        Name { repo: self.repo.clone(), kind: Some(self.kind.clone()) }
    }

    /// Returns its source, if recorded.
    pub fn source(&self) -> Option<Source> {
        serde_json::from_slice(&fs::read(hidden(&self.path, "source.json")).ok()?).ok()
    }

    /// Records its source.
    pub fn set_source(&self, source: &Source) -> Result<()> {
        let path = hidden(&self.path, "source.json");
        write_atomically(&path, true, Privacy::Shared, |file| Ok(serde_json::to_writer(file, source)?))
    }

    /// Records that it is used now, ignoring errors.
    pub fn touch(&self) {
        let now = FileTimes::new().set_accessed(SystemTime::now());
        let _ = File::open(&self.path).and_then(|file| file.set_times(now));
    }

    /// Returns its size in bytes and its last use.
    pub fn size_and_use(&self) -> Result<(u64, Option<SystemTime>)> {
        let meta = fs::metadata(&self.path).map_err(|e| Error::io("cannot open", &self.path, e))?;
        Ok((meta.len(), meta.accessed().ok()))
    }

    /// Removes it.
    pub fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|e| Error::io("cannot remove", &self.path, e))?;
        for suffix in ["source.json", "lock"] {
            let _ = fs::remove_file(hidden(&self.path, suffix));
        }
        if let Some(owner) = self.path.parent() {
            let _ = fs::remove_dir(owner); // if it is empty now
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path, names: &[&str]) -> Store {
        let store = Store::new(dir.into());
        for name in names {
            let name: Name = name.parse().unwrap();
            let model = store.model(&name.repo, name.kind.as_deref().unwrap());
            fs::create_dir_all(model.path.parent().unwrap()).unwrap();
            fs::write(&model.path, "x").unwrap();
        }
        store
    }

    #[test]
    fn models_are_found_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let all =
            ["nvidia/Hymba-1.5B-Base:q4", "nvidia/Hymba-1.5B-Instruct:q4", "nvidia/Hymba-1.5B-Instruct:q8", "x/y:f16"];
        let store = store(dir.path(), &all);
        fs::write(dir.path().join("nvidia/.Hymba-q4.lock"), "").unwrap();
        fs::write(dir.path().join("stray.gguf"), "").unwrap();
        let names = |found: Vec<Installed>| found.iter().map(|model| model.name().to_string()).collect::<Vec<_>>();
        assert_eq!(names(store.list()), all);
        for (text, found) in [
            ("nvidia/Hymba-1.5B-Instruct", &all[1..2]),
            ("nvidia/Hymba-1.5B-Instruct:q8", &all[2..3]),
            ("nvidia/Hymba-1.5B-Instruct:Q8", &all[2..3]),
            ("hymba-1.5b-base", &all[..1]),
            ("instruct:q8", &all[2..3]),
            ("Instruct", &all[1..2]),
            ("y", &all[3..]),
            ("hymba", &all[..3]),
            ("1.5b-instruct", &all[1..2]),
            ("x/z", &[]),
            ("inst", &[]),
            ("", &[]),
            ("x/y:q4", &[]),
            ("-", &[]),
        ] {
            assert_eq!(names(store.find(text, "q4")), found, "{text}");
        }
        assert_eq!(names(store.find("instruct", "q5")), all[1..3]);
    }

    #[test]
    fn installed_models_record_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), &["a/b:q4"]);
        let model = store.list().remove(0);
        assert_eq!(model.source(), None);
        let source = Source { revision: "main".into(), commit: "c".into() };
        model.set_source(&source).unwrap();
        assert_eq!(model.source(), Some(source));
        let long_ago = FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
        File::open(&model.path).unwrap().set_times(long_ago).unwrap();
        model.touch();
        let (size, used) = model.size_and_use().unwrap();
        assert!(size == 1 && used.is_some_and(|used| used > SystemTime::UNIX_EPOCH));
        model.remove().unwrap();
        assert!(store.list().is_empty() && !dir.path().join("a").exists());
    }
}
