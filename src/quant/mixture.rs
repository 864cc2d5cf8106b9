//! Recipes: a type for each tensor, so that the whole file keeps to a size and the bits go where they are felt most.

use std::path::Path;

use regex::Regex;

use super::{checkpoint::Checkpoint, recipe};
use crate::{
    Result,
    format::DType,
    model::tensors::{Role, Spec},
};

/// A size of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// All matrices as Q8_0.
    Q8,
    /// At most 6.6 bits a weight.
    Q6,
    /// At most 5.6 bits a weight.
    Q5,
    /// At most 4.6 bits a weight.
    Q4,
    /// At most 4.5 bits a weight.
    Small,
}

impl Recipe {
    /// Every recipe, the largest first.
    pub const ALL: [Self; 5] = [Self::Q8, Self::Q6, Self::Q5, Self::Q4, Self::Small];

    /// The name users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q6 => "q6",
            Self::Q5 => "q5",
            Self::Q4 => "q4",
            Self::Small => "small",
        }
    }

    /// The recipe called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// Bits a weight at most, all tensors counted. A model whose matrices are few beside its other tensors may need more
    /// even if all of them take the smallest type.
    pub fn bits(self) -> f64 {
        match self {
            Self::Q8 => 9.0,
            Self::Q6 => 6.6,
            Self::Q5 => 5.6,
            Self::Q4 => 4.6,
            Self::Small => 4.5,
        }
    }

    /// The type that most weights take, or all where one type is asked for.
    pub fn main(self) -> DType {
        match self {
            Self::Q8 => DType::Q8_0,
            Self::Q6 => DType::Q5_1,
            Self::Q5 => DType::Q5_0,
            Self::Q4 => DType::Q4_0,
            Self::Small => DType::Mxfp4,
        }
    }
}

/// The types that matrices take, the smallest first, and the mean squared error of each relative to the mean square of the
/// weights, scales chosen well. A bit more gains less from each to the next. IQ4_NL, as large as Q4_0, has a lesser error,
/// but its perplexity is worse and its products are slower.
const LADDER: [(DType, f64); 4] =
    [(DType::Mxfp4, 0.0125), (DType::Q4_0, 0.0065), (DType::Q5_0, 0.0016), (DType::Q8_0, 0.000_03)];

/// How much such an error is felt: the divergence that it gives rise to, as measured on the demo model, for each weight, in
/// arbitrary units.
fn sensitivity(name: &str) -> f64 {
    let kind = name.trim_end_matches(".weight").rsplit('.').next().unwrap_or(name);
    let by_kind = match kind {
        "out_proj" => 9.3,
        "token_embd" | "output" => 7.0,
        "ssm_dt" => 4.6,
        "in_proj" => 3.7,
        "ffn_gate" => 2.5,
        _ => 2.1, // ffn_up, ffn_down, ssm_x
    };
    // All other layers go on with what the first one makes.
    if name.starts_with("blk.0.") { 2.0 * by_kind } else { by_kind }
}

/// A matrix that may take any type of the ladder.
struct Matrix<'a> {
    name: &'a str,
    weights: f64,
    /// Its place on the ladder.
    at: usize,
}

/// What `recipe` makes of the checkpoint `input`: the type of most matrices, and the exceptions as they are given to
/// [`convert`](super::convert()), `overrides` last. With `pure` there are no exceptions but those; then dt_proj takes the
/// type too, if its rows have whole blocks.
pub fn mixture(
    input: &Path,
    recipe: Recipe,
    pure: bool,
    overrides: &[(Regex, DType)],
) -> Result<(DType, Vec<(Regex, DType)>)> {
    let specs: Vec<Spec> = Checkpoint::open(input)?.tensors.into_iter().map(|(spec, _)| spec).collect();
    let types = if pure { pure_types(&specs, recipe.main()) } else { types(&specs, recipe, overrides) };
    let exact = |name: &str| Regex::new(&format!("^{}$", regex::escape(name)));
    let types = types.into_iter().filter_map(|(name, dtype)| Some((exact(name).ok()?, dtype)));
    Ok((recipe.main(), types.chain(overrides.iter().cloned()).collect()))
}

/// dt_proj, which else stays F16.
fn pure_types(specs: &[Spec], dtype: DType) -> Vec<(&str, DType)> {
    let fits =
        |s: &&Spec| s.name.ends_with("ssm_dt.weight") && s.shape.last().is_some_and(|&c| dtype.row_bytes(c).is_some());
    specs.iter().filter(fits).map(|s| (s.name.as_str(), dtype)).collect()
}

/// The type of every matrix that can have one of the ladder's, and is not among `overrides`.
fn types<'a>(specs: &'a [Spec], recipe: Recipe, overrides: &[(Regex, DType)]) -> Vec<(&'a str, DType)> {
    let mut matrices = Vec::new();
    let (mut bits, mut weights) = (0.0, 0.0);
    for spec in specs {
        let (n, cols) = (spec.shape.iter().product::<usize>() as f64, spec.shape.last().copied().unwrap_or(0));
        weights += n;
        let free = spec.role != Role::Exact && spec.name != "meta_embd.weight" && cols.is_multiple_of(32);
        if free && !overrides.iter().any(|(name, _)| name.is_match(&spec.name)) {
            bits += n * bits_of(LADDER[0].0);
            matrices.push(Matrix { name: &spec.name, weights: n, at: 0 });
        } else {
            bits += n * bits_of(recipe::choose(spec, recipe.main(), overrides).dtype);
        }
    }
    // Every step up the ladder, what gains most for each bit first. A step that finds no room leaves it to smaller ones.
    let slope = |at: usize| (LADDER[at].1 - LADDER[at + 1].1) / (bits_of(LADDER[at + 1].0) - bits_of(LADDER[at].0));
    let mut steps: Vec<(f64, usize, usize)> = matrices
        .iter()
        .enumerate()
        .flat_map(|(i, m)| (0..LADDER.len() - 1).map(move |at| (sensitivity(m.name) * slope(at), i, at)))
        .collect();
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, i, at) in steps {
        let matrix = &mut matrices[i];
        let more = matrix.weights * (bits_of(LADDER[at + 1].0) - bits_of(LADDER[at].0));
        if matrix.at == at && bits + more <= recipe.bits() * weights {
            matrix.at += 1;
            bits += more;
        }
    }
    matrices.into_iter().map(|m| (m.name, LADDER[m.at].0)).collect()
}

/// Bits that a weight takes.
fn bits_of(dtype: DType) -> f64 {
    8.0 * dtype.block_bytes() as f64 / dtype.block_len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(hidden: usize, dt_rank: usize, layers: usize) -> Vec<Spec> {
        let spec = |name: String, shape: [usize; 2], role| Spec {
            official: name.clone(),
            name,
            shape: shape.to_vec(),
            role,
            optional: false,
        };
        let mut all = vec![spec("token_embd.weight".into(), [1000, hidden], Role::Matrix)];
        for layer in 0..layers {
            let mut add = |name: &str, shape, role| all.push(spec(format!("blk.{layer}.{name}"), shape, role));
            add("in_proj.weight", [5 * hidden, hidden], Role::Matrix);
            add("ssm_dt.weight", [2 * hidden, dt_rank], Role::Half);
            add("ssm_a", [2 * hidden, 16], Role::Exact);
            add("out_proj.weight", [hidden, 2 * hidden], Role::Matrix);
            add("ffn_up.weight", [3 * hidden, hidden], Role::Matrix);
        }
        all
    }

    /// Bits a weight, with the types that `mixture` chose.
    fn size(specs: &[Spec], recipe: Recipe, types: &[(&str, DType)]) -> f64 {
        let overrides: Vec<_> = types
            .iter()
            .map(|(name, dtype)| (Regex::new(&format!("^{}$", regex::escape(name))).unwrap(), *dtype))
            .collect();
        let (mut bits, mut weights) = (0.0, 0.0);
        for spec in specs {
            let n = spec.shape.iter().product::<usize>() as f64;
            bits += n * bits_of(recipe::choose(spec, recipe.main(), &overrides).dtype);
            weights += n;
        }
        bits / weights
    }

    #[test]
    fn keeps_to_the_size_and_comes_near_it() {
        for specs in [specs(512, 32, 6), specs(1600, 100, 12)] {
            for recipe in Recipe::ALL {
                let types = types(&specs, recipe, &[]);
                let size = size(&specs, recipe, &types);
                assert!(size <= recipe.bits(), "{}: {size}", recipe.name());
                let top = types.iter().all(|&(_, dtype)| dtype == DType::Q8_0);
                assert!(top || size > recipe.bits() - 0.06, "{}: {size}", recipe.name());
            }
        }
    }

    #[test]
    fn bits_go_where_they_are_felt() {
        let specs = specs(512, 32, 6);
        let types = types(&specs, Recipe::Q6, &[]);
        let at = |name: &str| {
            let dtype = types.iter().find(|(n, _)| *n == name).unwrap().1;
            LADDER.iter().position(|&(d, _)| d == dtype).unwrap()
        };
        assert!(at("blk.3.out_proj.weight") >= at("blk.3.in_proj.weight"));
        assert!(at("blk.3.in_proj.weight") >= at("blk.3.ffn_up.weight"));
        assert!(at("blk.0.ffn_up.weight") >= at("blk.3.ffn_up.weight"));
        assert!(at("blk.3.out_proj.weight") > at("blk.3.ffn_up.weight"));
    }

    #[test]
    fn what_the_user_fixed_is_counted_and_left() {
        let specs = specs(512, 32, 6);
        let fixed = [(Regex::new("token_embd").unwrap(), DType::F16)];
        let types = types(&specs, Recipe::Q5, &fixed);
        assert!(types.iter().all(|(name, _)| *name != "token_embd.weight"));
        let with: Vec<_> = types.iter().copied().chain([("token_embd.weight", DType::F16)]).collect();
        assert!(size(&specs, Recipe::Q5, &with) <= 5.6);
    }
}
