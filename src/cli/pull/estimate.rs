//! Disk and memory needs of a pull, shown in advance.

use std::path::Path;

use hymba::{
    Error, Result,
    hub::{Fetch, Info, Installed, Plan, Selection, Settings, free_space, same_disk},
    import::check_config,
    quant::TypePlan,
};
use indicatif::DecimalBytes;
use serde_json::Value;

/// Bytes besides the weights: tokenizer, metadata, state after the meta tokens.
const OVERHEAD: u64 = 24 << 20;
/// Memory for a conversion, independent of the model's size.
const TO_CONVERT: u64 = 140_000_000;
/// Memory for a conversation besides the weights.
const TO_RUN: u64 = 150_000_000;

/// A model to create.
pub struct Estimate {
    /// Approximate size in bytes.
    model: u64,
    is_converted: bool,
}

impl Estimate {
    /// Returns the estimate; fails if the checkpoint is not one of a supported model.
    pub fn new(fetch: &Fetch, selection: &Selection, plan: &Plan, model: &Installed) -> Result<Self> {
        let ends_with =
            |suffix: &str| plan.files().filter(|file| file.0.ends_with(suffix)).map(|file| file.1).sum::<u64>();
        if matches!(selection, Selection::Ready { .. }) {
            return Ok(Self { model: ends_with(".gguf"), is_converted: false });
        }
        let text = fetch.text(plan, "config.json")?;
        check_config(&Path::new(&model.repo.to_string()).join("config.json"), &text)?;
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let wide = ["torch_dtype", "dtype"].iter().any(|key| config[key] == "float32");
        let weights = ends_with(".safetensors") / if wide { 4 } else { 2 };
        let bits = TypePlan::from_name(&model.kind).map_or(32.0, TypePlan::bits);
        Ok(Self { model: (weights as f64 * bits / 8.0) as u64 + OVERHEAD, is_converted: true })
    }

    /// Returns the output of a dry run.
    pub fn report(&self, info: &Info, revision: &str, plan: &Plan, settings: &Settings, model: &Installed) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text += &line;
            text.push('\n');
        };
        line(format!("{} at {} ({revision})", info.repo, &info.commit[..12]));
        if let Some(license) = &info.license {
            line(format!("license: {}, {}", license.name.as_ref().unwrap_or(&license.id), license.link));
        }
        for (path, size, present) in plan.files() {
            let present = match present {
                0 => String::new(),
                present if present == size => ", already downloaded".into(),
                present => format!(", {} of it already downloaded", DecimalBytes(present)),
            };
            line(format!("  {path} ({}{present})", DecimalBytes(size)));
        }
        let (all, missing, made) = (DecimalBytes(plan.bytes()), DecimalBytes(plan.missing()), DecimalBytes(self.model));
        line(format!("to download: {missing} of {all}, into {}", settings.cache.display()));
        let verb = if self.is_converted { "to convert" } else { "to install" };
        line(format!("{verb}: {} ({made}), as {}", model.kind, model.path.display()));
        let free = free_space(&settings.cache).map_or(String::new(), |free| format!(" of {} free", DecimalBytes(free)));
        line(format!("on disk: {} more{free}", DecimalBytes(plan.missing() + self.model)));
        let convert =
            if self.is_converted { format!("{} to convert, ", DecimalBytes(TO_CONVERT)) } else { String::new() };
        line(format!("in memory: {convert}about {} to run", DecimalBytes(self.model + TO_RUN)));
        text
    }

    /// Fails if the disk is too small for the download in `cache` and the model in `models`.
    pub fn check_disk(&self, plan: &Plan, cache: &Path, models: &Path) -> Result<()> {
        let download = plan.missing();
        // A ready file is hard-linked on the same disk.
        let made = if self.is_converted || !same_disk(cache, models) { self.model } else { 0 };
        let needs = if same_disk(cache, models) {
            vec![(cache, download + made)]
        } else {
            vec![(cache, download), (models, made)]
        };
        for (path, needed) in needs {
            check(path, needed, free_space(path))?;
        }
        Ok(())
    }
}

fn check(path: &Path, needed: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if free < needed => {
            let (needed, free) = (DecimalBytes(needed), DecimalBytes(free));
            Err(Error::Request(format!("{}: not enough disk space: {needed} needed, {free} free", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_space_is_checked_first() {
        let path = Path::new("/hub");
        assert!(check(path, 10, Some(10)).is_ok() && check(path, u64::MAX, None).is_ok());
        let refused = check(path, 3_000_000_000, Some(1_200_000_000)).unwrap_err().to_string();
        assert_eq!(refused, "/hub: not enough disk space: 3.00 GB needed, 1.20 GB free");
    }
}
