//! The forward pass against the results of the official code for random checkpoints (`golden/README.md`): every case in
//! `tests/golden`, and in the folder that `HYMBA_GOLDEN_EXTRA` names.

#[path = "common/golden.rs"]
mod golden;

use golden::{NO_CANCEL, TOLERANCE, cases, check_prompts, close};

#[test]
fn prefill_and_decode_match_the_official_code() {
    for case in cases() {
        // with and without the stored meta state, in one chunk and in several
        check_prompts(&case, usize::MAX, |i| {
            let (chunk, stored) = [(1024, true), (7, false), (64, true)][i % 3];
            case.session(chunk, 1 + i % 3, stored)
        });
    }
}

#[test]
fn layer_outputs_match_the_official_code() {
    for case in cases() {
        let config = case.model.config();
        let ids = case.ids("trace.ids");
        let (hidden, inner) = (config.hidden, config.inner);
        let mut session = case.session(1024, 2, true);
        let mut seen = 0;
        session
            .prefill_observed(&ids, &NO_CANCEL, &mut |view| {
                let views = [
                    ("hidden", view.hidden, hidden),
                    ("attn_out", view.attention, inner),
                    ("mamba_out", view.mamba, inner),
                ];
                for (name, buffer, width) in views {
                    let name = format!("trace.layer{}.{name}", view.layer);
                    if case.tensors().tensor(&name).is_ok() {
                        let want = case.floats(&name);
                        let want = &want[config.meta_tokens * width..];
                        close(&format!("{}: {name}", case.name), &buffer.f32()[..want.len()], want, TOLERANCE);
                        seen += 1;
                    }
                }
                Ok(())
            })
            .unwrap();
        assert!(seen >= 6, "{}: only {seen} tensors in the trace", case.name);

        let ids = case.ids("trace_long.ids");
        let want = case.floats("trace_long.hidden_last");
        let mut session = case.session(1024, 2, true);
        session
            .prefill_observed(&ids, &NO_CANCEL, &mut |view| {
                let want = &want[view.layer * hidden..][..hidden];
                let got = &view.hidden.f32()[(ids.len() - 1) * hidden..][..hidden];
                close(&format!("{}: long prompt, layer {}", case.name, view.layer), got, want, TOLERANCE);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn logits_do_not_depend_on_threads_chunks_or_the_stored_meta_state() {
    for case in cases() {
        let vocab = case.model.config().vocab;
        let longest = (0..case.prompts()).map(|i| case.ids(&format!("p{i}.ids"))).max_by_key(Vec::len).unwrap();
        let ids = &longest[..longest.len().min(300)];
        let mut first: Option<Vec<f32>> = None;
        for chunk in [1024, 64, 13, 1] {
            for (threads, stored) in [(1, true), (2, true), (8, false), (3, true), (4, false)] {
                let mut session = case.session(chunk, threads, stored);
                let mut logits = case.prefill(&mut session, ids);
                for id in &ids[..ids.len().min(5)] {
                    logits.extend_from_slice(session.decode(*id).unwrap());
                }
                // the cleared session gives the same logits again
                session.clear().unwrap();
                assert_eq!(case.prefill(&mut session, ids), logits[..ids.len() * vocab]);
                let first = first.get_or_insert_with(|| logits.clone());
                assert!(*first == logits, "{}: chunks of {chunk}, {threads} threads, {stored}", case.name);
            }
        }
    }
}
