//! The contents of session files beyond the timeline.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Branch, Conversation, Kind,
    calls::CallConstraints,
    format::{Fingerprint, Format},
    state::check_template_inputs,
};
use crate::{
    Error, Mismatch, Result,
    engine::timeline::Watch,
    sample::{Sampler, SavedSampler},
    text::{Template, Tools},
};

/// The contents of a session file beyond the timeline.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The sampler.
    pub sampler: SavedSampler,
    /// A token that was chosen and shown but not processed, because the context was full.
    #[serde(rename = "unread")]
    pub unprocessed: Option<u32>,
    /// The purpose of the file; `None` in files of version 0.1.
    kind: Option<Kind>,
    /// The conversation; `None` for a plain text.
    chat: Option<SavedChat>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedChat {
    template: Option<String>,
    /// The tools, as they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    contexts: Vec<String>,
    name: String,
    branches: BTreeMap<String, Branch>,
}

impl Saved {
    /// Returns the contents for a plain text.
    pub fn text(sampler: &Sampler, unprocessed: Option<u32>) -> Self {
        Self { sampler: sampler.saved(), unprocessed, kind: Some(Kind::Text), chat: None }
    }

    /// Returns the contents for a processed prompt.
    pub fn prompt(sampler: &Sampler) -> Self {
        Self { kind: Some(Kind::Prompt), ..Self::text(sampler, None) }
    }

    /// Returns the sampler of the plain text in `path`; fails for a conversation.
    pub fn text_sampler(&self, path: &Path) -> Result<Sampler> {
        if self.chat.is_some() {
            let file = path.display().to_string();
            return Err(Error::SessionMismatch { file, reason: Mismatch::Conversation });
        }
        self.sampler(path)
    }

    fn sampler(&self, path: &Path) -> Result<Sampler> {
        let bad = |reason| Error::format(path.display().to_string(), format!("cannot be used: the sampler {reason}"));
        Sampler::from_saved(&self.sampler).map_err(bad)
    }
}

impl Conversation<'_> {
    /// Saves the conversation to `path`: the state at its end, and the text of all branches.
    pub fn save(&mut self, path: &Path, watch: &Watch<'_>) -> Result<()> {
        self.sync(watch)?;
        let mut branches = self.branches.clone();
        branches.insert(self.name.clone(), self.current.clone());
        let template = self.options.template.as_ref().map(|template| template.source().to_owned());
        let (tools, contexts) = (self.tools.as_ref().map(Tools::to_value), self.contexts.clone());
        let chat = SavedChat { template, tools, contexts, name: self.name.clone(), branches };
        let saved = Saved { kind: Some(Kind::Chat), chat: Some(chat), ..Saved::text(&self.sampler, None) };
        self.timeline.save(path, &saved, false)
    }

    /// Replaces this conversation by the one saved at `path`, including its sampler. Its template is used unless
    /// `keep_template`, its tools and contexts unless this conversation has its own. If loading fails, nothing changes.
    pub fn load(&mut self, path: &Path, keep_template: bool) -> Result<()> {
        let file = path.display().to_string();
        let Self { timeline, tokenizer, options, format, .. } = self;
        let (sampler, adopted, tools, contexts, call_constraints, name, current, branches) =
            timeline.load(path, |saved: Saved, steps| {
                let sampler = saved.sampler(path)?;
                let text = || Error::SessionMismatch { file: file.clone(), reason: Mismatch::Text };
                let SavedChat { template, tools, contexts, name, mut branches } = saved.chat.ok_or_else(text)?;
                let saved_tools = tools.map(|tools| Tools::from_value(&tools, &file)).transpose()?;
                let tools = options.tools.clone().or_else(|| saved_tools.clone());
                let other_contexts = !options.contexts.is_empty() && options.contexts != contexts;
                let other_inputs = tools != saved_tools || other_contexts;
                let contexts = if other_contexts { options.contexts.clone() } else { contexts };
                let adopt = |source: Option<String>| {
                    let template = source.map(|source| tokenizer.template(&source, &file)).transpose()?;
                    let format = Format::new(tokenizer, template.as_ref(), &options.stops)?;
                    Ok::<_, Error>((template, format))
                };
                let other_template =
                    keep_template && template.as_deref() != options.template.as_ref().map(Template::source);
                if other_template || other_inputs {
                    // Versions before 0.2 did not save the text of prompts.
                    let turns = branches.values_mut().flat_map(|branch| &mut branch.turns);
                    turns.for_each(|turn| {
                        turn.fingerprint = turn.fingerprint.take().or_else(|| Some(Fingerprint::unmatched()))
                    });
                }
                let adopted = (!keep_template).then(|| adopt(template)).transpose()?;
                let template = adopted.as_ref().map_or(options.template.as_ref(), |(template, _)| template.as_ref());
                check_template_inputs(template, tools.as_ref(), &contexts)?;
                let stops = adopted.as_ref().map_or(&format.stops, |(_, format)| &format.stops);
                let call_constraints = CallConstraints::new(
                    tokenizer,
                    stops,
                    tools.as_ref(),
                    &options.tool_choice,
                    &AtomicBool::new(false),
                )?;
                let consistent = branches.values().all(Branch::is_consistent);
                let current = branches.remove(&name).filter(|current| consistent && current.steps() == steps);
                let current = current.ok_or_else(|| Error::format(&file, "is inconsistent; restore it from a copy"))?;
                Ok((sampler, adopted, tools, contexts, call_constraints, name, current, branches))
            })?;
        self.sampler = sampler;
        if let Some((template, format)) = adopted {
            (self.options.template, self.format) = (template, format);
        }
        (self.tools, self.contexts, self.call_constraints) = (tools, contexts, call_constraints);
        (self.name, self.current, self.branches) = (name, current, branches);
        self.speculator.clear();
        self.timeline.checkpoint()
    }
}
