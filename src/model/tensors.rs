//! The tensors of a Hymba file: names, shapes and roles, the single list for import, quantization and loading.

use super::config::{Activation, Config};

/// How a tensor is used, which determines the types that it can be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix used in products: stored in the chosen type.
    Matrix,
    /// A small table or a matrix too narrow for blocks (meta tokens, dt_proj): F16, or wider if requested.
    Half,
    /// Norm gains, biases, convolution, A, D: always F32.
    Exact,
}

/// A required or optional tensor.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its index in [`specs`].
    pub id: usize,
    /// Its layer, if any.
    pub layer: Option<usize>,
    /// Name in our GGUF.
    pub name: String,
    /// Name in the official checkpoint and Hugging Face folders.
    pub official: String,
    /// Rows and columns (a vector has one dimension).
    pub shape: Vec<usize>,
    /// Its role.
    pub role: Role,
    /// Whether it may be absent (biases, untied head).
    pub optional: bool,
}

/// Returns the tensors of a model of these sizes, in the order in which a forward pass reads them.
pub fn specs(c: &Config) -> Vec<Spec> {
    let mut all = Vec::new();
    let mut add = |layer: Option<usize>, name: &str, official: &str, shape: &[usize], role, optional| {
        let (name, official) = match layer {
            Some(layer) => (format!("blk.{layer}.{name}"), format!("model.layers.{layer}.{official}")),
            None => (name.to_owned(), official.to_owned()),
        };
        all.push(Spec { id: all.len(), layer, name, official, shape: shape.to_vec(), role, optional });
    };
    use Role::{Exact, Half, Matrix};

    add(None, "token_embd.weight", "model.embed_tokens.weight", &[c.vocab, c.hidden], Matrix, false);
    if c.meta_tokens > 0 {
        add(None, "meta_embd.weight", "model.memory_tokens", &[c.meta_tokens, c.hidden], Half, false);
    }
    for layer in 0..c.layers {
        let mut add = |name: &str, official: &str, shape: &[usize], role, optional| {
            add(Some(layer), name, official, shape, role, optional);
        };
        let in_rows = c.in_proj_rows(layer);
        add("attn_norm.weight", "input_layernorm.weight", &[c.hidden], Exact, false);
        add("in_proj.weight", "mamba.in_proj.weight", &[in_rows, c.hidden], Matrix, false);
        add("in_proj.bias", "mamba.in_proj.bias", &[in_rows], Exact, true);
        if c.qk_norm {
            add("attn_q_norm.weight", "mamba.self_attn.q_norm.weight", &[c.key_dim], Exact, false);
            add("attn_k_norm.weight", "mamba.self_attn.k_norm.weight", &[c.key_dim], Exact, !c.is_producer(layer));
        }
        add("ssm_conv1d.weight", "mamba.conv1d.weight", &[c.inner, c.conv_kernel], Exact, false);
        add("ssm_conv1d.bias", "mamba.conv1d.bias", &[c.inner], Exact, true);
        add("ssm_x.weight", "mamba.x_proj.0.weight", &[c.dt_rank + 2 * c.state, c.inner], Matrix, false);
        if c.dt_b_c_norm {
            add("ssm_dt_norm.weight", "mamba.dt_layernorm.weight", &[c.dt_rank], Exact, false);
            add("ssm_b_norm.weight", "mamba.B_layernorm.weight", &[c.state], Exact, false);
            add("ssm_c_norm.weight", "mamba.C_layernorm.weight", &[c.state], Exact, false);
        }
        add("ssm_dt.weight", "mamba.dt_proj.0.weight", &[c.inner, c.dt_rank], Half, false);
        add("ssm_dt.bias", "mamba.dt_proj.0.bias", &[c.inner], Exact, false);
        add("ssm_a", "mamba.A_log.0", &[c.inner, c.state], Exact, false);
        add("ssm_d", "mamba.D.0", &[c.inner], Exact, false);
        add("attn_out_norm.weight", "mamba.pre_avg_layernorm1.weight", &[c.inner], Exact, false);
        add("ssm_out_norm.weight", "mamba.pre_avg_layernorm2.weight", &[c.inner], Exact, false);
        add("out_proj.weight", "mamba.out_proj.weight", &[c.hidden, c.inner], Matrix, false);
        add("out_proj.bias", "mamba.out_proj.bias", &[c.hidden], Exact, true);
        if c.ffn > 0 {
            add("ffn_norm.weight", "pre_moe_layernorm.weight", &[c.hidden], Exact, false);
            if c.activation == Activation::Silu {
                add("ffn_gate.weight", "moe.experts.0.gate_proj.weight", &[c.ffn, c.hidden], Matrix, false);
            }
            add("ffn_up.weight", "moe.experts.0.up_proj.weight", &[c.ffn, c.hidden], Matrix, false);
            add("ffn_down.weight", "moe.experts.0.down_proj.weight", &[c.hidden, c.ffn], Matrix, false);
        }
    }
    add(None, "output_norm.weight", "model.final_layernorm.weight", &[c.hidden], Exact, false);
    add(None, "output.weight", "lm_head.weight", &[c.vocab, c.hidden], Matrix, true);
    all
}

/// Returns the tensors that hold the state after the meta tokens: F32, one set per layer.
pub fn meta_state_specs(c: &Config) -> Vec<(String, [usize; 2])> {
    let (k, v) = c.kv_widths();
    (0..c.layers)
        .flat_map(|layer| {
            let mut set = Vec::new();
            if c.is_producer(layer) {
                set.push((format!("meta_state.k.{layer}"), [c.meta_tokens, k]));
                set.push((format!("meta_state.v.{layer}"), [c.meta_tokens, v]));
            }
            set.push((format!("meta_state.conv.{layer}"), [c.inner, c.conv_kernel - 1]));
            set.push((format!("meta_state.ssm.{layer}"), [c.inner, c.state]));
            set
        })
        .collect()
}
