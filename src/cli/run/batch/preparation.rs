//! Conversion of input lines to jobs.

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::{anyhow, bail, ensure};
use hymba::{
    Error,
    constrain::Constraint,
    engine::{
        Model,
        scheduler::{Events, Job},
    },
    limits,
    sample::{SamplingParams, Setting},
    text::{Message, Role, StopMatcher, Template, Tokenizer},
};

use super::prompts::{InputMessage, Request};
use crate::cli::{options::SamplingArgs, usage::Usage};

/// Values from the flags, for all prompts.
pub struct Defaults {
    /// Whether a prompt is a chat message.
    pub chat: bool,
    pub system: Option<String>,
    pub limit: Option<usize>,
    pub stops: Vec<String>,
    pub ignore_eos: bool,
    pub sampling: SamplingArgs,
    pub constraint: Option<Arc<Constraint>>,
    pub quiet: bool,
}

/// Converts lines to jobs.
pub struct Preparation {
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    /// Strings that start another turn.
    template_stops: Vec<String>,
    sampling: SamplingParams,
    defaults: Defaults,
    context: usize,
    cancel: Arc<AtomicBool>,
}

impl Preparation {
    /// Returns a converter for texts of at most `context` tokens.
    pub fn new(model: &Model, tokenizer: &Arc<Tokenizer>, context: usize, defaults: Defaults) -> anyhow::Result<Self> {
        let template = model.chat_template(tokenizer)?;
        if defaults.chat && template.is_none() {
            return Err(Usage("--chat: the model has no chat template; leave it out".into()).into());
        }
        Ok(Self {
            tokenizer: tokenizer.clone(),
            template_stops: template.as_ref().map(Template::stops).transpose()?.unwrap_or_default(),
            template,
            sampling: defaults.sampling.of_model(model, defaults.quiet)?,
            defaults,
            context,
            cancel: Arc::default(),
        })
    }

    /// Returns the job for a line.
    pub fn job(&self, request: Request, events: Box<dyn Events>) -> anyhow::Result<Job> {
        let (prompt, template_stops) = self.prompt(&request)?;
        let Request { max_tokens, stop, ignore_eos, seed, frequency_penalty, presence_penalty, logit_bias, .. } =
            &request;
        let limit = match max_tokens {
            Some(max) => usize::try_from(*max).ok(), // -1: no limit
            None => self.defaults.limit,
        };
        let mut bias: Vec<(u32, f32)> = logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
        if ignore_eos.unwrap_or(self.defaults.ignore_eos) {
            bias.extend(self.tokenizer.ends().iter().map(|&end| (end, f32::NEG_INFINITY)));
        }
        let seed = seed.map_or_else(|| self.defaults.sampling.seed(), Ok)?;
        let (frequency, presence) = (frequency_penalty.unwrap_or_default(), presence_penalty.unwrap_or_default());
        let sampling = self.sampling(&request)?;
        let own = match stop {
            Some(_) => request.stop.map(|stop| stop.into_list()).unwrap_or_default(),
            None => self.defaults.stops.clone(),
        };
        let stops = [&*own, template_stops].concat();
        StopMatcher::new(&stops)?;
        Ok(Job {
            limit,
            stops,
            sampling,
            seed,
            bias,
            frequency_penalty: frequency,
            presence_penalty: presence,
            matching: self.defaults.constraint.as_ref().map(|constraint| constraint.matching()),
            cancel: self.cancel.clone(),
            ..Job::new(prompt, events)
        })
    }

    /// Returns the ids of a prompt, and the stop strings of its chat template.
    fn prompt(&self, request: &Request) -> anyhow::Result<(Vec<u32>, &[String])> {
        let given: Vec<Message<'_>> = match (&request.prompt, &request.messages) {
            (Some(text), _) if !self.defaults.chat => {
                ensure!(request.system.is_none(), "`system` needs `messages`, or --chat");
                return Ok((self.encode(text, true)?, &[]));
            }
            (Some(text), _) => vec![Message::new(Role::User, text)],
            (None, messages) => messages.iter().flatten().map(InputMessage::message).collect(),
        };
        let Some(template) = &self.template else {
            bail!("`messages` need a chat template, and the model has none; give a `prompt`")
        };
        let begins_with_system = given.first().is_some_and(|message| message.role == Role::System);
        let system = request.system.as_ref().or(self.defaults.system.as_ref().filter(|_| !begins_with_system));
        ensure!(
            !(begins_with_system && system.is_some()),
            "give the system message once: as `system` or in `messages`"
        );
        let system = system.map(|text| Message::new(Role::System, text));
        let messages: Vec<_> = system.into_iter().chain(given).collect();
        Ok((self.encode(&template.render(&messages, true)?, false)?, &self.template_stops))
    }

    fn encode(&self, text: &str, with_bos: bool) -> hymba::Result<Vec<u32>> {
        limits::check_prompt(text, "the prompt")?;
        let context = self.context;
        let full = |needed| Error::ContextFull { needed, free: context, context };
        // Checked first, since tokenization takes many times the text's length in memory.
        let least = self.tokenizer.least_tokens(text);
        if least > context {
            return Err(full(least));
        }
        let ids = self.tokenizer.encode(text, with_bos)?;
        if ids.len() > context { Err(full(ids.len())) } else { Ok(ids) }
    }

    fn sampling(&self, request: &Request) -> anyhow::Result<SamplingParams> {
        let mut params = self.sampling.clone();
        let own = [
            ("temperature", request.temperature),
            ("top_k", request.top_k),
            ("top_p", request.top_p),
            ("min_p", request.min_p),
            ("repeat_penalty", request.repeat_penalty),
            ("repeat_last_n", request.repeat_last_n),
        ];
        for (setting, (name, value)) in Setting::ALL.into_iter().zip(own) {
            if let Some(value) = value {
                params.set(setting, value).map_err(|reason| anyhow!("`{name}` {value}: {reason}"))?;
            }
        }
        Ok(params)
    }
}
