//! The rule table: for each operator the function that forms the cotangents of its inputs from
//! the cotangents of its outputs, x̄ = (∂f/∂x)ᵀ ȳ. One file per family of operators.
//!
//! A rule reads the forward operands (`x`, `y`), the cotangent of the output (`g` = ȳ) and gives
//! each input its share; shares are summed over broadcast axes where they arrive. Where a
//! derivative can be had from the output it is, so that the runtime may still fuse the operator
//! with its producer. At a kink any subgradient is right.

mod activation;
mod broadcast;
mod conv;
mod elementwise;
mod index;
mod matmul;
mod norm;
mod pool;
mod reduce;
mod resize;
mod shape;
mod window;

use super::walk::Pullback;
use crate::error::{Result, bail};

/// Gives the inputs of a node their cotangents.
pub(super) type Rule = fn(&mut Pullback) -> Result<()>;

/// What is known of the derivative of an operator.
pub(super) enum Derivative {
    /// It is formed by this rule.
    Rule(Rule),
    /// It is zero almost everywhere, or the outputs are not floats.
    Zero,
    /// Nobody wrote it down.
    None,
}

/// Looks up an operator of `domain` (empty for `ai.onnx`).
pub(super) fn derivative(op: &str, domain: &str) -> Derivative {
    if !matches!(domain, "" | "ai.onnx") {
        return Derivative::None;
    }
    if ZERO.contains(&op) {
        return Derivative::Zero;
    }
    let rule: Rule = match op {
        // elementwise
        "Abs" => elementwise::abs,
        "Acos" => elementwise::acos,
        "Acosh" => elementwise::acosh,
        "Asin" => elementwise::asin,
        "Asinh" => elementwise::asinh,
        "Atan" => elementwise::atan,
        "Atanh" => elementwise::atanh,
        "Cos" => elementwise::cos,
        "Cosh" => elementwise::cosh,
        "Erf" => elementwise::erf,
        "Exp" => elementwise::exp,
        "Log" => elementwise::log,
        "Neg" => elementwise::neg,
        "Reciprocal" => elementwise::reciprocal,
        "Sin" => elementwise::sin,
        "Sinh" => elementwise::sinh,
        "Sqrt" => elementwise::sqrt,
        "Tan" => elementwise::tan,
        "Tanh" => elementwise::tanh,
        // activation
        "Celu" => activation::celu,
        "Clip" => activation::clip,
        "Elu" => activation::elu,
        "Gelu" => activation::gelu,
        "HardSigmoid" => activation::hard_sigmoid,
        "HardSwish" => activation::hard_swish,
        "LeakyRelu" => activation::leaky_relu,
        "LogSoftmax" => activation::log_softmax,
        "Mish" => activation::mish,
        "PRelu" => activation::prelu,
        "Relu" => activation::relu,
        "Selu" => activation::selu,
        "Sigmoid" => activation::sigmoid,
        "Softmax" => activation::softmax,
        "Softplus" => activation::softplus,
        "Softsign" => activation::softsign,
        "Swish" => activation::swish,
        "ThresholdedRelu" => activation::thresholded_relu,
        // broadcast
        "Add" => broadcast::add,
        "Div" => broadcast::div,
        "Max" | "Min" => broadcast::extremum,
        "Mean" => broadcast::mean,
        "Mul" => broadcast::mul,
        "Pow" => broadcast::pow,
        "Sub" => broadcast::sub,
        "Sum" => broadcast::sum,
        "Where" => broadcast::choose,
        // matmul
        "Gemm" => matmul::gemm,
        "MatMul" => matmul::matmul,
        // conv
        "Conv" => conv::conv,
        "ConvTranspose" => conv::conv_transpose,
        // pool
        "AveragePool" => pool::average_pool,
        "GlobalAveragePool" => pool::global_average_pool,
        "GlobalMaxPool" => pool::global_max_pool,
        "MaxPool" => pool::max_pool,
        // norm
        "BatchNormalization" => norm::batch,
        "GroupNormalization" => norm::group,
        "InstanceNormalization" => norm::instance,
        "LayerNormalization" => norm::layer,
        "LpNormalization" => norm::lp,
        "RMSNormalization" => norm::root_mean_square,
        // reduce
        "CumSum" => reduce::cumulative_sum,
        "ReduceL1" => reduce::l1,
        "ReduceL2" => reduce::l2,
        "ReduceLogSum" => reduce::log_sum,
        "ReduceLogSumExp" => reduce::log_sum_exp,
        "ReduceMax" | "ReduceMin" => reduce::extremum,
        "ReduceMean" => reduce::mean,
        "ReduceProd" => reduce::product,
        "ReduceSum" => reduce::sum,
        "ReduceSumSquare" => reduce::sum_square,
        // shape
        "Cast" | "CastLike" | "Identity" => shape::pass,
        "Concat" => shape::concat,
        "DepthToSpace" => shape::depth_to_space,
        "Dropout" => shape::dropout,
        "Expand" => shape::pass,
        "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => shape::reshape,
        "Pad" => shape::pad,
        "Resize" => resize::resize,
        "Slice" => shape::slice,
        "SpaceToDepth" => shape::space_to_depth,
        "Split" => shape::split,
        "Tile" => shape::tile,
        "Transpose" => shape::transpose,
        "Trilu" => shape::trilu,
        // index
        "Gather" => index::gather,
        "GatherElements" => index::gather_elements,
        "GatherND" => index::gather_nd,
        "ScatterElements" => index::scatter_elements,
        "ScatterND" => index::scatter_nd,
        "TopK" => index::top_k,
        _ => return Derivative::None,
    };
    Derivative::Rule(rule)
}

/// An axis counted from the front of `rank` axes.
fn axis(axis: i64, rank: usize) -> Result<usize> {
    let counted = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(counted) {
        Ok(a) if a < rank => Ok(a),
        _ => bail!(Model, "axis {axis} of a value with {rank} axes"),
    }
}

/// Operators through which no gradient flows: step functions, comparisons, shapes, indices,
/// random numbers, and everything whose outputs are not floats.
const ZERO: &[&str] = &[
    "And",
    "ArgMax",
    "ArgMin",
    "Bernoulli",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "EyeLike",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Multinomial",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "Or",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
];
