//! The forward pass on Metal's shaders, run by the emulator, against the results of the official code.

#[path = "../../../tests/common/golden.rs"]
mod golden;
#[path = "../../../tests/common/runner.rs"]
mod runner;

use std::{num::NonZeroUsize, path::Path};

use golden::{Case, TOLERANCE, check_prompts, close, options, root, small_cases_and};
use hymba::{
    backend::{Cpu, Device, Metal},
    engine::Session,
    format::DType,
    quant::{Recipe, TypePlan},
};
use runner::unless_emulated;

/// A session on Metal's shaders, run by the emulator.
fn emulated(case: &Case, chunk: usize, stored_meta_state: bool) -> Session<'_> {
    let device = hymba_metal_emulator::device();
    let metal = Metal::new(device, case.model.weights().token_embd.data.entire(), case.model.config().state).unwrap();
    let machine = Device::new(Cpu::new(NonZeroUsize::MIN), Some(metal));
    Session::on(&case.model, &options(chunk, stored_meta_state), machine).unwrap()
}

#[test]
fn prefill_and_decode_match_the_official_code_on_emulated_metal() {
    for case in &small_cases_and(None) {
        check_prompts(case, unless_emulated(usize::MAX, 1), |i| {
            let (chunk, stored) = [(1024, true), (9, false), (64, true)][i % 3];
            emulated(case, chunk, stored)
        });
    }
}

/// Metal's kernels do not round activations: quantized weights have the same results as their values in F32. `ids` are
/// processed as a prompt, then some of them one at a time.
fn check_on_emulated_metal(what: &str, folder: &Path, quantized: &Case) {
    let decoded = Case::convert(folder, &quantized.file(), TypePlan::Uniform(DType::F32), false);
    let ids = &quantized.ids("p6.ids")[..17];
    let (mut metal, mut cpu) = (emulated(quantized, 64, false), decoded.session(64, 1, false));
    let (mut got, mut want) = (quantized.prefill(&mut metal, ids), decoded.prefill(&mut cpu, ids));
    for id in &ids[..2] {
        got.extend_from_slice(metal.decode(*id).unwrap());
        want.extend_from_slice(cpu.decode(*id).unwrap());
    }
    close(what, &got, &want, TOLERANCE);
}

#[test]
fn quantized_weights_equal_decoded_weights_on_emulated_metal() {
    let folder = root().join("tests/golden/tiny-a");
    for &dtype in unless_emulated(&DType::ALL[..], &[DType::Q4_0]) {
        for packed in [true, false] {
            if dtype.is_quantized() || (dtype == DType::F16 && !packed) {
                let quantized = Case::convert(&folder, &folder, TypePlan::Uniform(dtype), packed);
                check_on_emulated_metal(&format!("{dtype}, packed {packed}"), &folder, &quantized);
            }
        }
    }
}

#[test]
fn recipes_equal_decoded_weights_on_emulated_metal() {
    let folder = root().join("tests/golden/tiny-b");
    for &recipe in &Recipe::ALL[..unless_emulated(Recipe::ALL.len(), 1)] {
        let mixed = Case::convert(&folder, &folder, TypePlan::Recipe { recipe, pure: false }, true);
        check_on_emulated_metal(recipe.name(), &folder, &mixed);
    }
}
