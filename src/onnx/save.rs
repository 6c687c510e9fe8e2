//! Writing a model: the file appears whole or not at all, and so does its data file.
//!
//! A model that came with external data, or that would not fit into one protobuf file, gets a new
//! data file `NAME.data` beside it. Tensors that were not changed are copied from where they are,
//! a megabyte at a time; a data file that the source reads from is never written to.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use buffa::Message;

use crate::atomic_file::{AtomicFile, folder_of};
use crate::error::{Context, Result, bail, error};
use crate::onnx::external::{self, Reference};
use crate::onnx::graph::Graph;
use crate::onnx::model::Model;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{StringStringEntryProto, TensorProto};
use crate::onnx::{storage, walk};

/// The largest file without a data file; protobuf ends at 2 GiB, and readers want some slack.
const MAX_FILE_BYTES: u64 = 1_900_000_000;
/// Embedded tensors below this stay embedded when a model grows a data file.
const MIN_MOVED_BYTES: usize = 1 << 10;
/// Tensors of this size start on a page, so that a reader may map them.
const MIN_PAGE_ALIGNED_BYTES: u64 = 1 << 20;

impl Graph {
    /// Writes the graph as a model of its own, with these metadata entries.
    pub fn save(&self, path: &Path, metadata: &[(&str, String)]) -> Result<()> {
        let mut proto = self.to_proto();
        let entry = |(key, value): &(&str, String)| StringStringEntryProto {
            key: Some(key.to_string()),
            value: Some(value.clone()),
            ..StringStringEntryProto::default()
        };
        proto.metadata_props.extend(metadata.iter().map(entry));
        let bytes = proto.try_encode_to_vec().map_err(|e| {
            let name = path.display();
            error!(Unsupported, "{name}: exceeds the 2 GB of an ONNX file").with_source(e)
        })?;
        let mut file = AtomicFile::create(path)?;
        file.append(&bytes)?;
        file.commit()
    }
}

/// Writes `model` to `path`.
pub fn save(model: &Model, path: &Path) -> Result<()> {
    save_within(model, path, MAX_FILE_BYTES)
}

fn save_within(model: &Model, path: &Path, max_file_bytes: u64) -> Result<()> {
    let Some(file_name) = path.file_name() else {
        bail!(Usage, "{}: is not the path of a file", path.display());
    };
    let mut file = AtomicFile::create(path)?;
    let moves_all = model.proto.compute_size(&mut buffa::SizeCache::new()) as u64 > max_file_bytes;
    if !model.has_external_data() && !moves_all {
        file.append(&model.to_bytes()?)?;
        return file.commit();
    }
    let Some(file_name) = file_name.to_str() else {
        bail!(Usage, "{}: the name of a model with a data file must be UTF-8", path.display());
    };
    let mut proto = model.proto.clone();
    let sources = sources(model, &mut proto)?;
    let data_path = data_path(folder_of(path), file_name, &sources);
    let mut data = DataFile::create(model, &data_path)?;
    walk::model(&mut proto, &mut |tensor| {
        let large = storage::raw_data(tensor).is_some_and(|raw| raw.len() >= MIN_MOVED_BYTES);
        if storage::is_external(tensor) || (moves_all && large) {
            let name = tensor.name.clone().unwrap_or_default();
            return storage::named(data.take(tensor), &name).context(|| model.name());
        }
        Ok(())
    })?;
    let bytes = proto.try_encode_to_vec().map_err(|e| {
        let name = path.display();
        error!(Unsupported, "{name}: exceeds the 2 GB of an ONNX file").with_source(e)
    })?;
    file.append(&bytes)?;
    file.sync()?;
    data.file.commit()?;
    file.commit().inspect_err(|_| {
        // Without its model the data file is of no use to anyone.
        let _ = fs::remove_file(&data_path);
    })
}

/// The files that the model's external data is read from.
fn sources(model: &Model, proto: &mut crate::onnx::proto::ModelProto) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    walk::model(proto, &mut |tensor| {
        if let (true, Some(folder)) = (storage::is_external(tensor), model.folder()) {
            let name = tensor.name.clone().unwrap_or_default();
            let location = storage::named(Reference::parse(tensor), &name)?.location;
            sources.extend(fs::canonicalize(folder.join(location)));
        }
        Ok(())
    })?;
    Ok(sources)
}

/// `NAME.data`, or `NAME.1.data`, ... where the source reads from that file.
fn data_path(folder: &Path, file_name: &str, sources: &[PathBuf]) -> PathBuf {
    let is_source = |path: &Path| fs::canonicalize(path).is_ok_and(|p| sources.contains(&p));
    let numbered = (1..).map(|i| format!("{file_name}.{i}.data"));
    std::iter::once(format!("{file_name}.data"))
        .chain(numbered)
        .map(|name| folder.join(name))
        .find(|path| !is_source(path))
        .expect("there are more names than sources")
}

/// A data file in the making.
struct DataFile<'a> {
    model: &'a Model,
    file: AtomicFile,
    location: String,
    end: u64,
    /// Where the bytes that several tensors share went.
    copied: HashMap<Reference, Reference>,
}

impl<'a> DataFile<'a> {
    fn create(model: &'a Model, path: &Path) -> Result<DataFile<'a>> {
        let location = path.file_name().and_then(|n| n.to_str()).expect("it was made from a str");
        Ok(DataFile {
            model,
            file: AtomicFile::create(path)?,
            location: location.into(),
            end: 0,
            copied: HashMap::new(),
        })
    }

    /// Moves the elements of `tensor` into the file and leaves a reference in their place.
    fn take(&mut self, tensor: &mut TensorProto) -> Result<()> {
        let reference = match tensor.raw_data.take() {
            Some(raw) => self.append(raw.len() as u64, |file| file.append(&raw))?,
            None => self.copy(external::reference(tensor)?)?,
        };
        tensor.external_data = reference.entries();
        tensor.data_location = Some(DataLocation::EXTERNAL);
        Ok(())
    }

    fn copy(&mut self, source: Reference) -> Result<Reference> {
        if let Some(copy) = self.copied.get(&source) {
            return Ok(copy.clone());
        }
        let Some(folder) = self.model.folder() else {
            bail!(Model, "its data is in another file, but the model was not read from a folder");
        };
        let span = source.open(folder)?;
        let copy = self.append(span.length(), |file| span.copy(|bytes| file.append(bytes)))?;
        self.copied.insert(source, copy.clone());
        Ok(copy)
    }

    fn append(
        &mut self,
        length: u64,
        write: impl FnOnce(&mut AtomicFile) -> Result<()>,
    ) -> Result<Reference> {
        let alignment = if length >= MIN_PAGE_ALIGNED_BYTES { 4096 } else { 64 };
        let offset = self.end.next_multiple_of(alignment);
        self.file.append(&vec![0; (offset - self.end) as usize])?;
        write(&mut self.file)?;
        self.end = offset + length;
        Ok(Reference { location: self.location.clone(), offset, length: Some(length) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Graph, Value};
    use crate::tensor::Tensor;
    use std::sync::Arc;

    #[test]
    fn a_model_beyond_the_limit_gets_a_data_file() {
        let large = Tensor::f32([1 << 19], (0..1 << 19).map(|i| i as f32).collect());
        let medium = Tensor::f32([300], vec![1.5; 300]);
        let small = Tensor::f32([2], vec![1.0, 2.0]);
        let tensors = [("b-large", large), ("a-medium", medium), ("small", small)];
        let initializers = tensors.clone().map(|(n, t)| (n.to_owned(), Arc::new(t))).into();
        let outputs = vec![Value::named("small")];
        let graph = Graph { opset: 18, initializers, outputs, ..Graph::default() };
        let model = Model::from_bytes(&graph.to_bytes().unwrap(), None).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.onnx");
        save_within(&model, &path, 1000).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        let saved = Model::load(&path).unwrap();
        for (name, tensor) in tensors {
            assert_eq!(saved.tensor(name).unwrap(), tensor);
        }
        let initializers = &saved.proto.graph.as_option().unwrap().initializer;
        let offset = |i: usize| Reference::parse(&initializers[i]).unwrap().offset;
        assert_eq!((offset(0), offset(1)), (0, 4096), "the large one starts on a page");
        assert!(!storage::is_external(&initializers[2]), "the small one stays inside");
    }
}
