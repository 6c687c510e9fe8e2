//! A model file as its author wrote it: the protobuf message and the folder its data lives in.
//!
//! The message is kept whole, fields that hone does not know included, so that a model which hone
//! edits differs from its source only where hone meant it to.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buffa::{DecodeOptions, Message};

use crate::atomic_file::folder_of;
use crate::error::{Context, Result, bail, error};
use crate::onnx::external::Reference;
use crate::onnx::nodes::{self, constant_attribute};
use crate::onnx::proto::{AttributeProto, ModelProto, TensorProto};
use crate::onnx::{check, external, save, storage, walk};
use crate::tensor::{Data, Tensor};

/// The memory that the elements of repeated messages may take while a file is decoded: hostile
/// files can ask for several hundred times their size, real models stay far below.
const ELEMENT_MEMORY_LIMIT: usize = 512 << 20;

/// An ONNX model with everything its file held.
#[derive(Clone, Debug)]
pub struct Model {
    /// The message. Tensors are reached through [`Model::tensor`] and [`Model::replace_tensor`].
    pub proto: ModelProto,
    name: String,
    folder: Option<PathBuf>,
    places: HashMap<String, Place>,
    has_external_data: bool,
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
        Model::decode(&bytes, Some(folder_of(path)), name)
    }

    /// The model in `bytes`. External data is looked for in `folder`, and refused without one.
    pub fn from_bytes(bytes: &[u8], folder: Option<&Path>) -> Result<Model> {
        Model::decode(bytes, folder, "model".into())
    }

    fn decode(bytes: &[u8], folder: Option<&Path>, name: String) -> Result<Model> {
        let options = DecodeOptions::new().with_element_memory_limit(ELEMENT_MEMORY_LIMIT);
        let mut proto: ModelProto = options.decode_from_slice(bytes).map_err(|e| {
            error!(Model, "{name}: cannot be decoded ({e}); is this an ONNX file, and complete?")
                .with_source(e)
        })?;
        let places = places(&proto);
        check::model(&mut proto).context(|| name.as_str())?;
        let mut has_external_data = false;
        walk::model(&mut proto, &mut |tensor| {
            has_external_data |= storage::is_external(tensor);
            Ok(())
        })?;
        Ok(Model { proto, name, folder: folder.map(Path::to_owned), places, has_external_data })
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
        let node = match *self.places.get(name).ok_or_else(missing)? {
            Place::Initializer(i) => return self.read(&graph.initializer[i]).context(context),
            Place::Constant(i) => nodes::from_proto(&graph.node[i], &|t| self.read(t)),
        };
        let value = nodes::constant_value(&node.context(context)?);
        value.map(|(_, tensor)| Arc::unwrap_or_clone(tensor)).ok_or_else(|| {
            error!(Unsupported, "it is a constant hone cannot compute with").context(context())
        })
    }

    /// The tensor in `proto`, read from wherever it is stored.
    pub fn read(&self, proto: &TensorProto) -> Result<Tensor> {
        if !storage::is_external(proto) {
            return storage::read(proto);
        }
        if let Some(raw) = &proto.raw_data {
            // Replaced, and not saved yet: `replace_external` put it here.
            let data = Data::from_le_bytes(storage::element_type(proto)?, raw)?;
            return Tensor::new(storage::shape(proto)?, data);
        }
        let Some(folder) = &self.folder else {
            bail!(Model, "its data is in another file, but the model was not read from a folder");
        };
        external::read(folder, proto)
    }

    /// Replaces the elements of the constant `name` by those of `tensor`, which must have its
    /// shape and element type. The form of storage stays: raw, typed, or in a data file.
    pub fn replace_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let context = format!("{}: tensor {name:?}", self.name);
        let missing = || error!(Model, "the graph has no such constant").context(&context);
        let place = *self.places.get(name).ok_or_else(missing)?;
        if let Place::Constant(_) = place {
            let old = self.tensor(name)?;
            storage::same_kind(old.element_type(), old.shape(), tensor).context(|| &context)?;
        }
        let graph = self.proto.graph.as_option_mut().ok_or_else(missing)?;
        match place {
            Place::Initializer(i) => replace(&mut graph.initializer[i], tensor),
            Place::Constant(i) => replace_constant(&mut graph.node[i].attribute[0], tensor),
        }
        .context(|| context)
    }

    /// Writes the model to `path`, whole or not at all. Where the source had external data, or one
    /// file cannot hold everything, a new data file appears beside it (see [`mod@super::save`]).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save::save(self, path.as_ref())
    }

    /// The files beside the model's own that its tensors are stored in.
    pub fn data_files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        let Some(folder) = self.folder.as_ref().filter(|_| self.has_external_data) else {
            return Ok(files);
        };
        walk::model(&mut self.proto.clone(), &mut |tensor| {
            if storage::is_external(tensor) {
                files.insert(folder.join(Reference::parse(tensor)?.location));
            }
            Ok(())
        })?;
        Ok(files)
    }

    /// Calls `each` with every tensor whose numbers are in another file.
    pub fn visit_external(&self, each: &mut dyn FnMut(Tensor) -> Result<()>) -> Result<()> {
        if !self.has_external_data {
            return Ok(());
        }
        walk::model(&mut self.proto.clone(), &mut |tensor| {
            if storage::is_external(tensor) && tensor.raw_data.is_none() {
                each(self.read(tensor)?)?;
            }
            Ok(())
        })
    }

    /// Whether some tensor is stored in another file.
    pub fn has_external_data(&self) -> bool {
        self.has_external_data
    }

    /// The model as the bytes of an ONNX file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.proto.try_encode_to_vec().map_err(|e| {
            error!(Unsupported, "{}: exceeds the 2 GB of an ONNX file", self.name).with_source(e)
        })
    }
}

/// Replaces the elements of a tensor; those in another file are put there when the model is saved.
fn replace(proto: &mut TensorProto, tensor: &Tensor) -> Result<()> {
    if !storage::is_external(proto) {
        return storage::replace(proto, tensor);
    }
    storage::check_same_kind(proto, tensor)?;
    proto.raw_data = Some(tensor.data().to_le_bytes());
    Ok(())
}

/// Replaces the value of a `Constant` node by one of the same shape and element type.
fn replace_constant(attribute: &mut AttributeProto, tensor: &Tensor) -> Result<()> {
    match (attribute.name.as_deref(), attribute.t.as_option_mut(), tensor.data()) {
        (Some("value"), Some(proto), _) => replace(proto, tensor)?,
        (Some("value_float"), _, Data::F32(v)) => attribute.f = v.first().copied(),
        (Some("value_floats"), _, Data::F32(v)) => attribute.floats = v.clone(),
        (Some("value_int"), _, Data::I64(v)) => attribute.i = v.first().copied(),
        (Some("value_ints"), _, Data::I64(v)) => attribute.ints = v.clone(),
        _ => bail!(Unsupported, "it is a constant hone cannot compute with"),
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::tensor_proto::DataLocation;
    use crate::onnx::{Graph, Node, Value, proto};
    use buffa::{UnknownField, UnknownFieldData};
    use std::fs;
    use std::sync::Arc;

    fn weights() -> Tensor {
        Tensor::f32([2, 2], vec![1.0, 2.0, 3.0, 4.0])
    }

    /// `y = Relu(x w) + v`, with one initializer of each form of storage.
    fn proto() -> ModelProto {
        let graph = Graph {
            opset: 18,
            nodes: vec![
                Node::new("MatMul", ["x", "w"], "a"),
                Node::new("Relu", ["a"], "b"),
                Node::new("Add", ["b", "v"], "y"),
            ],
            initializers: [
                ("w".to_owned(), Arc::new(weights())),
                ("v".to_owned(), Arc::new(Tensor::f32([2], vec![5.0, 6.0]))),
            ]
            .into(),
            inputs: vec![Value::fixed("x", crate::tensor::ElementType::F32, &[1, 2])],
            outputs: vec![Value::named("y")],
            ..Graph::default()
        };
        let mut proto = graph.to_proto();
        let typed = &mut proto.graph.as_option_mut().unwrap().initializer[0];
        assert_eq!(typed.name.as_deref(), Some("v"));
        typed.raw_data = None;
        typed.float_data = vec![5.0, 6.0];
        proto
    }

    /// A folder with `model.onnx`, whose tensors `w` and `tied` share bytes in `weights.bin`.
    fn external() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut proto = proto();
        let graph = proto.graph.as_option_mut().unwrap();
        let w = &mut graph.initializer[1];
        let mut file = vec![9u8; 8];
        file.extend(w.raw_data.take().unwrap());
        w.data_location = Some(DataLocation::EXTERNAL);
        let reference =
            external::Reference { location: "weights.bin".into(), offset: 8, length: Some(16) };
        w.external_data = reference.entries();
        let tied = TensorProto { name: Some("tied".into()), ..w.clone() };
        graph.initializer.push(tied);
        fs::write(folder.path().join("weights.bin"), file).unwrap();
        fs::write(folder.path().join("model.onnx"), proto.encode_to_vec()).unwrap();
        folder
    }

    fn unknown() -> UnknownField {
        UnknownField { number: 4321, data: UnknownFieldData::LengthDelimited(b"future".to_vec()) }
    }

    #[test]
    fn what_hone_does_not_know_survives() {
        let mut proto = proto();
        proto.__buffa_unknown_fields.push(unknown());
        let graph = proto.graph.as_option_mut().unwrap();
        graph.__buffa_unknown_fields.push(unknown());
        graph.node[0].__buffa_unknown_fields.push(unknown());
        graph.initializer[0].__buffa_unknown_fields.push(unknown());
        graph.initializer.push(TensorProto {
            name: Some("int4".into()),
            data_type: Some(22),
            dims: vec![3],
            raw_data: Some(vec![0x12, 0x03]),
            ..TensorProto::default()
        });
        let bytes = proto.encode_to_vec();
        let model = Model::from_bytes(&bytes, None).unwrap();
        assert_eq!(model.to_bytes().unwrap(), bytes);
        let error = model.tensor("int4").unwrap_err().to_string();
        assert!(error.contains(r#"tensor "int4""#) && error.contains("INT4"), "{error}");
    }

    #[test]
    fn replacing_changes_only_the_values() {
        let mut model = Model::from_bytes(&proto().encode_to_vec(), None).unwrap();
        model.replace_tensor("v", &Tensor::f32([2], vec![0.0, 7.0])).unwrap();
        model.replace_tensor("w", &Tensor::f32([2, 2], vec![0.0; 4])).unwrap();
        let mut expected = proto();
        let graph = expected.graph.as_option_mut().unwrap();
        graph.initializer[0].float_data = vec![0.0, 7.0];
        graph.initializer[1].raw_data = Some(vec![0; 16]);
        assert_eq!(model.to_bytes().unwrap(), expected.encode_to_vec());
        let error = model.replace_tensor("v", &weights()).unwrap_err().to_string();
        assert_eq!(
            error,
            r#"model: tensor "v": it is float32 [2] and cannot become float32 [2, 2]"#
        );
        assert!(model.replace_tensor("x", &weights()).is_err(), "an input is no constant");
    }

    #[test]
    fn constants_in_nodes_are_replaced_in_their_form() {
        let mut proto = proto();
        let graph = proto.graph.as_option_mut().unwrap();
        let constant = |name: &str, key: &str, value: AttributeProto| proto::NodeProto {
            op_type: Some("Constant".into()),
            output: vec![name.into()],
            attribute: vec![AttributeProto { name: Some(key.into()), ..value }],
            ..proto::NodeProto::default()
        };
        let tensor = storage::write("inner", &weights());
        graph.node.extend([
            constant("t", "value", AttributeProto { t: tensor.into(), ..Default::default() }),
            constant("i", "value_int", AttributeProto { i: Some(3), ..Default::default() }),
            constant(
                "f",
                "value_floats",
                AttributeProto { floats: vec![1.0], ..Default::default() },
            ),
        ]);
        let mut model = Model::from_bytes(&proto.encode_to_vec(), None).unwrap();
        for (name, value) in [
            ("t", Tensor::f32([2, 2], vec![0.0; 4])),
            ("i", Tensor::i64([], vec![4])),
            ("f", Tensor::f32([1], vec![2.0])),
        ] {
            model.replace_tensor(name, &value).unwrap();
            assert_eq!(model.tensor(name).unwrap(), value);
            assert!(model.replace_tensor(name, &Tensor::i64([1, 1], vec![1])).is_err());
        }
    }

    #[test]
    fn a_model_without_external_data_is_saved_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.onnx");
        let model = Model::from_bytes(&proto().encode_to_vec(), None).unwrap();
        model.save(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), proto().encode_to_vec());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn external_data_is_read_replaced_and_saved_to_a_new_file() {
        let (source, target) = (external(), tempfile::tempdir().unwrap());
        let mut model = Model::load(source.path().join("model.onnx")).unwrap();
        assert_eq!(model.tensor("w").unwrap(), weights());
        assert_eq!(*Graph::from_model(&model).unwrap().initializers["tied"], weights());

        let path = target.path().join("out.onnx");
        model.save(&path).unwrap();
        let size = |p: &Path| fs::metadata(p).unwrap().len();
        assert_eq!(size(&target.path().join("out.onnx.data")), 16, "shared bytes are kept once");

        let zeros = Tensor::f32([2, 2], vec![0.0; 4]);
        model.replace_tensor("w", &zeros).unwrap();
        assert_eq!(model.tensor("w").unwrap(), zeros);
        model.save(&path).unwrap();
        let saved = Model::load(&path).unwrap();
        assert!(saved.has_external_data());
        assert_eq!(saved.tensor("w").unwrap(), zeros);
        assert_eq!(saved.tensor("tied").unwrap(), weights(), "the other name keeps the old values");
        assert_eq!(saved.tensor("v").unwrap(), model.tensor("v").unwrap());
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    }

    #[test]
    fn a_reference_without_length_is_the_tensor_and_no_more() {
        let folder = external();
        let path = folder.path().join("model.onnx");
        let mut model = Model::load(&path).unwrap();
        for tensor in &mut model.proto.graph.as_option_mut().unwrap().initializer {
            tensor.external_data.retain(|entry| entry.key.as_deref() != Some("length"));
        }
        let data = folder.path().join("weights.bin");
        fs::write(&data, [fs::read(&data).unwrap(), vec![1; 100]].concat()).unwrap();
        model.save(folder.path().join("out.onnx")).unwrap();
        assert_eq!(fs::metadata(folder.path().join("out.onnx.data")).unwrap().len(), 16);
        let saved = Model::load(folder.path().join("out.onnx")).unwrap();
        assert_eq!(saved.tensor("w").unwrap(), weights());
    }

    #[test]
    fn saving_over_the_source_leaves_its_data_alone() {
        let folder = external();
        let path = folder.path().join("model.onnx");
        Model::load(&path).unwrap().save(&path).unwrap();
        let mut model = Model::load(&path).unwrap();
        let data = folder.path().join("model.onnx.data");
        let before = fs::read(&data).unwrap();
        model.replace_tensor("w", &Tensor::f32([2, 2], vec![0.0; 4])).unwrap();
        model.save(&path).unwrap();
        assert_eq!(fs::read(&data).unwrap(), before);
        assert_eq!(Model::load(&path).unwrap().tensor("tied").unwrap(), weights());
        assert!(folder.path().join("model.onnx.1.data").exists());
    }

    #[test]
    fn a_failed_save_leaves_nothing() {
        let (source, target) = (external(), tempfile::tempdir().unwrap());
        let model = Model::load(source.path().join("model.onnx")).unwrap();
        fs::write(source.path().join("weights.bin"), [0; 10]).unwrap();
        let error = model.save(target.path().join("out.onnx")).unwrap_err().to_string();
        assert!(error.contains(r#"tensor "w""#) && error.contains("only 10"), "{error}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn external_data_needs_a_folder_and_nothing_inside() {
        let source = external();
        let bytes = fs::read(source.path().join("model.onnx")).unwrap();
        let model = Model::from_bytes(&bytes, None).unwrap();
        assert!(model.tensor("w").unwrap_err().to_string().contains("not read from a folder"));
        let mut proto = model.proto.clone();
        proto.graph.as_option_mut().unwrap().initializer[1].raw_data = Some(vec![0; 16]);
        let error = Model::from_bytes(&proto.encode_to_vec(), None).unwrap_err().to_string();
        assert!(error.contains("both inside and in another file"), "{error}");
    }

    #[test]
    fn what_is_no_model_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.onnx");
        fs::write(&path, "this is no model").unwrap();
        let error = Model::load(&path).unwrap_err().to_string();
        assert!(error.contains("text.onnx") && error.contains("is this an ONNX file"), "{error}");
        assert!(Model::load(folder.path().join("none")).is_err());
    }
}
