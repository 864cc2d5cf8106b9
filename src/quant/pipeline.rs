//! Tensors from a checkpoint to a file, whatever their size: pieces of rows are read, converted and written, and never
//! more than a few of them are in memory.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use rayon::ThreadPool;

use super::{summary::Event, tensor_plan::TensorPlan};
use crate::{Error, Result, format::gguf::Writer};

/// Reads on a thread of its own, one or two pieces ahead; converts on the pool; writes in order.
pub(super) fn write_tensors(
    plans: &[TensorPlan],
    writer: &mut Writer,
    pool: &ThreadPool,
    progress: &mut dyn FnMut(Event),
    cancel: &AtomicBool,
) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel::<Result<(&TensorPlan, usize, Vec<u8>)>>(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            for (plan, rows) in plans.iter().flat_map(|plan| plan.pieces().map(move |rows| (plan, rows))) {
                let read = plan.read(rows.clone()).map(|bytes| (plan, rows.start, bytes));
                let failed = read.is_err();
                // The other side is gone if it has met an error or was cancelled.
                if sender.send(read).is_err() || failed {
                    return;
                }
            }
        });
        // Taken in here, so that the reader learns of an early return.
        let receiver = receiver;
        let mut out = Vec::new();
        for piece in &receiver {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let (plan, first_row, bytes) = piece?;
            pool.install(|| plan.convert(first_row, &bytes, &mut out))?;
            writer.write(&out)?;
            progress(Event::Converted { tensor: &plan.spec.name, bytes: bytes.len() as u64 });
        }
        Ok(())
    })
}
