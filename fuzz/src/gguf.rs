//! GGUF files: everything that `hymba inspect --tensors` reads.

use hymba::{
    format::{Blob, CacheType, gguf::Gguf},
    model::{Config, Weights, plan::Plan},
    sample::SamplingParams,
};

use super::model;

pub fn read(data: &[u8]) -> bool {
    let Ok(gguf) = Gguf::parse("model.gguf", Blob::from_vec(data.to_vec())) else { return false };
    for tensor in &gguf.tensors {
        let values: u64 = tensor.dims.iter().map(|&d| d as u64).product();
        assert!(values > 0 && tensor.data.len() <= data.len());
        assert_eq!(gguf.tensor(&tensor.name).map(|t| t.offset), Some(tensor.offset));
    }
    let params = SamplingParams::from_metadata(&gguf.metadata, &gguf.file);
    let Ok(config) = Config::from_metadata(&gguf.metadata, &gguf.file) else { return false };
    let plan = Plan::new(&config);
    for tokens in [0, 1024, 32768] {
        let kept: u64 = [true, false].map(|windowed| plan.kv_bytes(windowed, tokens, CacheType::F16)).iter().sum();
        assert!(plan.read_bytes(tokens, CacheType::F16) >= kept);
    }
    Weights::from_gguf(&gguf, &config).is_ok_and(|weights| weights.macs_per_token() > 0) && params.is_ok()
}

pub fn seeds() -> Vec<Vec<u8>> {
    [&[][..], &model::PACKED].map(|choices| model::bytes(&mut model::Source(choices), |_| ())).into()
}
