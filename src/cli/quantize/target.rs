//! `--type`: the types and recipes, their aliases, and what each is good for.

use hymba::{format::DType, quant::Recipe};
use regex::Regex;

/// Size, loss and speed of each type. Sizes are for Hymba-1.5B; losses are the demo's perplexity on its held-out text.
/// Decode reads every weight once per token, so its speed depends on the size.
pub const TABLE: &str = "\
Types, with the size of the 1.5B model, the loss in perplexity (measured on the demo; q5, q4 and
small with --calibrate), and the decode speed relative to q4:
  q8      1.64 GB   0.04 %   0.5x   as good as the original; for comparisons
  q6      1.26 GB   0.2 %    0.7x   if memory is plentiful
  q5      1.07 GB   0.2 %    0.8x   near the original
  q4      0.88 GB   0.4 %    1x     the default, recommended for most uses
  small   0.86 GB   0.4 %    1x     the smallest
These are recipes: every tensor gets the type that it needs, within 9, 6.6, 5.6, 4.6 and 4.5 bits per weight. A plain type
gives all matrices the same: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 (0.88 GB, a larger loss than q4), iq4_nl, mxfp4.

Examples:
  hymba quantize path/to/Hymba-1.5B-Base hymba-1.5b-q4.gguf
  hymba quantize path/to/Hymba-1.5B-Base hymba-1.5b-q4.gguf --calibrate text.txt
  hymba quantize hymba-1.5b-q4.gguf standard.gguf --type q4_0 --layout standard";

/// The value of --type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    Type(DType),
    Recipe(Recipe),
}

/// Parses the name of a type or recipe, ignoring case.
pub fn parse(text: &str) -> Result<Target, String> {
    let name = text.to_lowercase();
    let recipe = || Recipe::from_name(&name).map(Target::Recipe);
    DType::from_name(&name).map(Target::Type).or_else(recipe).ok_or_else(|| {
        let known: Vec<_> = Recipe::ALL.map(Recipe::name).into_iter().chain(DType::ALL.map(DType::name)).collect();
        match equivalent(&name) {
            Some(ours) => format!("this llama.cpp type is not supported; use {ours}"),
            None => format!("unknown type; available: {}", known.join(", ")),
        }
    })
}

/// Returns our recipe closest in size to an unsupported llama.cpp type.
fn equivalent(name: &str) -> Option<&'static str> {
    let bits = name.trim_start_matches(['i', 't']).strip_prefix('q')?;
    if !bits.contains('_') {
        return None;
    }
    match bits.chars().next()? {
        '1'..='3' => Some("small, the smallest one"),
        '4' => Some("q4"),
        '5' => Some("q5"),
        '6' => Some("q6"),
        '8' => Some("q8"),
        _ => None,
    }
}

/// Parses `REGEX=TYPE`.
pub fn parse_override(text: &str) -> Result<(Regex, DType), String> {
    // The regular expression may contain `=`, the type's name cannot.
    let (regex, name) = text.rsplit_once('=').ok_or("must be REGEX=TYPE, for example ffn_down=q8_0")?;
    let dtype = DType::from_name(&name.to_lowercase())
        .ok_or_else(|| format!("unknown type `{name}`; available: {}", DType::ALL.map(DType::name).join(", ")))?;
    let regex = Regex::new(regex).map_err(|e| {
        // The last line is the reason; the others point at the position.
        let details = e.to_string();
        format!("invalid regular expression `{regex}`: {}", details.lines().last().unwrap_or_default())
    })?;
    Ok((regex, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_ignore_case() {
        assert_eq!(parse("Q4_0"), Ok(Target::Type(DType::Q4_0)));
        assert_eq!(parse("Small"), Ok(Target::Recipe(Recipe::Small)));
        assert_eq!(parse_override("ffn_down=Q8_0").unwrap().1, DType::Q8_0);
    }

    #[test]
    fn llama_cpp_types_point_to_ours() {
        for (theirs, ours) in [
            ("q4_k_m", "use q4"),
            ("Q5_K_S", "use q5"),
            ("q6_k", "use q6"),
            ("iq3_xxs", "use small"),
            ("tq2_0", "use small"),
        ] {
            assert!(parse(theirs).unwrap_err().contains(ours), "{theirs}");
        }
        for unknown in ["q7", "int4", "", "q", "7_0"] {
            let message = parse(unknown).unwrap_err();
            assert!(message.starts_with("unknown type; available: q8, q6, q5, q4, small, f32"), "{message}");
        }
    }

    #[test]
    fn the_table_lists_all_types() {
        for name in Recipe::ALL.map(Recipe::name).into_iter().chain(DType::ALL.map(DType::name)) {
            assert!(Regex::new(&format!(r"\b{name}\b")).unwrap().is_match(TABLE), "{name}");
        }
    }
}
