//! A model file as its author wrote it: the protobuf message and the folder its data lives in.
//!
//! The message is kept whole, fields that hone does not know included, so that a model which hone
//! edits differs from its source only where hone meant it to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use buffa::{DecodeOptions, Message};

use crate::error::{Context, Result, bail, error};
use crate::onnx::convert::{constant_attribute, constant_tensor};
use crate::onnx::proto::{ModelProto, TensorProto};
use crate::onnx::storage;
use crate::tensor::Tensor;

/// The memory that the elements of repeated messages may take while a file is decoded: hostile
/// files can ask for several hundred times their size, real models stay far below.
const ELEMENT_MEMORY_LIMIT: usize = 1 << 30;

/// An ONNX model with everything its file held.
#[derive(Clone, Debug)]
pub struct Model {
    /// The message. Tensors are reached through [`Model::tensor`] and [`Model::replace_tensor`].
    pub proto: ModelProto,
    name: String,
    folder: Option<PathBuf>,
    places: HashMap<String, Place>,
}

/// Where a constant is in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Initializer(usize),
    Constant(usize),
}

impl Model {
    /// Reads the model at `path`. Errors name the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Model> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|e| error!(Io, "{name}: cannot be read: {e}").with_source(e))?;
        let folder =
            path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        Model::decode(&bytes, folder, name)
    }

    /// The model in `bytes`. External data is looked for in `folder`, and refused without one.
    pub fn from_bytes(bytes: &[u8], folder: Option<&Path>) -> Result<Model> {
        Model::decode(bytes, folder, "model".into())
    }

    fn decode(bytes: &[u8], folder: Option<&Path>, name: String) -> Result<Model> {
        let options = DecodeOptions::new().with_element_memory_limit(ELEMENT_MEMORY_LIMIT);
        let proto: ModelProto = options.decode_from_slice(bytes).map_err(|e| {
            error!(Model, "{name}: cannot be decoded ({e}); is this an ONNX file, and complete?")
                .with_source(e)
        })?;
        let places = places(&proto);
        Ok(Model { proto, name, folder: folder.map(Path::to_owned), places })
    }

    /// How messages name the model: the path it was read from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder with the model's external data.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The constant `name`: an initializer or the output of a `Constant` node.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let context = || format!("{}: tensor {name:?}", self.name);
        let missing = || error!(Model, "the graph has no such constant").context(context());
        let graph = self.proto.graph.as_option().ok_or_else(missing)?;
        let tensor = match *self.places.get(name).ok_or_else(missing)? {
            Place::Initializer(i) => self.read(&graph.initializer[i]).map(Some),
            Place::Constant(i) => match constant_attribute(&graph.node[i]) {
                Some(attribute) => constant_tensor(attribute, |t| self.read(t)),
                None => Ok(None),
            },
        };
        tensor.context(context)?.ok_or_else(|| {
            error!(Unsupported, "it is a constant hone cannot compute with").context(context())
        })
    }

    /// The tensor in `proto`, read from wherever it is stored.
    pub fn read(&self, proto: &TensorProto) -> Result<Tensor> {
        if storage::is_external(proto) {
            bail!(Unsupported, "its data is in another file");
        }
        storage::read(proto)
    }

    /// The model as the bytes of an ONNX file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.proto.try_encode_to_vec().map_err(|e| {
            error!(Unsupported, "{}: exceeds the 2 GB of an ONNX file", self.name).with_source(e)
        })
    }
}

/// Where each constant of the main graph is.
fn places(proto: &ModelProto) -> HashMap<String, Place> {
    let Some(graph) = proto.graph.as_option() else { return HashMap::new() };
    let constants = graph.node.iter().enumerate().filter(|(_, n)| constant_attribute(n).is_some());
    let constants = constants.map(|(i, n)| (n.output[0].clone(), Place::Constant(i)));
    let initializers = graph.initializer.iter().enumerate();
    let name = |t: &TensorProto| t.name.clone().unwrap_or_default();
    constants.chain(initializers.map(|(i, t)| (name(t), Place::Initializer(i)))).collect()
}
