//! The tokenizer and the chat template that were published with Hymba, from the folder that `HYMBA_OFFICIAL` names.

use std::{env, fs, path::PathBuf};

use hymba::{
    format::gguf::Metadata,
    text::{Message, Role, Template, Tokenizer},
};

#[test]
fn the_published_template_makes_the_published_ids() {
    let Some(folder) = env::var_os("HYMBA_OFFICIAL").map(PathBuf::from) else {
        eprintln!("SKIPPED: HYMBA_OFFICIAL names no folder");
        return;
    };
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.huggingface.json", read("tokenizer.json"));
    metadata.set("tokenizer.ggml.bos_token_id", 1u32);
    metadata.set("tokenizer.ggml.eos_token_id", 2u32);
    let tokenizer = Tokenizer::from_metadata(&metadata, "official").unwrap();
    let config: serde_json::Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    let source = config["chat_template"].as_str().unwrap();
    let template = Template::new(source, "official", "<s>", "</s>").unwrap();
    assert_eq!(template.stops().unwrap(), ["<extra_id_1>"]);

    let system = Message::new(Role::System, "You are a helpful assistant.");
    let messages = [system, Message::new(Role::User, "Hello")];
    let prompt = template.render(&messages, true).unwrap();
    assert_eq!(
        prompt,
        "<extra_id_0>System\nYou are a helpful assistant.\n\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\n"
    );
    let ids = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!((ids.len(), &ids[..3]), (38, &[529, 17833, 29918][..]));

    // a second turn goes on with the ids that the whole would have
    let between = template.between(&messages, " How are you? ").unwrap().unwrap();
    assert!(between.strips);
    assert_eq!(between.text, "\n<extra_id_1>User\nHow are you?\n<extra_id_1>Assistant\n");
    let reply = "Hi there!";
    let pieces =
        [&*ids, &tokenizer.encode_more(reply).unwrap(), &tokenizer.encode_more(&between.text).unwrap()].concat();
    let more = [Message::new(Role::Assistant, reply), Message::new(Role::User, "How are you?")];
    let whole = template.render(&[&messages[..], &more].concat(), true).unwrap();
    assert_eq!(pieces, tokenizer.encode(&whole, false).unwrap());
}
