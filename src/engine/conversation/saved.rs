//! A conversation, or a text, in a file: what goes into it beside the timeline.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{Branch, Conversation, Turn};
use crate::{
    Error, Mismatch, Result,
    engine::timeline::{SavedSteps, Step, Watch, common_steps},
    limits,
    sample::{Sampler, SavedSampler},
    text::Template,
};

/// What a session file holds beside the timeline.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The sampler.
    pub sampler: SavedSampler,
    /// A token that was chosen and shown, but not read: there was no room for it.
    pub unread: Option<u32>,
    /// The conversation; `None`: a running text.
    chat: Option<SavedChat>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedChat {
    template: Option<String>,
    name: String,
    branches: BTreeMap<String, SavedBranch>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedBranch {
    system: Option<String>,
    turns: Vec<SavedTurn>,
}

/// A turn; its steps as what they add to those of the turn before.
#[derive(Debug, Serialize, Deserialize)]
struct SavedTurn {
    user: String,
    reply: String,
    prompt: usize,
    kept: usize,
    steps: SavedSteps,
}

impl Saved {
    /// A running text.
    pub fn text(sampler: &Sampler, unread: Option<u32>) -> Self {
        Self { sampler: sampler.saved(), unread, chat: None }
    }

    /// The sampler of a running text that `path` holds; a conversation is refused.
    pub fn text_sampler(&self, path: &Path) -> Result<Sampler> {
        if self.chat.is_some() {
            let file = path.display().to_string();
            return Err(Error::SessionMismatch { file, why: Mismatch::Conversation });
        }
        self.sampler(path)
    }

    fn sampler(&self, path: &Path) -> Result<Sampler> {
        let bad = |why| Error::format(path.display().to_string(), format!("cannot be used: its sampler {why}"));
        Sampler::from_saved(&self.sampler).map_err(bad)
    }
}

impl SavedBranch {
    fn new(branch: &Branch) -> Self {
        let mut before: &[Step] = &[];
        let turns = branch.turns.iter().map(|turn| {
            let common = common_steps(before, &turn.steps);
            let kept = (0..=common).rev().find(|&at| turn.steps.get(at).is_none_or(|step| step.first)).unwrap_or(0);
            before = &turn.steps;
            let (user, reply, prompt) = (turn.user.clone(), turn.reply.clone(), turn.prompt);
            SavedTurn { user, reply, prompt, kept, steps: SavedSteps::new(&turn.steps[kept..]) }
        });
        Self { system: branch.system.clone(), turns: turns.collect() }
    }

    /// `None` if it contradicts itself, or has more than `room` steps in all turns, which are taken off it.
    fn branch(self, room: &mut usize) -> Option<Branch> {
        let mut turns: Vec<Turn> = Vec::new();
        for saved in self.turns {
            let before = turns.last().map_or(&[][..], |turn| &turn.steps).get(..saved.kept)?;
            // A few bytes of the file say that steps are there again.
            *room = room.checked_sub(before.len() + saved.steps.len())?;
            let mut steps = before.to_vec();
            steps.extend(saved.steps.steps()?);
            let SavedTurn { user, reply, prompt, .. } = saved;
            (prompt <= steps.len()).then_some(())?;
            turns.push(Turn { user, reply, prompt, steps });
        }
        Some(Branch { system: self.system, turns })
    }
}

impl Conversation<'_> {
    /// Writes the conversation to `path`: the state at its end, and all that was said in all branches.
    pub fn save(&mut self, path: &Path, watch: &Watch<'_>) -> Result<()> {
        self.settle(watch)?;
        let turns = self.others.values().chain([&self.here]).flat_map(|branch| &branch.turns);
        let steps: usize = turns.map(|turn| turn.steps.len()).sum();
        if steps > limits::SESSION_STEPS {
            let (file, limit) = (path.display().to_string(), limits::SESSION_STEPS);
            return Err(Error::ConversationTooLong { file, steps, limit });
        }
        let mut branches: BTreeMap<_, _> =
            self.others.iter().map(|(name, branch)| (name.clone(), SavedBranch::new(branch))).collect();
        branches.insert(self.name.clone(), SavedBranch::new(&self.here));
        let template = self.options.template.as_ref().map(|template| template.source().to_owned());
        let chat = SavedChat { template, name: self.name.clone(), branches };
        let saved = Saved { sampler: self.sampler.saved(), unread: None, chat: Some(chat) };
        self.timeline.save(path, &saved, false)
    }

    /// Becomes the conversation that was saved at `path`. Its sampler is taken over, and its template too
    /// unless `keep_template`. If the file is refused, nothing has changed.
    pub fn load(&mut self, path: &Path, keep_template: bool) -> Result<()> {
        let file = path.display().to_string();
        let [bos, eos] = [self.tokenizer.bos(), self.tokenizer.eos()].map(|id| self.tokenizer.name(id));
        let (sampler, template, name, here, others) = self.timeline.load(path, |saved: Saved, steps| {
            let sampler = saved.sampler(path)?;
            let text = || Error::SessionMismatch { file: file.clone(), why: Mismatch::Text };
            let chat = saved.chat.ok_or_else(text)?;
            let broken = || Error::format(&file, "contradicts itself; restore it from a copy");
            let parsed = chat.template.map(|source| Template::new(&source, &file, &bos, &eos)).transpose()?;
            let (mut branches, mut room) = (BTreeMap::new(), limits::SESSION_STEPS);
            for (name, branch) in chat.branches {
                branches.insert(name, branch.branch(&mut room).ok_or_else(broken)?);
            }
            let here = branches.remove(&chat.name).ok_or_else(broken)?;
            if here.turns.last().map_or(&[][..], |turn| &turn.steps) != steps {
                return Err(broken());
            }
            Ok((sampler, parsed, chat.name, here, branches))
        })?;
        self.sampler = sampler;
        if !keep_template {
            self.options.template = template;
        }
        (self.name, self.here, self.others) = (name, here, others);
        self.timeline.mark()?;
        self.find_stops()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::timeline::prefilled;

    #[test]
    fn steps_that_are_there_again_count() {
        let turn = |kept, new: &[u32]| {
            let steps = SavedSteps::new(&prefilled(new).collect::<Vec<_>>());
            SavedTurn { user: String::new(), reply: String::new(), prompt: 0, kept, steps }
        };
        let branch = || SavedBranch { system: None, turns: vec![turn(0, &[1; 5]), turn(5, &[2]), turn(6, &[])] };
        let mut room = 17;
        assert_eq!(branch().branch(&mut room).unwrap().turns.len(), 3);
        assert_eq!(room, 0);
        assert!(branch().branch(&mut 16).is_none());
        assert!(SavedBranch { system: None, turns: vec![turn(1, &[])] }.branch(&mut 99).is_none(), "nothing to keep");
    }
}
