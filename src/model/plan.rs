//! The KV cache and state of each layer: producers, consumers and sizes.

use super::Config;
use crate::format::CacheType;

/// One layer's KV cache sharing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Whether it uses the sliding window.
    pub windowed: bool,
    /// The layer whose KV cache it uses: its own index in a producer.
    pub kv_source: usize,
    /// The other layers that use its KV cache; empty in consumers.
    pub readers: Vec<usize>,
}

/// All layers, with cache sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One entry per layer.
    pub layers: Vec<LayerPlan>,
    meta_tokens: usize,
    window: usize,
    /// Values of a key row and a value row together.
    kv_width: usize,
    /// Values of a layer's conv and SSM state.
    state_values: usize,
}

impl Plan {
    /// Returns the plan of a model with the validated sizes `c`.
    pub fn new(c: &Config) -> Self {
        let layers = (0..c.layers)
            .map(|layer| LayerPlan {
                windowed: c.windowed[layer],
                kv_source: c.kv_source[layer],
                readers: (layer + 1..c.layers).filter(|&reader| c.kv_source[reader] == layer).collect(),
            })
            .collect();
        let (k, v) = c.kv_widths();
        Self {
            layers,
            meta_tokens: c.meta_tokens,
            window: c.window.unwrap_or(0),
            kv_width: k + v,
            state_values: c.inner * (c.conv_kernel - 1 + c.state),
        }
    }

    /// Returns the producers.
    pub fn producers(&self) -> impl Iterator<Item = (usize, &LayerPlan)> {
        self.layers.iter().enumerate().filter(|(layer, plan)| plan.kv_source == *layer)
    }

    /// Returns the number of KV rows of a producer after `tokens` tokens of text: meta tokens plus text, in a windowed
    /// layer at most the window.
    pub fn kv_rows(&self, windowed: bool, tokens: usize) -> usize {
        self.meta_tokens + if windowed { tokens.min(self.window) } else { tokens }
    }

    /// Returns the bytes of KV rows of all windowed or all global producers after `tokens` tokens of text. Those of
    /// windowed producers stop growing once the window is full.
    pub fn kv_bytes(&self, windowed: bool, tokens: usize, kind: CacheType) -> u64 {
        let producers = self.producers().filter(|(_, plan)| plan.windowed == windowed).count();
        kind.size(producers * self.kv_rows(windowed, tokens) * self.kv_width) as u64
    }

    /// Returns the bytes of all conv and SSM states in F32, which do not depend on the length of the text.
    pub fn state_bytes(&self) -> u64 {
        (self.layers.len() * self.state_values * size_of::<f32>()) as u64
    }

    /// Returns the bytes of KV rows and states that a decode step reads after `tokens` tokens of text. Every consumer
    /// reads the rows of its producer again.
    pub fn read_bytes(&self, tokens: usize, kind: CacheType) -> u64 {
        let rows: usize = self.layers.iter().map(|layer| self.kv_rows(layer.windowed, tokens)).sum();
        kind.size(rows * self.kv_width) as u64 + self.state_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hymba_1_5b_has_the_cache_size_of_the_paper() {
        let config = Config::hymba_1_5b();
        assert_eq!(config.inconsistency(), None);
        let plan = Plan::new(&config);
        assert_eq!(plan.producers().count(), 17);
        assert_eq!(plan.layers[16].readers, [17, 18]);
        assert_eq!(plan.kv_bytes(true, 8192, CacheType::F16), 14 * 1152 * 1920);
        assert_eq!(plan.kv_bytes(false, 8192, CacheType::F16), 3 * 8320 * 1920);
        let all = |kind| plan.kv_bytes(true, 8192, kind) + plan.kv_bytes(false, 8192, kind);
        assert_eq!(all(CacheType::F16), 78_888_960); // "79 MB" in the paper
        assert_eq!(all(CacheType::Q8_0), 78_888_960 / 64 * 34);
        assert_eq!(plan.state_bytes(), 32 * (51_200 + 9_600) * 4);
    }

    #[test]
    fn windowed_caches_stop_growing_at_the_window() {
        let plan = Plan::new(&Config::hymba_1_5b());
        assert_eq!(plan.kv_rows(true, 0), 128);
        assert_eq!(plan.kv_rows(true, 1000), 1128);
        assert_eq!(plan.kv_bytes(true, 1024, CacheType::F16), plan.kv_bytes(true, 1_000_000, CacheType::F16));
        assert_eq!(plan.kv_rows(false, 1_000_000), 1_000_128);
    }
}
