//! Recipes: mixed precision within a file size, with more bits for more sensitive tensors.

use super::tensor_type::choose;
use crate::{
    format::DType,
    model::tensors::{Role, Spec},
};

/// A target file size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// All matrices as Q8_0.
    Q8,
    /// At most 6.6 bits per weight.
    Q6,
    /// At most 5.6 bits per weight.
    Q5,
    /// At most 4.6 bits per weight.
    Q4,
    /// At most 4.5 bits per weight.
    Small,
}

impl Recipe {
    /// All recipes, largest first.
    pub const ALL: [Self; 5] = [Self::Q8, Self::Q6, Self::Q5, Self::Q4, Self::Small];

    /// Returns the name, bits per weight and main type.
    const fn facts(self) -> (&'static str, f64, DType) {
        match self {
            Self::Q8 => ("q8", 9.0, DType::Q8_0),
            Self::Q6 => ("q6", 6.6, DType::Q5_1),
            Self::Q5 => ("q5", 5.6, DType::Q5_0),
            Self::Q4 => ("q4", 4.6, DType::Q4_0),
            Self::Small => ("small", 4.5, DType::Mxfp4),
        }
    }

    /// Returns the name users type.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// Returns the recipe called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// Returns the maximum bits per weight over all tensors. A model with relatively few matrix weights may exceed it
    /// even if all matrices have the smallest type.
    pub fn bits(self) -> f64 {
        self.facts().1
    }

    /// Returns the type of most matrices, and of all of them without mixed precision.
    pub fn main(self) -> DType {
        self.facts().2
    }
}

/// The matrix types, smallest first, with their mean squared error relative to the mean square of the weights, with
/// searched scales. The gain per bit decreases along the ladder. IQ4_NL, of the same size as Q4_0, has a smaller error,
/// but a worse perplexity and slower products.
const LADDER: [(DType, f64); 4] =
    [(DType::Mxfp4, 0.0125), (DType::Q4_0, 0.0065), (DType::Q5_0, 0.0016), (DType::Q8_0, 0.000_03)];

/// Sensitivity to such errors: the resulting divergence per weight, measured on the demo model, in arbitrary units.
fn sensitivity(spec: &Spec) -> f64 {
    let kind = spec.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
    let by_kind = match kind {
        "out_proj" => 9.3,
        "token_embd" | "output" => 7.0,
        "ssm_dt" => 4.6,
        "in_proj" => 3.7,
        "ffn_gate" => 2.5,
        _ => 2.1, // ffn_up, ffn_down, ssm_x
    };
    // All other layers depend on the first one's output.
    if spec.layer == Some(0) { 2.0 * by_kind } else { by_kind }
}

/// A matrix that may take any type of the ladder.
struct Matrix {
    /// Its index among the tensors.
    index: usize,
    weights: f64,
    sensitivity: f64,
    /// Its index on the ladder.
    at: usize,
}

impl Recipe {
    /// Fills in `exceptions`, the types of `specs` that differ from the default; given ones are the user's and are
    /// kept.
    pub(super) fn mix(self, specs: &[Spec], exceptions: &mut [Option<DType>]) {
        let mut matrices = Vec::new();
        let (mut bits, mut weights) = (0.0, 0.0);
        for (index, (spec, exception)) in specs.iter().zip(&*exceptions).enumerate() {
            let (n, cols) = (spec.shape.iter().product::<usize>() as f64, spec.shape.last().copied().unwrap_or(0));
            weights += n;
            let free = spec.role != Role::Exact && spec.name != "meta_embd.weight" && cols.is_multiple_of(32);
            if free && exception.is_none() {
                bits += n * bits_of(LADDER[0].0);
                matrices.push(Matrix { index, weights: n, sensitivity: sensitivity(spec), at: 0 });
            } else {
                bits += n * bits_of(choose(spec, self.main(), *exception).dtype);
            }
        }
        // Try steps up the ladder in order of gain per bit. If a step does not fit, smaller ones may.
        let slope = |at: usize| (LADDER[at].1 - LADDER[at + 1].1) / (bits_of(LADDER[at + 1].0) - bits_of(LADDER[at].0));
        let mut steps: Vec<(f64, usize, usize)> = matrices
            .iter()
            .enumerate()
            .flat_map(|(i, m)| (0..LADDER.len() - 1).map(move |at| (m.sensitivity * slope(at), i, at)))
            .collect();
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, i, at) in steps {
            let matrix = &mut matrices[i];
            let more = matrix.weights * (bits_of(LADDER[at + 1].0) - bits_of(LADDER[at].0));
            if matrix.at == at && bits + more <= self.bits() * weights {
                matrix.at += 1;
                bits += more;
            }
        }
        matrices.iter().for_each(|m| exceptions[m.index] = Some(LADDER[m.at].0));
    }

    /// Fills in `exceptions` without mixed precision: dt_proj, which is F16 by default, also gets the main type if its
    /// rows consist of whole blocks.
    pub(super) fn pure(self, specs: &[Spec], exceptions: &mut [Option<DType>]) {
        let dtype = self.main();
        let fits = |spec: &Spec| spec.shape.last().is_some_and(|&cols| dtype.row_bytes(cols).is_some());
        for (spec, exception) in specs.iter().zip(exceptions) {
            if spec.name.ends_with("ssm_dt.weight") && fits(spec) {
                exception.get_or_insert(dtype);
            }
        }
    }
}

/// Returns the bits per weight of a type.
fn bits_of(dtype: DType) -> f64 {
    8.0 * dtype.block_bytes() as f64 / dtype.block_len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(hidden: usize, dt_rank: usize, layers: usize) -> Vec<Spec> {
        let mut all = Vec::new();
        let mut add = |layer: Option<usize>, name: &str, shape: [usize; 2], role| {
            let name = layer.map_or(name.to_owned(), |layer| format!("blk.{layer}.{name}"));
            let official = name.clone();
            all.push(Spec { id: all.len(), layer, name, official, shape: shape.to_vec(), role, optional: false });
        };
        add(None, "token_embd.weight", [1000, hidden], Role::Matrix);
        for layer in (0..layers).map(Some) {
            add(layer, "in_proj.weight", [5 * hidden, hidden], Role::Matrix);
            add(layer, "ssm_dt.weight", [2 * hidden, dt_rank], Role::Half);
            add(layer, "ssm_a", [2 * hidden, 16], Role::Exact);
            add(layer, "out_proj.weight", [hidden, 2 * hidden], Role::Matrix);
            add(layer, "ffn_up.weight", [3 * hidden, hidden], Role::Matrix);
        }
        all
    }

    fn mixed(specs: &[Spec], recipe: Recipe, fixed: impl Fn(&Spec) -> Option<DType>) -> Vec<Option<DType>> {
        let mut exceptions: Vec<_> = specs.iter().map(fixed).collect();
        recipe.mix(specs, &mut exceptions);
        exceptions
    }

    /// Returns the bits per weight.
    fn size(specs: &[Spec], recipe: Recipe, exceptions: &[Option<DType>]) -> f64 {
        let (mut bits, mut weights) = (0.0, 0.0);
        for (spec, exception) in specs.iter().zip(exceptions) {
            let n = spec.shape.iter().product::<usize>() as f64;
            bits += n * bits_of(choose(spec, recipe.main(), *exception).dtype);
            weights += n;
        }
        bits / weights
    }

    #[test]
    fn sizes_are_within_and_close_to_the_target() {
        for specs in [specs(512, 32, 6), specs(1600, 100, 12)] {
            for recipe in Recipe::ALL {
                let types = mixed(&specs, recipe, |_| None);
                let size = size(&specs, recipe, &types);
                assert!(size <= recipe.bits(), "{}: {size}", recipe.name());
                let top = types.iter().flatten().all(|&dtype| dtype == DType::Q8_0);
                assert!(top || size > recipe.bits() - 0.06, "{}: {size}", recipe.name());
            }
        }
    }

    #[test]
    fn sensitive_tensors_get_more_bits() {
        let specs = specs(512, 32, 6);
        let types = mixed(&specs, Recipe::Q6, |_| None);
        let at = |name: &str| {
            let index = specs.iter().position(|s| s.name == name).unwrap();
            LADDER.iter().position(|&(dtype, _)| Some(dtype) == types[index]).unwrap()
        };
        assert!(at("blk.3.out_proj.weight") >= at("blk.3.in_proj.weight"));
        assert!(at("blk.3.in_proj.weight") >= at("blk.3.ffn_up.weight"));
        assert!(at("blk.0.ffn_up.weight") >= at("blk.3.ffn_up.weight"));
        assert!(at("blk.3.out_proj.weight") > at("blk.3.ffn_up.weight"));
    }

    #[test]
    fn user_overrides_are_counted_and_kept() {
        let specs = specs(512, 32, 6);
        let types = mixed(&specs, Recipe::Q5, |s| (s.name == "token_embd.weight").then_some(DType::F16));
        assert_eq!(types[0], Some(DType::F16));
        assert!(size(&specs, Recipe::Q5, &types) <= 5.6);
    }

    #[test]
    fn pure_changes_only_the_dt_projection() {
        let specs = specs(512, 32, 2);
        let mut types = vec![None; specs.len()];
        types[2] = Some(DType::F32); // blk.0.ssm_dt.weight
        Recipe::Q4.pure(&specs, &mut types);
        let set: Vec<_> = specs.iter().zip(types).filter_map(|(s, dtype)| Some((s.name.as_str(), dtype?))).collect();
        assert_eq!(set, [("blk.0.ssm_dt.weight", DType::F32), ("blk.1.ssm_dt.weight", DType::Q4_0)]);
    }
}
