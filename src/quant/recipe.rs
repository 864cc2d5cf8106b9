//! Which tensor gets which type.

use regex::Regex;

use crate::{
    Error, Result,
    format::DType,
    model::tensors::{Role, Spec},
};

/// The type to store a tensor in, and the type that was wished for where its rows are no multiple of the block.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) dtype: DType,
    pub(super) wished: Option<DType>,
}

/// Chooses by role: matrices take `dtype`, tables a float type near it, all else stays F32. `overrides` change the first
/// two by name; the last one that matches wins.
pub(super) fn choose(spec: &Spec, dtype: DType, overrides: &[(Regex, DType)]) -> Choice {
    let fallback = match dtype {
        DType::F32 | DType::BF16 => dtype,
        _ => DType::F16,
    };
    let overridden = overrides.iter().rev().find(|(name, _)| name.is_match(&spec.name)).map(|&(_, dtype)| dtype);
    let wished = match spec.role {
        Role::Exact => DType::F32,
        Role::Half => overridden.unwrap_or(fallback),
        Role::Matrix => overridden.unwrap_or(dtype),
    };
    let cols = spec.shape.last().copied().unwrap_or(0);
    match wished.row_bytes(cols) {
        Some(_) => Choice { dtype: wished, wished: None },
        None => Choice { dtype: fallback, wished: Some(wished) },
    }
}

/// Refuses an override that no tensor heeds: it is a typing error.
pub(super) fn check<'a>(specs: impl Iterator<Item = &'a Spec> + Clone, overrides: &[(Regex, DType)]) -> Result<()> {
    for (name, dtype) in overrides {
        if !specs.clone().any(|s| s.role != Role::Exact && name.is_match(&s.name)) {
            return Err(Error::NoSuchTensor { pattern: name.to_string(), dtype: dtype.name() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, cols: usize, role: Role) -> Spec {
        Spec { name: name.into(), official: name.into(), shape: vec![4, cols], role, optional: false }
    }

    #[test]
    fn roles_decide_and_the_last_override_wins() {
        let kept = |dtype| Choice { dtype, wished: None };
        let (matrix, half) = (spec("blk.0.ffn_up.weight", 64, Role::Matrix), spec("meta_embd.weight", 64, Role::Half));
        let exact = spec("blk.0.ssm_d", 64, Role::Exact);
        for (dtype, table) in [
            (DType::F32, DType::F32),
            (DType::BF16, DType::BF16),
            (DType::F16, DType::F16),
            (DType::Q8_0, DType::F16),
            (DType::Q4_0, DType::F16),
        ] {
            assert_eq!(choose(&matrix, dtype, &[]), kept(dtype));
            assert_eq!(choose(&half, dtype, &[]), kept(table));
            assert_eq!(choose(&exact, dtype, &[]), kept(DType::F32));
        }
        let overrides = [(Regex::new("weight").unwrap(), DType::Q8_0), (Regex::new("ffn_up").unwrap(), DType::BF16)];
        assert_eq!(choose(&matrix, DType::Q4_0, &overrides), kept(DType::BF16));
        assert_eq!(choose(&half, DType::Q4_0, &overrides), kept(DType::Q8_0));
        assert_eq!(choose(&exact, DType::Q4_0, &[(Regex::new(".").unwrap(), DType::F16)]), kept(DType::F32));
    }

    #[test]
    fn rows_that_do_not_fit_stay_half() {
        let narrow = spec("blk.0.ssm_dt.weight", 100, Role::Matrix);
        assert_eq!(choose(&narrow, DType::Q8_0, &[]), Choice { dtype: DType::F16, wished: Some(DType::Q8_0) });
    }

    #[test]
    fn an_override_that_nothing_heeds_is_refused() {
        let specs = [spec("blk.0.ssm_d", 64, Role::Exact), spec("token_embd.weight", 64, Role::Matrix)];
        let check = |regex: &str| check(specs.iter(), &[(Regex::new(regex).unwrap(), DType::F16)]);
        assert!(check("embd").is_ok());
        assert!(check("ssm_d").is_err());
        assert!(check("ffn").is_err());
    }
}
