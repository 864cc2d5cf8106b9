//! Converts a checkpoint to a GGUF file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::Instant,
};

use rayon::ThreadPool;

use super::{
    calibrate::{Calibrator, Moments, Sample},
    checkpoint::Checkpoint,
    meta_state,
    options::{Calibration, Options, Rounding},
    rounding::Searcher,
    summary::{Event, Summary, size_label},
    tensor_plan::TensorPlan,
    tensor_type,
};
use crate::{
    Error, Result,
    format::{
        DType, Stored, check_output,
        gguf::{Layout, Metadata, Writer},
        packed::Packing,
    },
    import::checkpoint_folder,
    model::{Config, tensors::Spec},
    threads,
};

/// Converts the checkpoint `input`, a Hugging Face folder or a GGUF file of a Hymba model, to the GGUF file `output`.
///
/// After the weights, the state after the meta tokens is computed from them and stored too.
///
/// `output` appears only after success; an error or `cancel` leaves nothing.
pub fn convert(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Event),
    cancel: &AtomicBool,
) -> Result<Summary> {
    let start = Instant::now();
    let input = &checkpoint_folder(input);
    check_paths(input, output, options)?;
    let Checkpoint { config, mut metadata, tensors, notes, a_is_log } = Checkpoint::open(input)?;
    options.metadata.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    if let Some(name) = &options.name {
        metadata.set("general.name", name.as_str());
    }
    let chats = metadata.get("tokenizer.chat_template").is_some();
    let mut summary = Summary { notes, chats, ..Summary::default() };
    let inputs: Vec<Stored> = tensors.iter().map(|(_, stored)| stored.clone()).collect();
    let mut plans = plan(tensors, a_is_log, options, &mut summary)?;
    let layout = layout(&config, metadata.clone(), &plans, options.types.main())?;
    summary.count(&layout, plans.len());
    progress(Event::Opened { parameters: summary.parameters });

    let file = input.display().to_string();
    let pool = threads::pool(options.threads).ok_or_else(|| Error::Request(NO_THREAD.into()))?;
    let mut writer = Writer::create(output, layout, options.force)?;
    let conversion = Conversion { file, config, metadata, options, pool, cancel };
    conversion.write_weights(&mut plans, &mut writer, progress)?;
    conversion.write_meta_state(&mut writer, progress)?;
    // Otherwise the data could be a mix of two versions of the checkpoint.
    inputs.iter().try_for_each(Stored::check_source)?;
    Error::check_cancelled(cancel)?;
    writer.finish()?;
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// Rejects outputs early that cannot be written, or that are the same file as the input or each other.
fn check_paths(input: &Path, output: &Path, options: &Options) -> Result<()> {
    // An input folder may also contain the results of earlier conversions.
    let is_read = |path: &PathBuf| path.extension().is_none_or(|extension| extension != "gguf");
    let mut read: Vec<PathBuf> = match fs::read_dir(input) {
        Ok(files) => files.flatten().map(|file| file.path()).filter(is_read).collect(),
        Err(_) => vec![input.into()],
    };
    read.extend(options.calibration.as_ref().map(|calibration| match calibration {
        Calibration::Text(sample) => PathBuf::from(&sample.name),
        Calibration::File(path) => path.clone(),
    }));
    let read: Vec<PathBuf> = read.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let mut written = Vec::new();
    for path in [Some(output), options.save_moments.as_deref()].into_iter().flatten() {
        let refuse = |problem| Err(Error::Request(format!("{} is {problem}; name another output", path.display())));
        if path.canonicalize().is_ok_and(|file| read.contains(&file)) {
            return refuse("both input and output");
        }
        let file = check_output(path, options.force)?;
        let folder = file.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let file = folder.join(file.file_name().unwrap_or_default());
        if written.contains(&file) {
            return refuse("named for two outputs");
        }
        written.push(file);
    }
    Ok(())
}

/// Plans the conversion of each tensor.
fn plan(
    tensors: Vec<(Spec, Stored)>,
    a_is_log: bool,
    options: &Options,
    summary: &mut Summary,
) -> Result<Vec<TensorPlan>> {
    let (specs, inputs): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    tensor_type::check(&specs, &options.overrides)?;
    let choices = options.types.choose(&specs, &options.overrides);
    let mut requantized = 0;
    let mut plans = Vec::with_capacity(specs.len());
    for ((spec, input), tensor_type::Choice { dtype, requested }) in specs.into_iter().zip(inputs).zip(choices) {
        if let Some(requested) = requested {
            summary.fallbacks.push((spec.name.clone(), requested, dtype));
        }
        requantized += usize::from(input.dtype.is_quantized() && input.dtype != dtype);
        let packing = if options.packed { Packing::fastest(dtype) } else { Packing::Plain };
        let search = !matches!(options.rounding, Rounding::Nearest) && dtype.is_quantized();
        let searcher = search.then(|| Arc::new(Searcher::new(dtype)));
        let a_is_log = a_is_log && spec.name.ends_with(".ssm_a");
        plans.push(TensorPlan { spec, input, dtype, packing, a_is_log, searcher, importance: None });
    }
    if requantized > 0 {
        summary.notes.push(format!(
            "requantized {requantized} already quantized tensors; use the original checkpoint for best quality"
        ));
    }
    Ok(plans)
}

/// Computes the layout of the output: the tensors of `plans`, most of whose matrices have the type `main`, and the
/// state after the meta tokens.
fn layout(config: &Config, mut metadata: Metadata, plans: &[TensorPlan], main: DType) -> Result<Layout> {
    let parameters = plans.iter().map(|plan| plan.spec.shape.iter().product::<usize>() as u64).sum();
    metadata.set("general.size_label", size_label(parameters));
    metadata.set("general.file_type", main.file_type());
    metadata.set("general.quantization_version", 2u32);
    let weights = plans.iter().map(|p| (p.spec.name.clone(), p.spec.shape.clone(), p.dtype, p.packing));
    let tensors = weights.chain(meta_state::reserve(config, &mut metadata)).collect();
    Layout::new(metadata, tensors)
}

/// The common inputs of the steps that write.
struct Conversion<'a> {
    /// The checkpoint's name, for messages.
    file: String,
    config: Config,
    metadata: Metadata,
    options: &'a Options,
    pool: ThreadPool,
    cancel: &'a AtomicBool,
}

impl Conversion<'_> {
    fn write_weights(
        &self,
        plans: &mut [TensorPlan],
        writer: &mut Writer,
        progress: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let Self { options, pool, cancel, .. } = self;
        if let (Rounding::Gptq(gptq), Some(Calibration::Text(sample))) = (&options.rounding, &options.calibration) {
            let write = &mut |plans: &[TensorPlan]| write_tensors(plans, writer, pool, &mut |_| (), cancel);
            return self.calibrator(sample).compensate(plans, gptq, progress, write);
        }
        if let Some(moments) = self.moments(plans, progress)? {
            plans.iter_mut().for_each(|plan| plan.importance = moments.importance(&plan.spec));
            if let Some(path) = &options.save_moments {
                moments.save(path, options.force)?;
            }
        }
        progress(Event::Begin { bytes: plans.iter().map(TensorPlan::input_bytes).sum() });
        write_tensors(plans, writer, pool, progress, cancel)
    }

    /// Measures the second moments of the matrices' inputs, or loads them.
    fn moments(&self, plans: &[TensorPlan], progress: &mut dyn FnMut(Event)) -> Result<Option<Moments>> {
        match &self.options.calibration {
            None => Ok(None),
            Some(Calibration::File(path)) => {
                Moments::load(path, &plans.iter().map(|plan| &plan.spec).collect::<Vec<_>>()).map(Some)
            }
            Some(Calibration::Text(sample)) => self.calibrator(sample).moments(plans, progress).map(Some),
        }
    }

    fn calibrator<'a>(&'a self, sample: &'a Sample) -> Calibrator<'a> {
        let Self { file, config, metadata, pool, cancel, .. } = self;
        Calibrator { config, metadata, file, sample, pool, cancel }
    }

    fn write_meta_state(&self, writer: &mut Writer, progress: &mut dyn FnMut(Event)) -> Result<()> {
        if self.config.meta_tokens == 0 {
            return Ok(());
        }
        progress(Event::MetaState);
        meta_state::write(writer, &self.config, self.options.threads, self.cancel).map_err(|e| match e {
            Error::NotFinite(_) => Error::format(&self.file, e.to_string()),
            e => e,
        })
    }
}

/// Returns the error for a system that allows no threads, which a conversion needs.
const NO_THREAD: &str = "cannot start threads: a conversion needs two more than the system allows";

/// Streams tensors of any size with few pieces of rows in memory: a reader thread works one or two pieces ahead, the
/// pool converts, and the pieces are written in order.
fn write_tensors(
    plans: &[TensorPlan],
    writer: &mut Writer,
    pool: &ThreadPool,
    progress: &mut dyn FnMut(Event),
    cancel: &AtomicBool,
) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel::<Result<(&TensorPlan, usize, Vec<u8>)>>(1);
    thread::scope(|scope| {
        let read = move || {
            for (plan, rows) in plans.iter().flat_map(|plan| plan.pieces().map(move |rows| (plan, rows))) {
                let read = plan.read(rows.clone()).map(|bytes| (plan, rows.start, bytes));
                let failed = read.is_err();
                // The receiver was dropped after an error or a cancellation.
                if sender.send(read).is_err() || failed {
                    return;
                }
            }
        };
        thread::Builder::new().spawn_scoped(scope, read).map_err(|_| Error::Request(NO_THREAD.into()))?;
        // Moved in here, so that the reader notices an early return.
        let receiver = receiver;
        let mut out = Vec::new();
        for piece in &receiver {
            Error::check_cancelled(cancel)?;
            let (plan, first_row, bytes) = piece?;
            pool.install(|| plan.convert(first_row, &bytes, &mut out, cancel))?;
            writer.write(&out)?;
            progress(Event::Converted { tensor: &plan.spec.name, bytes: bytes.len() as u64 });
        }
        Ok(())
    })
}
