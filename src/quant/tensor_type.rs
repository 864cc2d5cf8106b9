//! The type of each tensor.

use regex::Regex;

use crate::{
    Error, Result,
    format::DType,
    model::tensors::{Role, Spec},
};

/// The type to store a tensor in.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) dtype: DType,
    /// The requested type, if its rows are not a multiple of that type's block.
    pub(super) requested: Option<DType>,
}

/// Chooses by role: matrices get `main`, tables a float type of similar precision, everything else F32. `exception`
/// replaces the first two.
pub(super) fn choose(spec: &Spec, main: DType, exception: Option<DType>) -> Choice {
    let fallback = match main {
        DType::F32 | DType::BF16 => main,
        _ => DType::F16,
    };
    let requested = match spec.role {
        Role::Exact => DType::F32,
        Role::Half => exception.unwrap_or(fallback),
        Role::Matrix => exception.unwrap_or(main),
    };
    let cols = spec.shape.last().copied().unwrap_or(0);
    match requested.row_bytes(cols) {
        Some(_) => Choice { dtype: requested, requested: None },
        None => Choice { dtype: fallback, requested: Some(requested) },
    }
}

/// Returns the type of the last override that matches the tensor's name.
pub(super) fn overridden(spec: &Spec, overrides: &[(Regex, DType)]) -> Option<DType> {
    overrides.iter().rev().find(|(name, _)| name.is_match(&spec.name)).map(|&(_, dtype)| dtype)
}

/// Rejects an override without effect, which is probably misspelled.
pub(super) fn check(specs: &[Spec], overrides: &[(Regex, DType)]) -> Result<()> {
    for (name, dtype) in overrides {
        if !specs.iter().any(|s| s.role != Role::Exact && name.is_match(&s.name)) {
            return Err(Error::NoSuchTensor { pattern: name.to_string(), dtype: dtype.name() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, cols: usize, role: Role) -> Spec {
        let shape = vec![4, cols];
        Spec { id: 0, layer: None, name: name.into(), official: name.into(), shape, role, optional: false }
    }

    #[test]
    fn roles_decide_and_the_last_override_wins() {
        let kept = |dtype| Choice { dtype, requested: None };
        let (matrix, half) = (spec("blk.0.ffn_up.weight", 64, Role::Matrix), spec("meta_embd.weight", 64, Role::Half));
        let exact = spec("blk.0.ssm_d", 64, Role::Exact);
        for (dtype, table) in [
            (DType::F32, DType::F32),
            (DType::BF16, DType::BF16),
            (DType::F16, DType::F16),
            (DType::Q8_0, DType::F16),
            (DType::Q4_0, DType::F16),
        ] {
            assert_eq!(choose(&matrix, dtype, None), kept(dtype));
            assert_eq!(choose(&half, dtype, None), kept(table));
            assert_eq!(choose(&exact, dtype, None), kept(DType::F32));
        }
        let overrides = [(Regex::new("weight").unwrap(), DType::Q8_0), (Regex::new("ffn_up").unwrap(), DType::BF16)];
        let choice = |spec| choose(spec, DType::Q4_0, overridden(spec, &overrides));
        assert_eq!(choice(&matrix), kept(DType::BF16));
        assert_eq!(choice(&half), kept(DType::Q8_0));
        assert_eq!(overridden(&exact, &overrides), None);
        assert_eq!(choose(&exact, DType::Q4_0, Some(DType::F16)), kept(DType::F32));
    }

    #[test]
    fn rows_without_whole_blocks_stay_f16() {
        let narrow = spec("blk.0.ssm_dt.weight", 100, Role::Matrix);
        assert_eq!(choose(&narrow, DType::Q8_0, None), Choice { dtype: DType::F16, requested: Some(DType::Q8_0) });
    }

    #[test]
    fn overrides_without_effect_are_rejected() {
        let specs = [spec("blk.0.ssm_d", 64, Role::Exact), spec("token_embd.weight", 64, Role::Matrix)];
        let check = |regex: &str| check(&specs, &[(Regex::new(regex).unwrap(), DType::F16)]);
        assert!(check("embd").is_ok());
        assert!(check("ssm_d").is_err());
        assert!(check("ffn").is_err());
    }
}
