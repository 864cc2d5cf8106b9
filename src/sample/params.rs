//! Sampling parameters: names, ranges and defaults.

use crate::{
    Error, Result,
    format::gguf::{Metadata, Value},
};

/// Sampling parameters. The defaults are those of llama.cpp.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Temperature; 0: greedy decoding.
    pub temperature: f32,
    /// Keep only the `top_k` most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep only the most likely tokens with this total probability; 1: all.
    pub top_p: f32,
    /// Keep only tokens with at least this probability relative to the most likely one; 0: all.
    pub min_p: f32,
    /// Penalty for recent tokens: positive logits are divided by it, negative ones multiplied; 1: none.
    pub repeat_penalty: f32,
    /// Number of recent tokens that are penalized; 0: none, `usize::MAX`: all.
    pub repeat_last_n: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, repeat_last_n: 64 }
    }
}

/// A parameter, as set by a flag, a file or a chat command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the field of `SamplingParams` of its name")]
pub enum Setting {
    Temperature,
    TopK,
    TopP,
    MinP,
    RepeatPenalty,
    RepeatLastN,
}

impl Setting {
    /// All parameters.
    pub const ALL: [Self; 6] =
        [Self::Temperature, Self::TopK, Self::TopP, Self::MinP, Self::RepeatPenalty, Self::RepeatLastN];

    /// Returns the name of the flag, without dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temp",
            Self::TopK => "top-k",
            Self::TopP => "top-p",
            Self::MinP => "min-p",
            Self::RepeatPenalty => "repeat-penalty",
            Self::RepeatLastN => "repeat-last-n",
        }
    }

    /// Returns the metadata key with a model file's recommended value.
    pub fn key(self) -> &'static str {
        match self {
            Self::Temperature => "general.sampling.temp",
            Self::TopK => "general.sampling.top_k",
            Self::TopP => "general.sampling.top_p",
            Self::MinP => "general.sampling.min_p",
            Self::RepeatPenalty => "general.sampling.penalty_repeat",
            Self::RepeatLastN => "general.sampling.penalty_last_n",
        }
    }
}

impl SamplingParams {
    /// Returns the recommendations of a model file, with defaults for the rest; `file` is the name for error messages.
    pub fn from_metadata(meta: &Metadata, file: &str) -> Result<Self> {
        let (params, refused) = Self::usable(meta);
        refused.first().map_or(Ok(params), |problem| Err(Error::format(file, problem)))
    }

    /// Returns the valid recommendations, with defaults for the rest, and a message about each invalid one, to be
    /// appended to the file's name.
    pub fn usable(meta: &Metadata) -> (Self, Vec<String>) {
        let (mut params, mut refused) = (Self::default(), Vec::new());
        for setting in Setting::ALL {
            let value = match meta.get(setting.key()) {
                None => continue,
                Some(&Value::Float(v)) => v,
                Some(&Value::Uint(v)) => v as f64,
                Some(&Value::Int(v)) => v as f64,
                Some(_) => {
                    refused.push(format!("has a {} that is not a number", setting.key()));
                    continue;
                }
            };
            if let Err(reason) = params.set(setting, value) {
                refused.push(format!("recommends {} {value}, which {reason}", setting.key()));
            }
        }
        (params, refused)
    }

    /// Returns the value of a parameter in the form that [`SamplingParams::set`] accepts.
    pub fn get(&self, setting: Setting) -> f64 {
        // as the user wrote it: 0.8, not 0.800000011920929
        let short = |v: f32| v.to_string().parse().unwrap_or(f64::from(v));
        match setting {
            Setting::Temperature => short(self.temperature),
            Setting::TopK => self.top_k as f64,
            Setting::TopP => short(self.top_p),
            Setting::MinP => short(self.min_p),
            Setting::RepeatPenalty => short(self.repeat_penalty),
            Setting::RepeatLastN if self.repeat_last_n == usize::MAX => -1.0,
            Setting::RepeatLastN => self.repeat_last_n as f64,
        }
    }

    /// Sets a parameter. The error "must be …" is to be appended to the parameter's name. As in llama.cpp, −1 means
    /// none for `TopK` and everything for `RepeatLastN`.
    pub fn set(&mut self, setting: Setting, value: f64) -> std::result::Result<(), &'static str> {
        let float = |ok: bool, range| if ok { Ok(value as f32) } else { Err(range) };
        let count = |minus_one: usize| match value {
            -1.0 => Ok(minus_one),
            v if (0.0..=f64::from(u32::MAX)).contains(&v) && v.fract() == 0.0 => Ok(v as usize),
            _ => Err("must be a non-negative integer, or -1"),
        };
        match setting {
            Setting::Temperature => {
                self.temperature = float((0.0..=1000.0).contains(&value), "must be from 0 to 1000")?;
            }
            Setting::TopK => self.top_k = count(0)?,
            Setting::TopP => self.top_p = float((0.0..=1.0).contains(&value), "must be from 0 to 1")?,
            Setting::MinP => self.min_p = float((0.0..=1.0).contains(&value), "must be from 0 to 1")?,
            Setting::RepeatPenalty => {
                self.repeat_penalty = float((0.01..=1000.0).contains(&value), "must be from 0.01 to 1000")?;
            }
            Setting::RepeatLastN => self.repeat_last_n = count(usize::MAX)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_recommendations_override_defaults() {
        let mut meta = Metadata::default();
        assert_eq!(SamplingParams::from_metadata(&meta, "f").unwrap(), SamplingParams::default());
        meta.set("general.sampling.temp", 0.5f32);
        meta.set("general.sampling.top_k", Value::Int(-1));
        meta.set("general.sampling.penalty_last_n", Value::Int(-1));
        let params = SamplingParams::from_metadata(&meta, "f").unwrap();
        let expected =
            SamplingParams { temperature: 0.5, top_k: 0, repeat_last_n: usize::MAX, ..SamplingParams::default() };
        assert_eq!(params, expected);

        meta.set("general.sampling.top_p", 1.5f32);
        let error = SamplingParams::from_metadata(&meta, "m.gguf").unwrap_err().to_string();
        assert_eq!(error, "m.gguf: recommends general.sampling.top_p 1.5, which must be from 0 to 1");
        meta.set("general.sampling.top_p", "high");
        let error = SamplingParams::from_metadata(&meta, "m.gguf").unwrap_err().to_string();
        assert_eq!(error, "m.gguf: has a general.sampling.top_p that is not a number");
        let (params, refused) = SamplingParams::usable(&meta);
        assert_eq!((params.temperature, params.top_p, refused.len()), (0.5, 0.95, 1), "the others are used");
    }

    #[test]
    fn values_round_trip() {
        let mut params = SamplingParams { repeat_last_n: usize::MAX, temperature: 0.7, ..SamplingParams::default() };
        let before = params.clone();
        for setting in Setting::ALL {
            let value = params.get(setting);
            params.set(setting, value).unwrap();
        }
        assert_eq!(params, before);
        assert_eq!((params.get(Setting::Temperature), params.get(Setting::RepeatLastN)), (0.7, -1.0));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let bad = [
            (Setting::Temperature, -0.1),
            (Setting::Temperature, f64::NAN),
            (Setting::Temperature, f64::INFINITY),
            (Setting::TopK, 1.5),
            (Setting::TopK, -2.0),
            (Setting::TopK, f64::NAN),
            (Setting::TopP, 1.01),
            (Setting::MinP, -0.01),
            (Setting::RepeatPenalty, 0.0),
            (Setting::RepeatLastN, 1e300),
        ];
        for (setting, value) in bad {
            let mut params = SamplingParams::default();
            assert!(params.set(setting, value).is_err(), "{setting:?} {value}");
            assert_eq!(params, SamplingParams::default());
        }
    }
}
