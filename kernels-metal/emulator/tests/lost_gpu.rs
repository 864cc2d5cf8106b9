//! The loss of a GPU while a text is processed.

#[path = "../../../tests/common/golden.rs"]
mod golden;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use golden::{Case, NO_CANCEL, root};
use hymba::{
    Error,
    backend::{Cpu, Device, DeviceChoice, Metal},
    engine::{
        Model, Session, SessionOptions, Timeline,
        generate::TokenModel,
        timeline::{Step, Watch, decoded, passes, prefilled},
    },
    format::CacheType,
    forward::Phase,
};
use hymba_kernels_metal::{Buffer, DeviceError, Dispatch};

/// The emulated GPU, which fails on request.
struct Failing {
    inner: Box<dyn hymba_kernels_metal::Device>,
    fails: Arc<AtomicBool>,
}

impl hymba_kernels_metal::Device for Failing {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn page(&self) -> usize {
        self.inner.page()
    }

    fn longest_buffer(&self) -> usize {
        self.inner.longest_buffer()
    }

    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.inner.wrap(bytes, len) }
    }

    fn dispatch(&mut self, dispatch: &Dispatch<'_>) {
        self.inner.dispatch(dispatch);
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        self.inner.finish()?;
        if self.fails.swap(false, Relaxed) { Err(DeviceError::Failed("it was taken away".into())) } else { Ok(()) }
    }
}

fn watch(cancel: &AtomicBool) -> Watch<'_> {
    Watch { cancel, progress: &|_, _| () }
}

/// Returns the logits after `steps` in a new session.
fn replayed(model: &Model, steps: &[Step]) -> Vec<f32> {
    let options = SessionOptions { context: Some(64), cache: CacheType::F32, ..SessionOptions::default() };
    let mut session = Session::new(model, &options).unwrap();
    let mut logits = Vec::new();
    for pass in passes(steps) {
        let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
        logits = match pass[0].phase {
            Phase::Prefill => session.prefill(&ids, &NO_CANCEL).unwrap().to_vec(),
            Phase::Decode => session.decode(ids[0]).unwrap().to_vec(),
        };
    }
    logits
}

/// After the GPU is lost, the CPU reprocesses everything and continues, also on other branches, unless the GPU was
/// requested explicitly.
#[test]
fn a_lost_gpu_falls_back_to_the_cpu() {
    let case = Case::open(&root().join("tests/golden/tiny-a"));
    let model = &case.model;
    let steps: Vec<Step> = prefilled(&[3, 14, 15, 92, 65, 35]).chain([89, 79, 32].map(decoded)).collect();
    let (begin, rest) = steps.split_at(7);
    let other: Vec<Step> = prefilled(&[3, 1, 4, 1, 5]).collect();
    for choice in [DeviceChoice::Auto, DeviceChoice::Metal] {
        let fails = Arc::new(AtomicBool::new(false));
        let device = Box::new(Failing { inner: hymba_metal_emulator::device(), fails: fails.clone() });
        let metal = Metal::new(device, model.weights().token_embd.data.entire(), model.config().state).unwrap();
        let options =
            SessionOptions { context: Some(64), cache: CacheType::F32, device: choice, ..SessionOptions::default() };
        let gpu = Device::new(Cpu::new(NonZeroUsize::MIN), Some(metal));
        let mut timeline = Timeline::new(Session::on(model, &options, gpu).unwrap(), usize::MAX);
        timeline.seek(&other, &watch(&NO_CANCEL)).unwrap();
        timeline.stash("other").unwrap();
        timeline.seek(begin, &watch(&NO_CANCEL)).unwrap();
        timeline.checkpoint().unwrap();
        assert!(timeline.session().gpu().is_some() && timeline.fallback_reason().is_none());

        fails.store(true, Relaxed);
        if choice == DeviceChoice::Metal {
            assert!(matches!(timeline.decode(rest[0].id), Err(Error::Gpu(what)) if what.contains("taken away")));
            assert!(timeline.steps().is_empty() && timeline.fallback_reason().is_none());
            assert!(matches!(timeline.seek(&steps, &watch(&NO_CANCEL)), Err(Error::Gpu(_)))); // it stays lost
            continue;
        }
        rest.iter().for_each(|step| drop(timeline.decode(step.id).unwrap().to_vec()));
        assert!(timeline.fallback_reason().is_some_and(|why| why.to_string().contains("taken away")));
        assert!(timeline.fallback_reason().is_none() && timeline.session().gpu().is_none());
        assert_eq!(timeline.steps(), steps);
        assert_eq!(timeline.logits(), replayed(model, &steps));
        for branch in [begin, &other] {
            timeline.unstash("other");
            timeline.seek(branch, &watch(&NO_CANCEL)).unwrap();
            assert_eq!(timeline.logits(), replayed(model, branch));
        }
    }
}
