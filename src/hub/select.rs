//! Selects a repository's files: those that conversion reads, or a ready GGUF file.

use std::collections::BTreeSet;

use super::{Name, name::is_type};
use crate::{Error, Result};

/// The files to download from a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The files of a checkpoint to convert.
    Checkpoint(Vec<String>),
    /// A ready GGUF file: its name, its type, and the files on its license.
    Ready {
        /// The file.
        file: String,
        /// Its type.
        kind: String,
        /// Card and license.
        about: Vec<String>,
    },
}

impl Selection {
    /// Returns all files, weights last.
    pub fn files(&self) -> Vec<&str> {
        match self {
            Self::Checkpoint(files) => files.iter().map(String::as_str).collect(),
            Self::Ready { file, about, .. } => about.iter().chain([file]).map(String::as_str).collect(),
        }
    }
}

/// Files that conversion reads besides the weights.
const READ: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a file is the model card or the license.
fn is_about(file: &str) -> bool {
    let name = file.to_ascii_uppercase();
    let begins =
        |start: &str| name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '_']));
    name == "README.MD" || name == "MODEL_CARD.MD" || ["LICENSE", "LICENCE", "NOTICE"].into_iter().any(begins)
}

/// Whether a file is one shard of several.
fn is_shard(file: &str) -> bool {
    let number = file.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    number.and_then(|number| number.split_once("-of-")).is_some_and(|(n, of)| digits(n) && digits(of))
}

/// Returns the type at the end of a GGUF file's name: `q4_0` for `Hymba-1.5B-Q4_0.gguf`.
pub fn ready_type(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".gguf")?.to_ascii_lowercase();
    let kind = stem.rsplit(['-', '.']).next()?.to_owned();
    (kind != stem && is_type(&kind)).then_some(kind)
}

/// Selects from the `files` of the repository of `name`. If both exist, a GGUF file is used if its type was requested,
/// else the checkpoint; `default_type` is the default type.
pub fn select(name: &Name, files: &[String], default_type: &str) -> Result<Selection> {
    // Files in subfolders are for other programs.
    let files: BTreeSet<&str> = files.iter().map(String::as_str).filter(|file| !file.contains(['/', '\\'])).collect();
    let has = |file: &str| files.contains(file);
    let list = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        files.iter().filter(|file| wanted(file)).map(|file| file.to_string()).collect()
    };
    let about = list(&is_about);
    let ready: Vec<(String, String)> =
        files.iter().filter_map(|file| Some((ready_type(file)?, file.to_string()))).collect();
    let find = |kind: &str| ready.iter().find(|(known, _)| known == kind).cloned();
    let take = |(kind, file)| Ok(Selection::Ready { file, kind, about: about.clone() });

    if let Some(found) = name.kind.as_deref().and_then(find) {
        return take(found);
    }
    if has("config.json") && (has(SINGLE) || has(INDEX)) {
        let weights: Vec<String> = match has(SINGLE) {
            true => vec![SINGLE.into()],
            false => [INDEX.into()].into_iter().chain(list(&is_shard)).collect(),
        };
        let read = list(&|file| READ.contains(&file));
        return Ok(Selection::Checkpoint(about.into_iter().chain(read).chain(weights).collect()));
    }
    let known: Vec<&str> = ready.iter().map(|(kind, _)| kind.as_str()).collect();
    match (&name.kind, &known[..]) {
        (_, []) => {
            let problem = "contains neither a checkpoint (config.json and safetensors) nor a GGUF file";
            Err(Error::Request(format!("{} {problem}", name.repo)))
        }
        (None, [_]) => take(ready[0].clone()),
        (None, _) => match find(default_type) {
            Some(found) => take(found),
            None => Err(Error::Request(format!(
                "{} has the types {}; choose one, as in {}:{}",
                name.repo,
                known.join(", "),
                name.repo,
                known[0]
            ))),
        },
        (Some(kind), _) => Err(Error::Request(format!("{} has no {kind}, but {}", name.repo, known.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(name: &str, files: &[&str]) -> Result<Selection> {
        let files: Vec<String> = files.iter().map(|file| file.to_string()).collect();
        select(&name.parse().unwrap(), &files, "q4")
    }

    #[test]
    fn only_files_for_conversion_are_selected() {
        let files = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "config.json",
            "configuration_hymba.py",
            "images/a.png",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "setup.sh",
            "licenses.md",
        ];
        let Selection::Checkpoint(chosen) = choose("a/b:q5", &files).unwrap() else { panic!() };
        assert_eq!(
            chosen,
            [
                "LICENSE",
                "README.md",
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ]
        );
        let single = choose("a/b", &["model.safetensors", "config.json", "model-1-of-2.safetensors"]).unwrap();
        assert_eq!(single.files(), ["config.json", "model.safetensors"]);
    }

    #[test]
    fn ready_files_are_found_by_their_type() {
        assert_eq!(ready_type("Hymba-1.5B-Q4_0.gguf").as_deref(), Some("q4_0"));
        assert_eq!(ready_type("hymba.q8.gguf").as_deref(), Some("q8"));
        assert_eq!(ready_type("hymba.gguf"), None);
        let files = ["README.md", "m-q4_0.gguf", "m-q8_0.gguf"];
        let file = |chosen: Result<Selection>| chosen.map(|chosen| chosen.files().last().unwrap().to_string());
        assert_eq!(file(choose("a/b:q4_0", &files)).unwrap(), "m-q4_0.gguf");
        assert!(
            file(choose("a/b", &files)).unwrap_err().to_string().contains("q4_0, q8_0; choose one, as in a/b:q4_0")
        );
        assert!(file(choose("a/b:q5", &files)).unwrap_err().to_string().contains("has no q5"));
        assert_eq!(file(choose("a/b", &["m-q4.gguf", "m-q8.gguf"])).unwrap(), "m-q4.gguf");
        assert_eq!(file(choose("a/b", &["m-f16.gguf"])).unwrap(), "m-f16.gguf");
        let both = ["config.json", "model.safetensors", "m-q4_0.gguf"];
        assert_eq!(file(choose("a/b", &both)).unwrap(), "model.safetensors");
        assert_eq!(file(choose("a/b:q4_0", &both)).unwrap(), "m-q4_0.gguf");
        assert!(choose("a/b", &["README.md", "pytorch_model.bin"]).is_err());
    }
}
