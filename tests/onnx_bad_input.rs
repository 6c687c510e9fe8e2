//! Whatever is in a model file, hone answers with a model or a typed error: it never panics, hangs
//! or takes memory that the file does not account for.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use buffa::Message;
use hone::ErrorKind;
use hone::onnx::proto::tensor_proto::DataLocation;
use hone::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};
use hone::onnx::{Graph, Model, Node, Value, import};
use hone::tensor::{ElementType, Tensor};

/// How many damaged copies of each kind are tried.
const CASES: usize = 2500;

/// A small network in an old operator set, so that damage reaches the upgrade too.
fn network() -> ModelProto {
    let ramp = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Arc::new(Tensor::f32(shape, (0..count).map(|i| i as f32 * 0.25 - 1.0).collect()))
    };
    let list = |values: &[i64]| Arc::new(Tensor::i64([values.len()], values.to_vec()));
    let graph = Graph {
        name: "network".into(),
        opset: 11,
        domains: [("com.microsoft".to_owned(), 1)].into(),
        nodes: vec![
            Node::new("Conv", ["x", "kernel", "bias"], "c").with("pads", vec![1i64, 1, 1, 1]),
            Node::new("Clip", ["c"], "r").with("min", 0.0),
            Node::new("ReduceMean", ["r"], "p").with("axes", vec![2i64, 3]).with("keepdims", 0i64),
            Node { domain: "com.microsoft".into(), ..Node::new("QuickGelu", ["p"], "q") },
            Node::new("Identity", ["dense"], "alias"),
            Node::new("MatMul", ["q", "alias"], "m"),
            Node::new("Reshape", ["m", "shape"], "s"),
            Node::new("Softmax", ["s"], "y").with("axis", 1i64),
        ],
        initializers: [
            ("kernel".to_owned(), ramp(&[3, 1, 3, 3])),
            ("bias".to_owned(), ramp(&[3])),
            ("dense".to_owned(), ramp(&[3, 2])),
            ("shape".to_owned(), list(&[-1, 2, 1])),
        ]
        .into(),
        inputs: vec![Value::fixed("x", ElementType::F32, &[1, 1, 4, 4])],
        outputs: vec![Value::named("y")],
        ..Graph::default()
    };
    graph.to_proto()
}

fn main_graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_option_mut().expect("the network has a graph")
}

/// Does with a file what hone does with a model; whether it was accepted.
fn digest(bytes: &[u8]) -> bool {
    let work = || -> hone::Result<()> {
        let model = Model::from_bytes(bytes, None)?;
        let graph = import(&model)?;
        graph.to_bytes()?;
        model.to_bytes()?;
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Model | ErrorKind::Unsupported), "{kind:?}: {error}");
            assert!(!error.to_string().is_empty());
            false
        }
        Err(_) => panic!("hone panicked on these bytes: {bytes:?}"),
    }
}

/// A reproducible sequence of numbers (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

#[test]
fn the_network_itself_is_sound() {
    assert!(digest(&network().encode_to_vec()));
}

#[test]
fn truncated_anywhere() {
    let bytes = network().encode_to_vec();
    let accepted = (0..bytes.len()).filter(|&end| digest(&bytes[..end])).count();
    // A cut at the border of a field after the graph and its operator sets leaves a whole model.
    assert!(accepted < 10, "{accepted} of {} prefixes were taken for models", bytes.len());
}

#[test]
fn flipped_bits() {
    let (bytes, mut numbers) = (network().encode_to_vec(), Numbers(1));
    let mut accepted = 0;
    for case in 0..CASES {
        let mut damaged = bytes.clone();
        for _ in 0..1 + case % 4 {
            damaged[numbers.below(bytes.len())] ^= 1 << numbers.below(8);
        }
        accepted += usize::from(digest(&damaged));
    }
    // Flips inside of weights and names are harmless, so both answers must occur.
    assert!(accepted > CASES / 20 && accepted < CASES, "{accepted} of {CASES}");
}

#[test]
fn spliced_and_stretched() {
    let (bytes, mut numbers) = (network().encode_to_vec(), Numbers(2));
    for _ in 0..CASES {
        let mut damaged = bytes.clone();
        let at = numbers.below(bytes.len());
        let length = 1 + numbers.below(16);
        match numbers.below(3) {
            0 => drop(damaged.splice(at..at, (0..length).map(|_| 0xff))),
            1 => drop(damaged.drain(at..bytes.len().min(at + length))),
            _ => {
                let from = numbers.below(bytes.len() - length.min(bytes.len() - 1));
                damaged.splice(at..at, bytes[from..from + length].to_vec());
            }
        }
        digest(&damaged);
    }
}

#[test]
fn not_a_model_at_all() {
    let mut numbers = Numbers(3);
    for length in [0, 1, 2, 16, 300, 5000] {
        let noise: Vec<u8> = (0..length).map(|_| numbers.below(256) as u8).collect();
        assert!(!digest(&noise));
    }
    assert!(!digest(b"<html>404 not found</html>"));
    assert!(!digest(b"version https://git-lfs.github.com/spec/v1\n"));
}

#[test]
fn the_example_with_flipped_bits() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fashion/model.onnx");
    let (bytes, mut numbers) = (fs::read(path).unwrap(), Numbers(4));
    assert!(digest(&bytes));
    // Weights make up nearly all of the file: aim at the nodes in front of them, too.
    for case in 0..200 {
        let mut damaged = bytes.clone();
        let end = if case % 2 == 0 { 8192.min(bytes.len()) } else { bytes.len() };
        damaged[numbers.below(end)] ^= 1 << numbers.below(8);
        digest(&damaged);
        digest(&bytes[..numbers.below(bytes.len())]);
    }
}

/// What hone says about the network after `change`.
fn refusal(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut model = network();
    change(&mut model);
    let model = Model::from_bytes(&model.encode_to_vec(), None).and_then(|m| import(&m));
    model.expect_err("the change must be refused").to_string()
}

fn initializer<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
    let found = main_graph(model).initializer.iter_mut().find(|t| t.name.as_deref() == Some(name));
    found.expect("the network has it")
}

#[test]
fn absurd_shapes() {
    let cases: [(&[i64], &str); 6] = [
        (&[i64::MAX, i64::MAX], "beyond any memory"),
        (&[i64::MAX], "beyond any memory"),
        (&[1 << 61], "beyond any memory"),
        (&[1 << 45], "takes 140737488355328 bytes, not 12"),
        (&[-3], "is impossible"),
        (&[i64::MIN], "is impossible"),
    ];
    for (dims, why) in cases {
        let text = refusal(|m| initializer(m, "bias").dims = dims.to_vec());
        assert!(text.contains(r#"tensor "bias""#) && text.contains(why), "{text}");
    }
    // A zero makes the product small, whatever the others are.
    let text = refusal(|m| initializer(m, "bias").dims = vec![0, i64::MAX, i64::MAX]);
    assert!(text.contains(r#"tensor "bias""#), "{text}");
}

#[test]
fn wrong_element_types() {
    for (code, why) in [
        (0, "UNDEFINED"),
        (8, "STRING"),
        (14, "COMPLEX64"),
        (17, "FLOAT8E4M3FN"),
        (22, "INT4"),
        (-1, "number -1"),
        (i32::MAX, "number 2147483647"),
    ] {
        let text = refusal(|m| initializer(m, "bias").data_type = Some(code));
        assert!(text.contains(r#"tensor "bias""#) && text.contains(why), "{text}");
    }
    let text = refusal(|m| initializer(m, "bias").data_type = Some(11));
    assert!(text.contains("of float64 takes 24 bytes, not 12"), "{text}");
}

#[test]
fn cycles_and_names() {
    let text = refusal(|m| main_graph(m).node[0].input[0] = "y".into());
    assert!(text.contains("wait for each other"), "{text}");
    let text = refusal(|m| main_graph(m).node[1].input[0] = "r".into());
    assert!(text.contains(r#"Clip node "r""#), "{text}");
    let text = refusal(|m| main_graph(m).node[1].output[0] = "c".into());
    assert!(text.contains("defined twice"), "{text}");
    let text = refusal(|m| initializer(m, "bias").name = Some("dense".into()));
    assert!(text.contains("defined twice"), "{text}");
    let text = refusal(|m| main_graph(m).node[0].input[0] = "nowhere".into());
    assert!(text.contains(r#""nowhere", which nothing provides"#), "{text}");
    let text = refusal(|m| m.opset_import.clear());
    assert!(text.contains("which version"), "{text}");
}

#[test]
fn a_long_cycle_is_found_in_linear_time() {
    let count = 100_000;
    let nodes = (0..count).map(|i| NodeProto {
        op_type: Some("Relu".into()),
        input: vec![format!("v{i}")],
        output: vec![format!("v{}", (i + 1) % count)],
        ..NodeProto::default()
    });
    let text = refusal(|m| main_graph(m).node.extend(nodes));
    assert!(text.contains("wait for each other") && text.len() < 1000, "{text}");
}

#[test]
fn subgraphs_deeper_than_any_stack() {
    // Each level is Model > graph > node > attribute > graph ...: the bytes of the inside grow
    // linearly, so the message is written from the inside out by hand.
    let field = |number: u8, inside: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        let mut length = inside.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(inside);
        bytes
    };
    let mut graph = Vec::new();
    for _ in 0..2000 {
        let attribute = field(6, &graph); // AttributeProto.g
        let node = field(5, &attribute); // NodeProto.attribute
        graph = field(1, &node); // GraphProto.node
    }
    let model = field(7, &graph); // ModelProto.graph
    let error = Model::from_bytes(&model, None).unwrap_err().to_string();
    assert!(error.contains("recursion limit"), "{error}");
}

#[test]
fn many_empty_messages_do_not_fill_the_memory() {
    // Two bytes each in the file, hundreds in memory.
    let graph: Vec<u8> = [0x0a, 0x00].repeat(40 << 20);
    let mut model = vec![0x3a];
    let mut length = graph.len();
    while length >= 0x80 {
        model.push(length as u8 | 0x80);
        length >>= 7;
    }
    model.push(length as u8);
    model.extend(graph);
    let error = Model::from_bytes(&model, None).unwrap_err().to_string();
    assert!(error.contains("memory"), "{error}");
}

#[test]
fn operator_sets_from_other_times() {
    for version in [i64::MIN, -1, 0, 8, 29, i64::MAX] {
        let import = OperatorSetIdProto { version: Some(version), ..OperatorSetIdProto::default() };
        let text = refusal(|m| m.opset_import = vec![import]);
        assert!(text.contains("hone reads 9 to 28"), "{text}");
    }
}

/// The network in `folder`, with its bias in another file as `entries` say.
fn with_external_bias(folder: &Path, entries: &[(&str, &str)]) -> hone::Result<Graph> {
    let mut model = network();
    let bias = initializer(&mut model, "bias");
    bias.raw_data = None;
    bias.data_location = Some(DataLocation::EXTERNAL);
    let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
        ..StringStringEntryProto::default()
    };
    bias.external_data = entries.iter().map(entry).collect();
    let path = folder.join("model.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    let model = Model::load(&path)?;
    model.save(folder.join("copy.onnx"))?;
    import(&model)
}

#[test]
fn external_data_stays_in_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("models");
    fs::create_dir(&folder).unwrap();
    let secret = outer.path().join("secret");
    fs::write(&secret, [7; 64]).unwrap();
    fs::write(folder.join("data"), [0; 20]).unwrap();
    symlink(&secret, folder.join("link")).unwrap();
    symlink(outer.path(), folder.join("up")).unwrap();
    symlink("/dev/zero", folder.join("zero")).unwrap();
    fs::hard_link(&secret, folder.join("hard")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(folder.join("fifo")).status().unwrap();
    assert!(fifo.success());

    assert!(with_external_bias(&folder, &[("location", "data"), ("offset", "8")]).is_ok());
    fs::remove_file(folder.join("copy.onnx")).unwrap();
    fs::remove_file(folder.join("copy.onnx.data")).unwrap();

    let absolute = secret.display().to_string();
    let cases: [(&[(&str, &str)], &str); 19] = [
        (&[("location", "../secret")], "leads out"),
        (&[("location", "a/../../secret")], "leads out"),
        (&[("location", "data/..")], "leads out"),
        (&[("location", &absolute)], "absolute"),
        (&[("location", "/dev/zero")], "absolute"),
        (&[("location", "..\\secret")], "not a plain path"),
        (&[("location", "link")], "follows no links"),
        (&[("location", "up/secret")], "follows no links"),
        (&[("location", "zero")], "follows no links"),
        (&[("location", "hard")], "hard link"),
        (&[("location", "fifo")], "not a regular file"),
        (&[("location", "missing")], "cannot be read"),
        (&[("location", "*/_ORT_MEM_ADDR_/*")], "cannot be read"),
        (&[("offset", "0")], "no location"),
        (&[("location", "data"), ("offset", "12")], "which has only 20"),
        (&[("location", "data"), ("offset", "18446744073709551615")], "which has only 20"),
        (&[("location", "data"), ("offset", "-8")], "no byte count"),
        (&[("location", "data"), ("length", "8")], "takes 12 bytes"),
        (&[("location", "data"), ("length", "twelve")], "no byte count"),
    ];
    for (entries, why) in cases {
        let error = with_external_bias(&folder, entries).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(why) && text.contains(r#"tensor "bias""#), "{entries:?}: {text}");
        assert!(text.contains("model.onnx"), "the file is named: {text}");
        assert!(matches!(error.kind(), ErrorKind::Model | ErrorKind::Io), "{:?}", error.kind());
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("copy") && !name.starts_with('.'), "{entries:?} left {name}");
        }
    }
    assert_eq!(fs::read(&secret).unwrap(), [7; 64]);
}

#[test]
fn external_data_without_a_file_is_refused() {
    let mut model = network();
    let bias = initializer(&mut model, "bias");
    bias.raw_data = None;
    bias.data_location = Some(DataLocation::EXTERNAL);
    bias.external_data = vec![StringStringEntryProto {
        key: Some("location".into()),
        value: Some("data".into()),
        ..StringStringEntryProto::default()
    }];
    assert!(!digest(&model.encode_to_vec()));
}
