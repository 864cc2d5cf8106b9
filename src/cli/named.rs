//! Models by name, for `-m`.

use std::path::{Path, PathBuf};

use hymba::hub::{Installed, Name, Store};

use super::{
    ask::{ask, at_terminal},
    pull::{self, USUAL_TYPE},
    signals,
};

/// Resolves `given` to a file: an existing path, or an installed model. Offers to pull a missing model if there is a
/// user to answer. Anything that cannot be a name is a path.
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
                let question = format!("{name} is not installed. Download and convert it now?");
                if ask(&question, true, &cancel)? != Some(true) {
                    return Err(error);
                }
                Ok(pull::by_name(name, &cancel)?.path)
            }
            _ => Err(error),
        },
    }
}

/// Returns the installed model that `text` names.
pub fn find(store: &Store, text: &str) -> anyhow::Result<Installed> {
    let mut found = store.find(text, USUAL_TYPE);
    match &found[..] {
        [_] => Ok(found.remove(0)),
        [] if text.parse::<Name>().is_ok() => {
            anyhow::bail!("{text}: no such file or installed model; get it with `hymba pull {text}`")
        }
        [] => anyhow::bail!("{text}: no such file or installed model; see `hymba models` for the installed ones"),
        several => {
            let names: Vec<String> = several.iter().map(|model| model.name().to_string()).collect();
            anyhow::bail!("`{text}` is ambiguous; use one of {}", names.join(" or "))
        }
    }
}

/// Whether a text could be a model's name.
fn may_be_name(text: &str) -> bool {
    let is_file = text.to_ascii_lowercase().ends_with(".gguf") || text.starts_with(['.', '/', '~']);
    !is_file && !text.contains('\\') && text.matches('/').count() <= 1 && !text.ends_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_not_names() {
        for name in ["nvidia/Hymba-1.5B-Instruct", "a/b:q4", "instruct", "hymba-1.5b"] {
            assert!(may_be_name(name), "{name}");
        }
        for path in ["./a", "../a/b", "/a/b", "~/a", "a/b/c", "a.gguf", "a/b.GGUF", "a\\b", "a/"] {
            assert!(!may_be_name(path), "{path}");
            assert_eq!(resolve(Path::new(path)).unwrap(), Path::new(path));
        }
    }
}
