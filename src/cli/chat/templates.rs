//! `--chat-template NAME`: built-in templates.

/// Names and templates. They honor `add_generation_prompt`, as Hugging Face's do.
const KNOWN: [(&str, &str); 8] = [
    (
        "chatml",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "hymba",
        "{{ '<extra_id_0>System' }}{% for m in messages if m.role == 'system' %}{{ '\\n' + m.content | trim }}\
         {{ '\\n' if tools or contexts }}{% endfor %}{% for t in tools or [] %}{{ '\\n<tool> ' + t | tojson + ' </tool>' }}\
         {% endfor %}{{ '\\n' if tools and contexts }}{% for c in contexts or [] %}{{ '\\n<context> ' + c | trim + ' </context>' }}\
         {% endfor %}{{ '\\n\\n' }}{% for m in messages %}{% if m.role == 'user' %}\
         {{ '<extra_id_1>User\\n' + m.content | trim + '\\n' }}{% elif m.role == 'assistant' %}\
         {{ '<extra_id_1>Assistant\\n' + m.content | trim + '\\n' }}{% elif m.role == 'tool' %}\
         {{ '<extra_id_1>Tool\\n' + m.content | trim + '\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}",
    ),
    (
        "llama3",
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + \
         m.content | trim + '<|eot_id|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    (
        "llama2",
        "{% for m in messages %}{% if m.role == 'system' %}{{ bos_token + '[INST] <<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' }}\
         {% elif m.role == 'user' %}{% if loop.first or loop.previtem.role != 'system' %}{{ bos_token + '[INST] ' }}{% endif %}\
         {{ m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    (
        "gemma",
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + \
         m.content | trim + '<end_of_turn>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
    (
        "phi3",
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    (
        "zephyr",
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    (
        "vicuna",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}\
         {{ 'USER: ' + m.content + '\\n' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token + '\\n' }}{% endif %}\
         {% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
];

/// The name for no template.
pub const NONE: &str = "none";

/// Returns the built-in template named `text`, or `text` itself as a template.
pub fn source(text: &str) -> &str {
    KNOWN.iter().find(|known| known.0.eq_ignore_ascii_case(text)).map_or(text, |known| known.1)
}

/// Rejects a template that does not use `messages`, such as a misspelled name; `origin` is its flag or file.
pub fn check(source: &str, origin: &str) -> Result<(), String> {
    if source.contains("messages") {
        return Ok(());
    }
    let names: Vec<_> = KNOWN.iter().map(|known| known.0).chain([NONE]).collect();
    let available = format!("available: {}, or Jinja source that uses `messages`", names.join(", "));
    Err(match source.contains(['{', '\n']) {
        true => format!("{origin}: the template does not use `messages`; {available}"),
        false => format!("{origin}: unknown chat template `{source}`; {available}"),
    })
}

#[cfg(test)]
mod tests {
    use hymba::text::{Message, Role, Template};

    use super::*;

    fn messages() -> [Message<'static>; 3] {
        [
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "Hello"),
            Message::new(Role::Assistant, "Hi"),
        ]
    }

    #[test]
    fn known_templates_render_every_message_and_end_replies() {
        for (name, template) in KNOWN {
            check(template, "a").unwrap();
            let template = Template::new(source(&name.to_uppercase()), name, "<s>", "</s>").unwrap();
            let text = template.render(&[&messages()[..], &[Message::new(Role::User, "Bye")]].concat(), true).unwrap();
            for part in ["Be brief.", "Hello", "Hi", "Bye"] {
                assert_eq!(text.matches(part).count(), 1, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn chatml_matches_its_published_output() {
        let template = Template::new(source("chatml"), "chatml", "<s>", "</s>").unwrap();
        assert_eq!(
            template.render(&messages()[..2], true).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn templates_without_messages_are_refused() {
        for text in ["chatlm", "mistral-v99", "{{ bos_token }}", ""] {
            assert!(check(source(text), "a").unwrap_err().contains("available: chatml, hymba, llama3"), "{text}");
        }
    }
}
