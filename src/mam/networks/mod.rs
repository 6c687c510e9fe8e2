//! Networks that hone builds for training, as ONNX: residual perceptrons, a transformer over the
//! sites, and a convolutional net.
//!
//! A net is a trunk, one file each, that turns the masked row into features of the whole row or of
//! each site ([`Features`]), and a head that makes logits or log p of them ([`heads`]); what both
//! are made of is in [`builder`]. θ and φ are separate nets of the same kind. A residual layer is
//! h ← h + a(W h + b) with a = LeakyReLU and W a matrix or a convolution. Before its first step a
//! net is nearly the model of independent sites, whatever its trunk.

mod builder;
mod conv;
mod heads;
mod mlp;
mod transformer;

use crate::error::{Result, bail};
use crate::mam::contract::{Contract, LOG_P, LOGITS};
use crate::onnx::Graph;
use crate::tensor::{ElementType, Tensor};
use builder::Net;

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Residual perceptrons over the one-hot row.
    #[default]
    Mlp,
    /// A transformer over the sites.
    Transformer {
        /// Heads of its attention, which divide the width.
        heads: usize,
    },
    /// 3×3 convolutions over rows that are laid out in two sides.
    Conv {
        /// Whether opposite edges are neighbours and no site is told from others.
        torus: bool,
    },
}

/// The size of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Units of a hidden layer; of a transformer per site, of a convolutional net channels.
    pub hidden: usize,
    /// Hidden layers, at least 1.
    pub layers: usize,
}

/// What a trunk makes of a masked row: names of values.
enum Features {
    /// `[B, hidden]`.
    Row(String),
    /// `[B, L, hidden]`.
    Sites(String),
}

impl Network {
    /// A size that suits this network.
    pub fn usual_size(self) -> Size {
        match self {
            Network::Mlp => Size { hidden: 256, layers: 3 },
            Network::Transformer { .. } => Size { hidden: 64, layers: 3 },
            Network::Conv { .. } => Size { hidden: 32, layers: 4 },
        }
    }

    /// An error of kind `Usage` for a size that this network cannot have.
    pub fn check_size(self, size: Size) -> Result<()> {
        if size.hidden == 0 || size.layers == 0 || size.hidden > 1 << 16 || size.layers > 64 {
            bail!(Usage, "a net has 1 to 64 layers of 1 to 65536 units");
        }
        match self {
            Network::Transformer { heads } if heads == 0 || !size.hidden.is_multiple_of(heads) => {
                bail!(Usage, "{heads} heads do not divide {} units per site", size.hidden)
            }
            _ => Ok(()),
        }
    }

    fn trunk(self, net: &mut Net, size: Size) -> Result<Features> {
        self.check_size(size)?;
        Ok(match self {
            Network::Mlp => Features::Row(mlp::trunk(net, size)),
            Network::Transformer { heads } => Features::Sites(transformer::trunk(net, size, heads)),
            Network::Conv { torus } => Features::Sites(conv::trunk(net, size, torus)?),
        })
    }

    /// Whether sites are told from each other.
    fn knows_places(self) -> bool {
        self != Network::Conv { torus: true }
    }
}

/// φ: `x` to `logits` `[B, L, K]`; `log_p[i][k]` are the log-frequencies of site i.
///
/// Errors (`Usage`): those of [`Network::check_size`]; rows without two sides for convolutions.
pub fn conditional(
    contract: &Contract,
    network: Network,
    size: Size,
    log_p: &[Vec<f64>],
    seed: u64,
) -> Result<Graph> {
    let mut net = Net::new(contract, "phi", seed);
    let features = network.trunk(&mut net, size)?;
    let log_p = frequencies(network, log_p, contract);
    heads::conditional(&mut net, &features, size, &log_p, network.knows_places());
    Ok(net.finished(LOGITS, &[contract.length, contract.vocab]))
}

/// θ: `x` to `log_p` `[B]`, which starts at `log_z` when nothing is known.
///
/// Errors (`Usage`): those of [`Network::check_size`]; rows without two sides for convolutions.
pub fn marginal(
    contract: &Contract,
    network: Network,
    size: Size,
    log_p: &[Vec<f64>],
    log_z: f64,
    seed: u64,
) -> Result<Graph> {
    let mut net = Net::new(contract, "theta", seed);
    let features = network.trunk(&mut net, size)?;
    let log_p = frequencies(network, log_p, contract);
    heads::marginal(&mut net, &features, size, &log_p, log_z, network.knows_places());
    Ok(net.finished(LOG_P, &[]))
}

/// Both nets in one graph, which share the input and what is made of it alone.
pub fn joint(phi: &Graph, theta: &Graph) -> Graph {
    let mut both = phi.clone();
    both.name = "mam".into();
    let shared: Vec<Vec<String>> = phi.nodes.iter().map(|n| n.outputs.clone()).collect();
    both.nodes.extend(theta.nodes.iter().filter(|n| !shared.contains(&n.outputs)).cloned());
    both.initializers.extend(theta.initializers.clone());
    both.outputs = theta.outputs.iter().chain(&phi.outputs).cloned().collect();
    both
}

/// Lets θ's trunk start as φ's: what φ has learnt to see in a row is what θ needs to.
pub fn start_trunk(phi: &Graph, theta: &mut Graph) {
    for (name, tensor) in &phi.initializers {
        let Some(rest) = name.strip_prefix("phi.").filter(|r| !r.starts_with("head.")) else {
            continue;
        };
        let own = theta.initializers.get_mut(&format!("theta.{rest}"));
        own.into_iter().for_each(|own| *own = tensor.clone());
    }
}

/// Names of the trained tensors of a net: its weights and biases.
pub fn trained(net: &Graph) -> Vec<String> {
    let float = |t: &Tensor| t.element_type() == ElementType::F32;
    let of_net = |name: &str| name.starts_with("phi.") || name.starts_with("theta.");
    let named = net.initializers.iter().filter(|(name, t)| of_net(name) && float(t));
    named.map(|(name, _)| name.clone()).collect()
}

/// Log-probabilities of all K values of each site, of what a site cannot have very low; the mean
/// over sites where they are not told from each other.
fn frequencies(network: Network, log_p: &[Vec<f64>], contract: &Contract) -> Vec<Vec<f32>> {
    let padded = |site: &Vec<f64>| {
        let impossible = std::iter::repeat_n(-20.0, contract.vocab - site.len());
        site.iter().map(|&l| l as f32).chain(impossible).collect::<Vec<f32>>()
    };
    let sites: Vec<Vec<f32>> = log_p.iter().map(padded).collect();
    if network.knows_places() {
        return sites;
    }
    let mean = |k: usize| sites.iter().map(|site| site[k]).sum::<f32>() / sites.len() as f32;
    let mean: Vec<f32> = (0..contract.vocab).map(mean).collect();
    vec![mean; sites.len()]
}
