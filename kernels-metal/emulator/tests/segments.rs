//! Decode segments on Metal's shaders, run by the emulator: each token is bit-identical to a pass of its own.

#[path = "../../../tests/common/golden.rs"]
mod golden;
#[path = "../../../tests/common/runner.rs"]
mod runner;

use std::num::NonZeroUsize;

use golden::{Case, NO_CANCEL, options, root};
use hymba::{
    backend::{Cpu, Device, Metal},
    engine::{
        Session, Text,
        batch::{PassInput, Wanted},
    },
    format::{CacheType, DType},
    forward::{DECODE_TOKENS, Phase},
    quant::TypePlan,
};
use runner::unless_emulated;

/// A session on Metal's shaders, run by the emulator.
fn emulated(case: &Case, cache: CacheType) -> Session<'_> {
    let device = hymba_metal_emulator::device();
    let metal = Metal::new(device, case.model.weights().token_embd.data.entire(), case.model.config().state).unwrap();
    let machine = Device::new(Cpu::new(NonZeroUsize::MIN), Some(metal));
    Session::on(&case.model, &hymba::SessionOptions { cache, ..options(64, true) }, machine).unwrap()
}

/// Some models with various weight and cache types.
fn cases() -> Vec<(Case, CacheType)> {
    let all = [
        ("tiny-a", DType::Q4_0, true, CacheType::F16),
        ("tiny-a", DType::Q8_0, false, CacheType::F32),
        ("tiny-b", DType::Q5_1, true, CacheType::F16),
        ("tiny-c", DType::F32, false, CacheType::F16),
    ];
    let open = |&(name, dtype, packed, cache): &(&str, _, _, _)| {
        let folder = root().join("tests/golden").join(name);
        (Case::convert(&folder, &folder, TypePlan::Uniform(dtype), packed), cache)
    };
    all[..unless_emulated(all.len(), 1)].iter().map(open).collect()
}

#[test]
fn decode_segments_equal_single_steps_on_emulated_metal() {
    for (case, cache) in cases() {
        let ids = &ids(&case)[..];
        let (vocab, window) = (case.model.config().vocab, case.model.config().window.unwrap_or(8));
        let mut session = emulated(&case, cache);
        // before the window, and where it fills up within the segment
        for length in [1, window - 3] {
            session.clear().unwrap();
            session.prefill(&ids[..length], &NO_CANCEL).unwrap();
            let start = session.checkpoint(true).unwrap();
            let next = &ids[length..=length + DECODE_TOKENS];
            let want: Vec<Vec<f32>> = next.iter().map(|&id| session.decode(id).unwrap().to_vec()).collect();
            for (tokens, cuts) in [(5, [0, 5]), (DECODE_TOKENS, [2, 7])] {
                for accepted in cuts {
                    let what = format!("{}: {tokens} tokens after {length}, {accepted} accepted", case.name);
                    session.restore(&start);
                    let mut pass = session.verify(&next[..tokens], None).unwrap();
                    let rows = pass.logits(0).unwrap().chunks(vocab);
                    assert!(rows.zip(&want).all(|(got, want)| got == want), "{what}");
                    pass.commit(0, accepted);
                    drop(pass);
                    assert!(session.decode(next[accepted]).unwrap() == want[accepted], "after {what}");
                }
            }
        }
    }
}

/// Arbitrary tokens.
fn ids(case: &Case) -> Vec<u32> {
    (0..60).map(|i| (i * i + 7 * i + 3) % case.model.config().vocab as u32).collect()
}

fn read<'a>(text: &'a mut Text, ids: &'a [u32], phase: Phase) -> [PassInput<'a>; 1] {
    [PassInput { text, ids, phase, logits: Wanted::All, cancel: None }]
}

/// Several decode segments together with a prompt.
#[test]
fn logits_do_not_depend_on_other_texts_on_emulated_metal() {
    for (case, cache) in cases() {
        let ids = ids(&case);
        let mut session = emulated(&case, cache);
        let parts = [(3, 1, Phase::Decode), (12, 8, Phase::Decode), (5, 21, Phase::Prefill), (9, 3, Phase::Decode)];
        let mut wanted = Vec::new();
        let (batch, alone) = session.parts();
        let mut texts: Vec<_> = parts.iter().map(|_| batch.text(alone.context(), cache).unwrap()).collect();
        let last = &ids[40..41];
        for (text, (past, tokens, phase)) in texts.iter_mut().zip(parts) {
            batch.clear(alone).unwrap();
            for text in [&mut *alone, text] {
                batch.run(read(text, &ids[..past], Phase::Prefill)).unwrap().commit(0, past);
            }
            let mut pass = batch.run(read(alone, &ids[past..past + tokens], phase)).unwrap();
            let logits = pass.logits(0).unwrap().to_vec();
            pass.commit(0, tokens);
            drop(pass);
            let after = batch.run(read(alone, last, Phase::Decode)).unwrap().logits(0).unwrap().to_vec();
            wanted.push((logits, after));
        }
        let reads = texts.iter_mut().zip(parts).map(|(text, (past, tokens, phase))| PassInput {
            text,
            ids: &ids[past..past + tokens],
            phase,
            logits: Wanted::All,
            cancel: None,
        });
        let mut pass = batch.run(reads).unwrap();
        for (i, (_, tokens, _)) in parts.into_iter().enumerate() {
            assert!(pass.logits(i).unwrap() == wanted[i].0, "{}, text {i}", case.name);
            pass.commit(i, tokens);
        }
        drop(pass);
        for (i, text) in texts.iter_mut().enumerate() {
            let read = PassInput { text, ids: last, phase: Phase::Decode, logits: Wanted::Last, cancel: None };
            assert!(batch.run([read]).unwrap().logits(0).unwrap() == wanted[i].1, "{}, after text {i}", case.name);
        }
    }
}
