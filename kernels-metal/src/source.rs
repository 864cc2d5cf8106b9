//! The source of the shaders.

/// All shaders as one source; `common.metal` comes first.
pub const SOURCE: &str = concat!(
    include_str!("../shaders/common.metal"),
    include_str!("../shaders/weights.metal"),
    include_str!("../shaders/matvec.metal"),
    include_str!("../shaders/matmul.metal"),
    include_str!("../shaders/norms.metal"),
    include_str!("../shaders/elementwise.metal"),
    include_str!("../shaders/ssm.metal"),
    include_str!("../shaders/attention.metal"),
);
