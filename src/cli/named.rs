//! Models by name: what `-m` may be beside a file.

use std::path::{Path, PathBuf};

use hymba::hub::{Installed, Name, Store};

use super::{
    ask::{ask, at_terminal},
    pull::{self, USUAL_TYPE},
    signals,
};

/// Returns the file that `given` means: a path that exists, or an installed model. Offers to pull one that is missing, if
/// there is somebody to answer. What can't be a name is taken for a path.
pub fn resolve(given: &Path) -> anyhow::Result<PathBuf> {
    let Some(text) = given.to_str().filter(|text| !given.exists() && may_be_name(text)) else {
        return Ok(given.into());
    };
    let store = Store::from_env()?;
    match find(&store, text) {
        Ok(model) => {
            model.touch();
            Ok(model.path)
        }
        Err(error) => match text.parse::<Name>() {
            Ok(name) if store.find(text, USUAL_TYPE).is_empty() && at_terminal() => {
                let cancel = signals::cancel();
                if !ask(&format!("{name} is not installed. Download and convert it now?"), true, &cancel)? {
                    return Err(error);
                }
                Ok(pull::by_name(name, &cancel)?.path)
            }
            _ => Err(error),
        },
    }
}

/// Returns the one installed model that `text` means.
pub fn find(store: &Store, text: &str) -> anyhow::Result<Installed> {
    let mut found = store.find(text, USUAL_TYPE);
    match &found[..] {
        [_] => Ok(found.remove(0)),
        [] if text.parse::<Name>().is_ok() => {
            anyhow::bail!("there is no file {text}, and no such model is installed; get it with `hymba pull {text}`")
        }
        [] => anyhow::bail!("there is no file {text}, and no installed model of this name; `hymba models` lists them"),
        several => {
            let names: Vec<String> = several.iter().map(|model| model.name().to_string()).collect();
            anyhow::bail!("`{text}` may be {}; name one of them", names.join(" or "))
        }
    }
}

/// Whether a text that is no file's name could be a model's.
fn may_be_name(text: &str) -> bool {
    let is_file = text.to_ascii_lowercase().ends_with(".gguf") || text.starts_with(['.', '/', '~']);
    !is_file && !text.contains('\\') && text.matches('/').count() <= 1 && !text.ends_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_no_names() {
        for name in ["nvidia/Hymba-1.5B-Instruct", "a/b:q4", "instruct", "hymba-1.5b"] {
            assert!(may_be_name(name), "{name}");
        }
        for path in ["./a", "../a/b", "/a/b", "~/a", "a/b/c", "a.gguf", "a/b.GGUF", "a\\b", "a/"] {
            assert!(!may_be_name(path), "{path}");
            assert_eq!(resolve(Path::new(path)).unwrap(), Path::new(path));
        }
    }
}
