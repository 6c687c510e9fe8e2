//! One graph, loaded and ready to run on one device.
//!
//! ONNX Runtime is only ever handed bytes, never a path: what a model may read from disk is
//! decided by `onnx::external`, not here. Results do not depend on how many sessions run beside
//! each other; work is spread over threads by giving each worker a session of one thread.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use ort::session::builder::{
    AutoDevicePolicy, BuilderResult, GraphOptimizationLevel, SessionBuilder,
};
use ort::session::{RunOptions, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use super::{Device, Program, library};
use crate::cancel::Cancel;
use crate::error::{Context, Error, ErrorKind, Result, bail, error};
use crate::onnx::{Graph, Node, Value};
use crate::sys::Prepared;
use crate::tensor::{Data, ElementType, Tensor};

/// The optimiser that turns `Range -> Gather` into an invalid `Slice` (1.28 to 1.32).
const BROKEN_OPTIMIZERS: &str = "GatherToSliceFusion";

/// How to run a graph.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where.
    pub device: Device,
    /// Threads inside one run, at least 1.
    pub threads: usize,
    /// Whether ONNX Runtime may rewrite the graph for speed; off when every named value must
    /// survive.
    pub optimize: bool,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { device: Device::Cpu, threads: 1, optimize: true }
    }
}

/// A loaded graph.
pub struct Session {
    inner: ort::session::Session,
    device: Device,
    outputs: Arc<[String]>,
    /// Kept from run to run until one of them is stopped.
    run_options: Arc<RunOptions>,
}

/// What a run returned, by output name.
pub struct Outputs {
    names: Arc<[String]>,
    values: Vec<DynValue>,
}

impl Session {
    /// Loads a program.
    pub fn new(program: &Program, options: &SessionOptions) -> Result<Session> {
        if options.device.settled() == Device::Cuda {
            match Session::commit(program, options, Device::Cuda) {
                Ok(inner) => return Session::of(inner, Device::Cuda),
                Err(e) if options.device == Device::Cuda => {
                    bail!(Device, "CUDA is not available: {e}; choose the device cpu or auto")
                }
                Err(e) => log::warn!("CUDA does not run this graph, so the CPU does: {e}"),
            }
        }
        Session::of(Session::commit(program, options, Device::Cpu)?, Device::Cpu)
    }

    fn of(inner: ort::session::Session, device: Device) -> Result<Session> {
        let outputs = inner.outputs().iter().map(|o| o.name().to_string()).collect();
        let run_options = Arc::new(RunOptions::new().map_err(runtime)?);
        Ok(Session { inner, device, outputs, run_options })
    }

    /// Loads a working graph.
    pub fn of_graph(graph: &Graph, options: &SessionOptions) -> Result<Session> {
        Session::new(&Program::of_graph(graph)?, options)
    }

    /// Loads at the highest optimisation level that works.
    fn commit(
        program: &Program,
        options: &SessionOptions,
        device: Device,
    ) -> Result<ort::session::Session> {
        use GraphOptimizationLevel::{All, Disable, Level1};
        let levels: &[_] = if options.optimize { &[All, Level1, Disable] } else { &[Disable] };
        let mut first = None;
        for &level in levels {
            let mut builder = configured(&program.outside, options, device, level)?;
            match builder.commit_from_memory(&program.file) {
                Ok(session) => return Ok(session),
                Err(e) => drop(first.get_or_insert(e)),
            }
        }
        let e = first.expect("there is at least one level");
        Err(error!(Runtime, "ONNX Runtime refuses the graph: {e}"))
    }

    /// The device the graph runs on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Names of the inputs, in the graph's order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inner.inputs().iter().map(|i| i.name())
    }

    /// Names of the outputs, in the graph's order.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(String::as_str)
    }

    /// Runs the graph; stops with an error of kind `Cancelled` soon after `cancel` is raised.
    pub fn run<'t>(
        &mut self,
        inputs: impl IntoIterator<Item = (&'t str, &'t Tensor)>,
        cancel: &Cancel,
    ) -> Result<Outputs> {
        let values = inputs
            .into_iter()
            .map(|(name, tensor)| Ok((Cow::Borrowed(name), view(tensor).context(|| name)?)))
            .collect::<Result<Vec<(Cow<str>, SessionInputValue)>>>()?;
        let names = self.outputs.clone();
        let values = self.stoppable(cancel, |session, options| {
            let mut found = session.run_with_options(values, options)?;
            Ok(names.iter().map(|name| found.remove(name)).collect::<Option<Vec<DynValue>>>())
        })?;
        match values {
            Some(values) => Ok(Outputs { names, values }),
            None => bail!(Model, "two outputs have the same name"),
        }
    }

    /// Runs the graph over the first `rows` rows of what has been prepared, from its inputs to its
    /// output. Once that has been done, it allocates nothing on this side of ONNX Runtime, given a
    /// `cancel` that is never raised.
    pub(crate) fn run_prepared(
        &mut self,
        prepared: &mut Prepared,
        rows: usize,
        cancel: &Cancel,
    ) -> Result<()> {
        self.stoppable(cancel, |session, options| prepared.run(session, rows, options))
    }

    /// Does `work`, which is told to stop when `cancel` is raised.
    fn stoppable<T>(
        &mut self,
        cancel: &Cancel,
        work: impl FnOnce(&mut ort::session::Session, &RunOptions) -> ort::Result<T>,
    ) -> Result<T> {
        cancel.check()?;
        let terminate = self.run_options.clone();
        let registration = cancel.on_cancel(move || drop(terminate.terminate()));
        let done = work(&mut self.inner, &self.run_options);
        drop(registration);
        if cancel.is_cancelled() {
            // The flag to stop stays up in them.
            self.run_options = Arc::new(RunOptions::new().map_err(runtime)?);
        }
        done.map_err(|e| cancel.check().err().unwrap_or_else(|| runtime(e)))
    }
}

impl Device {
    /// `Auto` as what it comes to on this machine: found out, and said in the log, once a process.
    pub fn settled(self) -> Device {
        static AUTO: OnceLock<Device> = OnceLock::new();
        match self {
            Device::Auto => *AUTO.get_or_init(|| match probe_cuda() {
                Ok(()) => Device::Cuda,
                Err(e) => {
                    log::warn!("CUDA is not available, running on the CPU: {e}");
                    Device::Cpu
                }
            }),
            device => device,
        }
    }
}

/// Loads the smallest graph there is on the first CUDA device.
fn probe_cuda() -> Result<()> {
    let graph = Graph {
        inputs: vec![Value::fixed("x", ElementType::F32, &[1])],
        outputs: vec![Value::fixed("y", ElementType::F32, &[1])],
        nodes: vec![Node::new("Identity", ["x"], "y")],
        opset: 18,
        ..Graph::default()
    };
    let program = Program::of_graph(&graph)?;
    Session::commit(&program, &SessionOptions::default(), Device::Cuda).map(drop)
}

impl Outputs {
    /// A float32 output without a copy: its shape and its elements.
    pub fn f32(&self, name: &str) -> Result<(Vec<usize>, &[f32])> {
        let (shape, data) = self.value(name)?.try_extract_tensor::<f32>().map_err(runtime)?;
        Ok((shape.iter().map(|&d| d as usize).collect(), data))
    }

    /// The element type and shape of an output, if it is a tensor hone can hold.
    pub fn kind(&self, name: &str) -> Option<(ElementType, Vec<usize>)> {
        let ValueType::Tensor { ty, shape, .. } = self.value(name).ok()?.dtype() else {
            return None;
        };
        // ONNX Runtime numbers element types as ONNX does.
        let element = element_type(*ty)?;
        Some((element, shape.iter().map(|&d| d as usize).collect()))
    }

    /// An output as a tensor of its own; an error when it is not a tensor hone can hold.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        copy(self.value(name)?).context(|| format!("output {name:?}"))
    }

    fn value(&self, name: &str) -> Result<&DynValue> {
        let found = self.names.iter().zip(&self.values).find(|(n, _)| *n == name);
        found.map(|(_, v)| v).ok_or_else(|| error!(Runtime, "the graph has no output {name:?}"))
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names.iter()).finish()
    }
}

/// A builder with everything set but the model.
#[allow(clippy::result_large_err, reason = "ort hands the builder back with its errors")]
fn configured(
    outside: &[(String, Arc<DynValue>)],
    options: &SessionOptions,
    device: Device,
    level: GraphOptimizationLevel,
) -> Result<SessionBuilder> {
    let start = SessionBuilder::new(library::load()?).map_err(runtime)?;
    let set = || -> BuilderResult {
        let mut builder = start
            // From API 22 on the default policy may pick accelerators nobody asked for.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_intra_threads(options.threads.max(1))?
            .with_inter_threads(1)?
            // Spinning threads burn the cores that other workers compute on.
            .with_intra_op_spinning(false)?
            .with_disabled_optimizers(BROKEN_OPTIMIZERS)?
            .with_optimization_level(level)?;
        for (name, value) in outside {
            builder = builder.with_external_initializer(name, value.clone())?;
        }
        Ok(builder)
    };
    let builder = set().map_err(runtime)?;
    match device {
        Device::Cpu => Ok(builder),
        Device::Cuda | Device::Auto => with_cuda(builder),
    }
}

#[cfg(feature = "cuda")]
fn with_cuda(builder: SessionBuilder) -> Result<SessionBuilder> {
    use ort::ep;
    let cuda = ep::CUDA::default().with_tf32(false).build().error_on_failure();
    builder.with_execution_providers([cuda]).map_err(runtime)
}

#[cfg(not(feature = "cuda"))]
fn with_cuda(_: SessionBuilder) -> Result<SessionBuilder> {
    bail!(Device, "this hone was built without the `cuda` feature")
}

fn runtime<T>(e: ort::Error<T>) -> Error {
    Error::new(ErrorKind::Runtime, format!("ONNX Runtime: {e}"))
}

/// Runs `$body` with `$t` as the element type of each variant of [`Data`].
macro_rules! for_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::F32($v) => $body,
            Data::F64($v) => $body,
            Data::F16($v) => $body,
            Data::BF16($v) => $body,
            Data::I8($v) => $body,
            Data::I16($v) => $body,
            Data::I32($v) => $body,
            Data::I64($v) => $body,
            Data::U8($v) => $body,
            Data::U16($v) => $body,
            Data::U32($v) => $body,
            Data::U64($v) => $body,
            Data::Bool($v) => $body,
        }
    };
}

/// The tensor as an input of a run, without a copy.
fn view(tensor: &Tensor) -> Result<SessionInputValue<'_>> {
    let shape: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    for_data!(tensor.data(), v => Ok(TensorRef::from_array_view((shape, v.as_slice()))
        .map_err(runtime)?
        .into()))
}

/// The tensor as a value that ONNX Runtime owns.
pub(super) fn owned(tensor: Tensor) -> Result<DynValue> {
    let shape: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    for_data!(tensor.into_data(), v => Ok(ort::value::Tensor::from_array((shape, v))
        .map_err(runtime)?
        .into_dyn()))
}

fn element_type(ty: TensorElementType) -> Option<ElementType> {
    use TensorElementType as T;
    Some(match ty {
        T::Float32 => ElementType::F32,
        T::Float64 => ElementType::F64,
        T::Float16 => ElementType::F16,
        T::Bfloat16 => ElementType::BF16,
        T::Int8 => ElementType::I8,
        T::Int16 => ElementType::I16,
        T::Int32 => ElementType::I32,
        T::Int64 => ElementType::I64,
        T::Uint8 => ElementType::U8,
        T::Uint16 => ElementType::U16,
        T::Uint32 => ElementType::U32,
        T::Uint64 => ElementType::U64,
        T::Bool => ElementType::Bool,
        _ => return None,
    })
}

/// A value of ONNX Runtime as a tensor of its own.
fn copy(value: &DynValue) -> Result<Tensor> {
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        bail!(Unsupported, "it is not a tensor")
    };
    macro_rules! take {
        ($variant:ident) => {{
            let (shape, data) = value.try_extract_tensor().map_err(runtime)?;
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            Tensor::new(shape, Data::$variant(data.to_vec()))
        }};
    }
    let Some(element) = element_type(*ty) else {
        bail!(Unsupported, "hone cannot hold elements of type {ty}")
    };
    match element {
        ElementType::F32 => take!(F32),
        ElementType::F64 => take!(F64),
        ElementType::F16 => take!(F16),
        ElementType::BF16 => take!(BF16),
        ElementType::I8 => take!(I8),
        ElementType::I16 => take!(I16),
        ElementType::I32 => take!(I32),
        ElementType::I64 => take!(I64),
        ElementType::U8 => take!(U8),
        ElementType::U16 => take!(U16),
        ElementType::U32 => take!(U32),
        ElementType::U64 => take!(U64),
        ElementType::Bool => take!(Bool),
    }
}
