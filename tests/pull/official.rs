//! A model with all files of the official ones is pulled, converted, and used by name.

use std::{fs, path::Path};

use hymba::format::gguf::Gguf;
use serde_json::{Value, json};

use crate::{
    common::{demo, fails, succeeds, text},
    hub::{REPO, World, checkpoint, commit},
    names,
};

/// Published files other than the weights.
const FILES: [&str; 4] =
    ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];

/// Returns the files of a random model with a tokenizer and a chat template: those in the folder `official`, or the
/// demo's.
pub fn published(official: Option<&Path>) -> Vec<(String, Vec<u8>)> {
    let files: Vec<(String, Vec<u8>)> = match official {
        Some(folder) => FILES.map(|name| (name.into(), fs::read(folder.join(name)).unwrap())).into(),
        None => {
            let demo = Gguf::open(Path::new(&demo())).unwrap();
            let text = |key: &str| demo.metadata.string(key).unwrap();
            let specials = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
            let mut config = specials.clone();
            config["chat_template"] = json!(text("tokenizer.chat_template"));
            config["add_bos_token"] = json!(true);
            let generation = json!({ "bos_token_id": 1, "eos_token_id": 2, "do_sample": true, "temperature": 0.7 });
            let texts = [
                generation.to_string(),
                specials.to_string(),
                text("tokenizer.huggingface.json").into(),
                config.to_string(),
            ];
            FILES.into_iter().zip(texts).map(|(name, text)| (name.into(), text.into_bytes())).collect()
        }
    };
    let tokenizer: Value = serde_json::from_slice(&files[2].1).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap());
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap().values().map(|id| id.as_u64().unwrap());
    let size = added.chain(vocab).max().unwrap() as usize + 1;
    checkpoint(size).into_iter().chain(files).collect()
}

#[test]
fn a_complete_model_is_pulled_and_chats() {
    let official = std::env::var_os("HYMBA_OFFICIAL");
    for folder in [None].into_iter().chain(official.as_ref().map(|folder| Some(Path::new(folder)))) {
        let world = World::new();
        commit(&world.hub, REPO, &published(folder));
        let output = succeeds(&mut world.hymba(["pull", REPO, "--type", "q4"]));
        assert!(output.ends_with("try it: hymba chat -m a/Tiny-Model\n"), "{output}");
        let commit = fs::read_to_string(world.cache().join("refs/main")).unwrap();
        let snapshot = names(world.cache().join("snapshots").join(commit));
        assert!(FILES.iter().all(|file| snapshot.iter().any(|name| name == file)), "{snapshot:?}");

        let run = |model: &str| {
            let output = world.hymba(["run", "-m", model, "--chat", "-q", "-n", "8", "--seed", "1", "hi"]).output();
            let output = output.unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        let reply = run(REPO);
        assert!(!reply.trim().is_empty());
        assert_eq!(run("tiny"), reply);
        let list = succeeds(&mut world.hymba(["models"]));
        let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!((row[0], row[1], row[4], row[5]), (REPO, "q4", "248", "now"), "{list}");
        let path = succeeds(&mut world.hymba(["models", "path", REPO]));
        assert_eq!(Path::new(path.trim_end()), world.installed("q4"));
        succeeds(&mut world.hymba(["models", "rm", REPO]));
        assert!(!world.installed("q4").exists());
        fails(&mut world.hymba(["run", "-m", REPO, "--chat", "-q", "hi"]), 1, &["no such file or installed model"]);
    }
}
