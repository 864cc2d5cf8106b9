//! The report as text, for any width down to 40 columns.

use std::{
    fmt::Display,
    io::{self, Write},
};

use hymba::model::plan::Plan;
use indicatif::HumanCount;

use super::report::{Report, Token, Tokenizer};
use crate::cli::terminal::printable;

/// Width of the label column.
const NAMES: usize = 16;

/// Writes `report` in at most `width` columns, with every tensor if `tensors`.
pub fn write(report: &Report, tensors: bool, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { out, width: width.max(40) };
    page.facts(report)?;
    page.types(report)?;
    page.layers(report)?;
    page.cache(report)?;
    page.text(report)?;
    if tensors {
        page.tensors(report)?;
    }
    Ok(())
}

struct Page<'a> {
    out: &'a mut dyn Write,
    width: usize,
}

impl Page<'_> {
    fn heading(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n{text}")
    }

    /// Writes a labeled fact; long values wrap within their column.
    fn fact(&mut self, name: &str, value: impl Display) -> io::Result<()> {
        let mut start = format!("  {name}");
        for line in wrap(&line_of(&value.to_string()), self.width - NAMES) {
            writeln!(self.out, "{start:<NAMES$}{line}")?;
            start.clear();
        }
        Ok(())
    }

    fn facts(&mut self, r: &Report) -> io::Result<()> {
        let c = &r.config;
        writeln!(self.out, "{}", line_of(&r.file))?;
        self.fact("name", r.name.as_deref().unwrap_or("not given"))?;
        self.fact("license", r.license.as_deref().unwrap_or("not given"))?;
        self.fact("size", bytes(r.bytes))?;
        self.fact("parameters", format!("{}, {:.2} bits each", HumanCount(r.parameters), r.bits_per_weight))?;
        self.fact("layers", c.layers)?;
        self.fact("width", format!("{} hidden, {} inner", c.hidden, c.inner))?;
        match c.ffn {
            0 => self.fact("feed-forward", "none")?,
            f => self.fact("feed-forward", format!("{f}, {}", c.activation.name()))?,
        }
        let norm = if c.qk_norm { ", normed queries and keys" } else { "" };
        let heads = format!("{} query heads, {} key/value heads", c.heads, c.kv_heads);
        self.fact("attention", format!("{heads}, keys {} wide, values {}{norm}", c.key_dim, c.value_dim))?;
        let ssm = format!("state {}, dt rank {}, convolution {}", c.state, c.dt_rank, c.conv_kernel);
        self.fact("Mamba", ssm)?;
        let base = if c.rope { format!("RoPE base {}", c.rope_base) } else { "no RoPE".into() };
        self.fact(
            "positions",
            format!("{} in training, {} of them meta tokens; {base}", c.context_length, c.meta_tokens),
        )
    }

    fn types(&mut self, r: &Report) -> io::Result<()> {
        self.heading("Tensors")?;
        writeln!(self.out, "  {:<6}{:>7}{:>12}{:>11}", "type", "count", "values", "bytes")?;
        for t in &r.types {
            writeln!(self.out, "  {:<6}{:>7}{:>12}{:>11}", t.r#type, t.tensors, scaled(t.values, ""), bytes(t.bytes))?;
        }
        Ok(())
    }

    fn layers(&mut self, r: &Report) -> io::Result<()> {
        self.heading("Layers")?;
        for line in draw(&r.plan, self.width) {
            writeln!(self.out, "{line}")?;
        }
        let windowed = r.plan.layers.iter().filter(|l| l.windowed).count();
        writeln!(self.out)?;
        writeln!(self.out, "  █ full attention: {}", r.config.layers - windowed)?;
        if let (Some(window), true) = (r.config.window, windowed > 0) {
            writeln!(self.out, "  ░ meta tokens and window of {}: {windowed}", HumanCount(window as u64))?;
        }
        let producers = r.plan.producers().count();
        writeln!(self.out, "  ● has its own KV cache: {producers}")?;
        if producers < r.config.layers {
            writeln!(self.out, "  ╯ shares the cache of the linked ●: {}", r.config.layers - producers)?;
        }
        Ok(())
    }

    fn cache(&mut self, r: &Report) -> io::Result<()> {
        self.heading("Cache, keys and values in F16")?;
        writeln!(self.out, "  {:<7}{:>10}{:>10}{:>10}", "text", "fixed", "growing", "total")?;
        for c in &r.cache {
            let (fixed, growing) = (c.windowed_kv_bytes + c.state_bytes, c.global_kv_bytes);
            let [fixed, growing, total] = [fixed, growing, fixed + growing].map(bytes);
            writeln!(
                self.out,
                "  {:<7}{fixed:>10}{growing:>10}{total:>10}",
                HumanCount(c.text_tokens as u64).to_string()
            )?;
        }
        let states = bytes(r.plan.state_bytes());
        let fixed = format!("fixed: the windowed layers' rows, and {states} of conv and SSM states");
        for line in wrap(&fixed, self.width - 2) {
            writeln!(self.out, "  {line}")?;
        }
        match &r.meta_state {
            Some(m) => self.fact("meta tokens", format!("state stored in the file, {}", bytes(m.bytes))),
            None if r.config.meta_tokens > 0 => self.fact("meta tokens", "state not stored in the file"),
            None => self.fact("meta tokens", "none"),
        }
    }

    fn text(&mut self, r: &Report) -> io::Result<()> {
        self.heading("Text")?;
        match &r.tokenizer {
            Some(t) => self.tokenizer(t, r.config.vocab)?,
            None => self.fact("tokenizer", "none in the file")?,
        }
        match &r.chat_template {
            Some(template) => {
                self.fact("template", format!("{} characters", HumanCount(template.chars().count() as u64)))?;
                let first = line_of(template.lines().next().unwrap_or_default());
                self.fact("", cut(&first, self.width - NAMES))?;
            }
            None => self.fact("template", "no chat template")?,
        }
        let defaults: Vec<_> = r.sampling.iter().map(|(name, value)| format!("{name} {value}")).collect();
        match defaults.is_empty() {
            true => self.fact("sampling", "no defaults in the file"),
            false => self.fact("sampling", defaults.join(", ")),
        }
    }

    fn tokenizer(&mut self, t: &Tokenizer, vocabulary: usize) -> io::Result<()> {
        let kind = t.kind.as_deref().unwrap_or("unnamed kind");
        let source = if t.huggingface { "tokenizer.json in the file" } else { "without tokenizer.json" };
        self.fact("tokenizer", format!("{kind}, {source}"))?;
        self.fact("vocabulary", format!("{} tokens", HumanCount(t.tokens as u64)))?;
        if t.tokens != vocabulary {
            self.fact("", format!("({} rows in the embedding)", HumanCount(vocabulary as u64)))?;
        }
        let named = |name: &str, token: &Token| {
            format!("{name} {} {}", token.id, token.text.as_deref().unwrap_or("(not in the list)"))
        };
        let special = [("bos", &t.bos), ("eos", &t.eos), ("unk", &t.unk), ("pad", &t.pad)];
        let special = special.into_iter().filter_map(|(name, token)| Some(named(name, token.as_ref()?)));
        self.fact("special", special.collect::<Vec<_>>().join(", "))?;
        if !t.more_ends.is_empty() {
            let more: Vec<_> = t.more_ends.iter().map(|token| named("", token).trim().to_owned()).collect();
            self.fact("", format!("also end the text: {}", more.join(", ")))?;
        }
        match t.add_bos {
            Some(true) => self.fact("plain text", "starts with BOS"),
            Some(false) => self.fact("plain text", "starts without BOS"),
            None => Ok(()),
        }
    }

    fn tensors(&mut self, r: &Report) -> io::Result<()> {
        self.heading("Every tensor")?;
        let longest = r.tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0);
        for t in r.tensors {
            let shape = t.dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            let facts = format!("{shape:>12} {:<5}{:>10} at {}", t.dtype.name(), bytes(t.data.len() as u64), t.offset);
            match self.width < 80 {
                true => writeln!(self.out, "  {}\n    {facts}", line_of(&t.name))?,
                false => writeln!(self.out, "  {:<longest$} {facts}", line_of(&t.name))?,
            }
        }
        Ok(())
    }
}

/// Draws the layers side by side, two columns each, wrapped at `width`: their attention span, and whose KV cache they
/// use. Layers that do not directly follow the producer of their cache are listed below.
fn draw(plan: &Plan, width: usize) -> Vec<String> {
    const LABELS: usize = 8;
    let layers = &plan.layers;
    // In a chain, every layer shares the cache of the one before it.
    let chained = |l: usize| l > 0 && l < layers.len() && layers[l].kv_source == layers[l - 1].kv_source;
    let source = |l: usize| match (layers[l].kv_source == l, chained(l), chained(l + 1)) {
        (true, _, false) => "● ",
        (true, _, true) => "●─",
        (false, true, true) => "┴─",
        (false, true, false) => "╯ ",
        (false, false, false) => "○ ",
        (false, false, true) => "○─",
    };
    let per_row = ((width - LABELS) / 2 / 8 * 8).clamp(8, 64);
    let mut lines = Vec::new();
    for first in (0..layers.len()).step_by(per_row) {
        let row = first..layers.len().min(first + per_row);
        let numbers: String = row.clone().step_by(4).map(|l| format!("{l:<8}")).collect();
        let attention: String = row.clone().map(|l| if layers[l].windowed { "░ " } else { "█ " }).collect();
        let keeps: String = row.map(source).collect();
        for (label, cells) in [("layer", numbers), ("sees", attention), ("keeps", keeps)] {
            lines.push(format!("  {label:<6}{}", cells.trim_end()));
        }
    }
    for (l, layer) in layers.iter().enumerate().filter(|&(l, layer)| layer.kv_source != l && !chained(l)) {
        lines.push(format!("  ○ {l} shares {}", layer.kv_source));
    }
    lines
}

/// Wraps `text` at spaces to lines of at most `width` characters; a longer word gets its own line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// Truncates `text` to `width` characters, with an ellipsis.
fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.into(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// Returns a text from a file as one line.
fn line_of(text: &str) -> String {
    printable(&text.replace(['\n', '\t'], " ")).into_owned()
}

/// Formats bytes in decimal units.
fn bytes(n: u64) -> String {
    scaled(n, "B")
}

/// Formats a number with about three digits and a decimal unit.
fn scaled(n: u64, unit: &str) -> String {
    let (value, prefix) = match n {
        0..1_000 => return format!("{n} {unit}"),
        1_000..1_000_000 => (n as f64 / 1e3, 'k'),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, 'M'),
        _ => (n as f64 / 1e9, 'G'),
    };
    format!("{value:.*} {prefix}{unit}", if prefix == 'G' { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use hymba::{
        format::{Blob, DType, gguf::Metadata, gguf::Tensor},
        model::Config,
    };

    use super::*;

    /// Returns a plan like Hymba-1.5B's, possibly with fewer layers; `pairs` are layers and the producers of their
    /// caches.
    fn config(layers: usize, pairs: &[(usize, usize)]) -> Config {
        let mut kv_source: Vec<usize> = (0..layers).collect();
        pairs.iter().for_each(|&(reader, source)| kv_source[reader] = source);
        let model = Config::hymba_1_5b();
        Config { layers, windowed: model.windowed[..layers].to_vec(), kv_source, ..model }
    }

    #[test]
    fn plan_fits_the_width_and_shows_shared_caches() {
        let groups = [(2, 1), (4, 3), (6, 5), (8, 7), (10, 9), (12, 11), (14, 13), (17, 16), (18, 16), (20, 19)];
        let plan = Plan::new(&config(22, &groups));
        let wide = [
            "  layer 0       4       8       12      16      20",
            "  sees  █ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ █ ░ ░ ░ ░ ░ ░",
            "  keeps ● ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ● ●─┴─╯ ●─╯ ●",
        ];
        assert_eq!(draw(&plan, 80), wide);
        let narrow = [
            "  layer 0       4       8       12",
            "  sees  █ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ ░ █",
            "  keeps ● ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ●─╯ ●",
            "  layer 16      20",
            "  sees  ░ ░ ░ ░ ░ ░",
            "  keeps ●─┴─╯ ●─╯ ●",
        ];
        assert_eq!(draw(&plan, 40), narrow);
    }

    #[test]
    fn plan_lists_layers_that_do_not_follow_their_producer() {
        let lines = draw(&Plan::new(&config(6, &[(3, 1), (5, 2)])), 80);
        assert_eq!(lines[2..], ["  keeps ● ● ● ○ ● ○", "  ○ 3 shares 1", "  ○ 5 shares 2"]);
    }

    fn metadata() -> Metadata {
        let mut meta = Metadata::default();
        meta.set("general.architecture", "hymba");
        meta.set("general.name", "a name with \u{1b}[31m color");
        meta.set("general.sampling.temp", 0.8f32);
        meta.set("tokenizer.ggml.model", "llama");
        meta.set("tokenizer.ggml.tokens", vec!["<unk>".to_string(), "<s>".to_string(), "</s>".to_string()]);
        meta.set("tokenizer.ggml.bos_token_id", 1u32);
        meta.set("tokenizer.ggml.eos_token_id", 7u32);
        meta.set("hymba.eos_token_ids", vec![7u64, 1]);
        meta.set("tokenizer.chat_template", "{{ 'a first line much longer than a narrow terminal' }}\nmore");
        config(32, &[(2, 1), (30, 29)]).to_metadata(&mut meta);
        meta
    }

    fn tensor(name: &str, dims: &[usize], dtype: DType, bytes: &'static [u8]) -> Tensor {
        Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            dtype,
            packing: Default::default(),
            offset: 64,
            data: Blob::from_static(bytes),
        }
    }

    #[test]
    fn report_fits_40_and_80_columns() {
        let tensors = [
            tensor("blk.31.attn_out_norm.weight", &[16], DType::F32, &[0; 64]),
            tensor("blk.31.in_proj.weight", &[2, 32], DType::Q4_0, &[0; 36]),
            tensor("meta_state.conv.0", &[4, 3], DType::F32, &[0; 48]),
        ];
        let report = Report::new("random.gguf", 1_234_567, &metadata(), &tensors).unwrap();
        assert_eq!(report.parameters, 16 + 64);
        assert_eq!(report.bits_per_weight, 100.0 * 8.0 / 80.0);
        for width in [40, 80] {
            let mut page = Vec::new();
            write(&report, true, width, &mut page).unwrap();
            let page = String::from_utf8(page).unwrap();
            for line in page.lines() {
                assert!(line.chars().count() <= width, "{} columns for {width}: {line}", line.chars().count());
            }
            assert!(!page.contains('\u{1b}'), "a control character was not escaped");
            for fact in [
                "80, 10.00 bits each",
                "8,192",
                "bos 1 <s>",
                "eos 7",
                "also end the text: 1 <s>",
                "temp 0.8",
                "file, 48 B",
            ] {
                assert!(page.contains(fact), "{fact} is missing in:\n{page}");
            }
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["sampling"]["temp"], 0.8);
        assert_eq!(json["layers"][1]["kv_readers"][0], 2);
        assert_eq!(json["tensors"][1]["type"], "q4_0");
    }
}
