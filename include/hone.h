/**
 * \file hone.h
 * hone.h - the C API of hone, which compresses ONNX models with second-order information.
 *
 * Names        hone_<noun>_<verb>; parameters: handle, inputs, options, out.
 * Ownership    What comes out through `out` is yours: give it to its `_free` once, in any order
 *              with others. Every other pointer the library returns is borrowed from the handle
 *              you asked, or static. No string ever has to be freed. `_free(NULL)` is fine.
 * Errors       A function that can fail returns NULL on success, else a `hone_error` that is
 *              yours. Outputs are written, and observers taken, on success only. A NULL where
 *              something must be is HONE_CODE_INVALID_ARGUMENT, never a crash.
 * Threads      Every function may be called from any thread at any time; only `_free` comes last
 *              on its handle. The library's own threads block all signals. After fork() a child
 *              gets HONE_CODE_UNAVAILABLE from an engine, gradients or an optimizer made before
 *              and from what belongs to that engine, never a hang.
 * Strings      UTF-8 (paths: any bytes), ending in NUL, read before the call returns.
 * Options      Structs start with `size`; zero is the default of every field, NULL that of the
 *              struct. Write them as { .size = sizeof(hone_prune_options), .sparsity = 0.9 }.
 *              Enumerations travel in as uint32_t.
 * Buffers      Views of your memory: read, and written, before the call returns. What is written
 *              must not overlap what is read.
 * Jobs         Work of more than moments (hone_prune, hone_finetune, hone_evaluate, hone_mam_train,
 *              hone_scorer_check) is submitted, then waited for (`hone_job_wait`), polled
 *              (`hone_job_fd`), or observed; everything else is done when it returns.
 * Observers    {call, drop, context}: `drop` runs exactly once, after the last `call`.
 * Host         Nothing is printed, no signal handler is set, the library is not to be unloaded.
 */

#ifndef HONE_H
#define HONE_H

/* Made from ffi/src by cbindgen; `HONE_BLESS=1 cargo test -p hone-header` renews it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The version of this header. */
#define HONE_VERSION_MAJOR 0
/** See HONE_VERSION_MAJOR. */
#define HONE_VERSION_MINOR 1
/** See HONE_VERSION_MAJOR. */
#define HONE_VERSION_PATCH 0
/** The version of this header as 0x00MMmmpp; compare with hone_version_number(). */
#define HONE_VERSION_NUMBER \
    ((HONE_VERSION_MAJOR << 16) | (HONE_VERSION_MINOR << 8) | HONE_VERSION_PATCH)

/** What a caller must look at. */
#if defined(__GNUC__)
#define HONE_MUST_USE __attribute__((warn_unused_result))
#else
#define HONE_MUST_USE
#endif

/** What the library offers. */
#if defined(_WIN32) && !defined(HONE_STATIC)
#define HONE_API __declspec(dllimport)
#else
#define HONE_API
#endif


/// As `block`: one Fisher block for each whole layer.
#define HONE_BLOCK_LAYER UINT32_MAX

/// What kind of thing went wrong. New codes may be added.
typedef enum {
    /// Nothing.
    HONE_CODE_OK = 0,
    /// An argument or option that cannot be used: NULL, out of range, not UTF-8, an unknown name.
    HONE_CODE_INVALID_ARGUMENT = 1,
    /// A file that cannot be read or written.
    HONE_CODE_IO = 2,
    /// A model that is malformed or breaks the rules of ONNX.
    HONE_CODE_INVALID_MODEL = 3,
    /// A sound model that uses something hone has no rule for, or an option this build lacks.
    HONE_CODE_UNSUPPORTED = 4,
    /// Samples, labels or gradients that do not fit, or are not finite.
    HONE_CODE_INVALID_DATA = 5,
    /// ONNX Runtime is missing, too old, or refused the model.
    HONE_CODE_RUNTIME = 6,
    /// The requested device is not available.
    HONE_CODE_DEVICE = 7,
    /// The memory limit cannot be kept, or memory is short.
    HONE_CODE_MEMORY = 8,
    /// A request that has no answer in floating point; the message says which damping has one.
    HONE_CODE_NUMERICS = 9,
    /// The caller asked to stop.
    HONE_CODE_CANCELLED = 10,
    /// The call does not go with the state of things, such as the report of a running job.
    HONE_CODE_CONFLICT = 11,
    /// Not to be had any more, or not here: a closed engine, a forked child.
    HONE_CODE_UNAVAILABLE = 12,
    /// A bug in hone: a panic that was caught. Please report it.
    HONE_CODE_INTERNAL = 13,
} hone_code;

/// How much a log line matters.
typedef enum {
    /// Nothing is logged.
    HONE_LOG_LEVEL_OFF = 0,
    /// A bug, or something the library could not return as an error.
    HONE_LOG_LEVEL_ERROR = 1,
    /// Something is odd, such as a fallback that was taken.
    HONE_LOG_LEVEL_WARN = 2,
    /// Something happened.
    HONE_LOG_LEVEL_INFO = 3,
    /// Details, for those who look into a problem; messages of ONNX Runtime among them.
    HONE_LOG_LEVEL_DEBUG = 4,
    /// Everything.
    HONE_LOG_LEVEL_TRACE = 5,
} hone_log_level;

/// Where a job is in its life.
typedef enum {
    /// Waiting for a thread.
    HONE_JOB_STATE_QUEUED = 0,
    /// Being worked on.
    HONE_JOB_STATE_RUNNING = 1,
    /// Done; its report is ready.
    HONE_JOB_STATE_COMPLETED = 2,
    /// Stopped on request.
    HONE_JOB_STATE_CANCELLED = 3,
    /// Stopped by an error.
    HONE_JOB_STATE_FAILED = 4,
} hone_job_state;

/// Element types, numbered as in ONNX and ONNX Runtime.
typedef enum {
    /// IEEE 754 binary32.
    HONE_DTYPE_F32 = 1,
    /// 0 to 255.
    HONE_DTYPE_U8 = 2,
    /// Two's complement of 1 byte.
    HONE_DTYPE_I8 = 3,
    /// Unsigned, 2 bytes.
    HONE_DTYPE_U16 = 4,
    /// Two's complement of 2 bytes.
    HONE_DTYPE_I16 = 5,
    /// Two's complement of 4 bytes.
    HONE_DTYPE_I32 = 6,
    /// Two's complement of 8 bytes.
    HONE_DTYPE_I64 = 7,
    /// One byte, 0 or not.
    HONE_DTYPE_BOOL = 9,
    /// IEEE 754 binary16.
    HONE_DTYPE_F16 = 10,
    /// IEEE 754 binary64.
    HONE_DTYPE_F64 = 11,
    /// Unsigned, 4 bytes.
    HONE_DTYPE_U32 = 12,
    /// Unsigned, 8 bytes.
    HONE_DTYPE_U64 = 13,
    /// The upper half of a binary32.
    HONE_DTYPE_BF16 = 16,
} hone_dtype;

/// Where models run.
typedef enum {
    /// The processor.
    HONE_DEVICE_CPU = 0,
    /// The first CUDA device; an error where there is none.
    HONE_DEVICE_CUDA = 1,
    /// The first CUDA device where there is one, else the processor, with a warning in the log.
    HONE_DEVICE_AUTO = 2,
} hone_device;

/// How weights are chosen.
typedef enum {
    /// By second-order saliency (M-FAC); the others move to make up for them.
    HONE_METHOD_MFAC = 0,
    /// By absolute value, as a baseline.
    HONE_METHOD_MAGNITUDE = 1,
} hone_method;

/// How far one threshold reaches.
typedef enum {
    /// All layers together: layers that matter less lose more.
    HONE_SCOPE_GLOBAL = 0,
    /// The same sparsity in each layer.
    HONE_SCOPE_LAYER = 1,
} hone_scope;

/// How the surviving weights make up for the removed ones.
typedef enum {
    /// The exact optimum for the removed set.
    HONE_UPDATE_JOINT = 0,
    /// The sum of single-weight updates, as published.
    HONE_UPDATE_INDEPENDENT = 1,
} hone_update;

/// What is differentiated for the Fisher.
typedef enum {
    /// Random cotangents on the outputs, centred over the classes; needs no labels.
    HONE_SEED_OUTPUTS = 0,
    /// Random cotangents as they come.
    HONE_SEED_GAUSSIAN = 1,
    /// Cross-entropy with the labels of the samples.
    HONE_SEED_LABELS = 2,
    /// Cross-entropy with labels drawn from the model.
    HONE_SEED_SAMPLED = 3,
    /// Half the mean squared distance to the targets of the samples.
    HONE_SEED_MSE = 4,
    /// The output itself is the loss.
    HONE_SEED_SCALAR = 5,
} hone_seed;

/// A choice that may be left to hone.
typedef enum {
    /// As hone sees fit.
    HONE_CHOICE_AUTO = 0,
    /// Yes.
    HONE_CHOICE_ON = 1,
    /// No.
    HONE_CHOICE_OFF = 2,
} hone_choice;

/// The format in which gradients are kept.
typedef enum {
    /// 4 bytes a number, exact.
    HONE_STORAGE_F32 = 0,
    /// 2 bytes a number, relative rounding 2^-11; each gradient is scaled by a power of two.
    HONE_STORAGE_F16 = 1,
    /// 2 bytes a number, relative rounding 2^-8.
    HONE_STORAGE_BF16 = 2,
} hone_storage;

/// The direction an optimizer takes. η is the learning rate, β the momentum, g the gradient.
typedef enum {
    /// v ← βv + (1 − β)·F⁻¹g, w ← w − ηv, F⁻¹ of a sliding window of the latest gradients.
    HONE_OPTIMIZER_METHOD_MFAC = 0,
    /// v ← βv + g, w ← w − ηv.
    HONE_OPTIMIZER_METHOD_SGD = 1,
    /// Adam with bias correction.
    HONE_OPTIMIZER_METHOD_ADAM = 2,
} hone_optimizer_method;

/// How the weight decay enters.
typedef enum {
    /// Coupled for a `hone_optimizer`, decoupled for a fine-tuning job.
    HONE_DECAY_AUTO = 0,
    /// Added to the gradient: g + decay·w.
    HONE_DECAY_COUPLED = 1,
    /// Taken off the weights beside the step: w − η·decay·w.
    HONE_DECAY_DECOUPLED = 2,
} hone_decay;

/// The learning rate over the steps after the warm-up, as a factor of its peak.
typedef enum {
    /// Constant for a `hone_optimizer`, cosine for a fine-tuning job.
    HONE_SCHEDULE_AUTO = 0,
    /// Always 1.
    HONE_SCHEDULE_CONSTANT = 1,
    /// From 1 down to 0 along a line over `schedule_steps`, or over the job.
    HONE_SCHEDULE_LINEAR = 2,
    /// From 1 down to 0 along half a cosine over `schedule_steps`, or over the job.
    HONE_SCHEDULE_COSINE = 3,
    /// Multiplied by `schedule_factor` after each `schedule_steps`.
    HONE_SCHEDULE_STAIRS = 4,
} hone_schedule;

/// By which half of a marginalization model a question is answered.
typedef enum {
    /// By θ where it sums to one by construction, else by φ.
    HONE_HALF_AUTO = 0,
    /// By θ: one pass. What θ says is a likelihood only as far as it sums to one, which training
    /// brings about approximately; its differences between rows need no such caution.
    HONE_HALF_THETA = 1,
    /// By chains of φ, averaged over orders: a lower bound, in expectation.
    HONE_HALF_PHI = 2,
} hone_half;

/// What is minimised.
typedef enum {
    /// Cross-entropy where the samples have class labels, the squared error where they have
    /// targets.
    HONE_LOSS_AUTO = 0,
    /// Cross-entropy with class labels.
    HONE_LOSS_CROSS_ENTROPY = 1,
    /// Half the mean squared distance to targets.
    HONE_LOSS_MSE = 2,
} hone_loss;

/// Which tensors are trained.
typedef enum {
    /// Weights, biases, scales of norms and embeddings.
    HONE_TRAINED_ALL = 0,
    /// The prunable weights.
    HONE_TRAINED_WEIGHTS = 1,
} hone_trained;

/// How θ learns from φ.
typedef enum {
    /// From sums along whole rows.
    HONE_REGRESSION_TRAJECTORY = 0,
    /// From the difference of two neighbours, as published.
    HONE_REGRESSION_ONE_STEP = 1,
} hone_regression;

/// What the damping λ of M-FAC is a multiple of.
typedef enum {
    /// The identity for a `hone_optimizer` and with an absolute damping; the diagonal for a
    /// fine-tuning job otherwise.
    HONE_METRIC_AUTO = 0,
    /// The identity, as published.
    HONE_METRIC_IDENTITY = 1,
    /// P = √v̂, the root of the second moment of each weight's gradient, as in Adam: what the
    /// window has not seen moves as with Adam.
    HONE_METRIC_DIAGONAL = 2,
} hone_metric;

/// Whether the model is trained while it is pruned.
typedef enum {
    /// Not at all.
    HONE_PRUNE_SCHEDULE_ONE_SHOT = 0,
    /// In steps, with fine-tuning on the calibration samples after each: by their labels, by the
    /// outputs of the dense model, or by both.
    HONE_PRUNE_SCHEDULE_GRADUAL = 1,
} hone_prune_schedule;

/// How sparsity rises from step to step of a gradual run.
typedef enum {
    /// Geometric in the density.
    HONE_RAMP_GEOMETRIC = 0,
    /// First fast, then slow.
    HONE_RAMP_CUBIC = 1,
} hone_ramp;

/// What training from an energy minimises.
typedef enum {
    /// The balance of all parts of whole trajectories.
    HONE_ENERGY_OBJECTIVE_BALANCE = 0,
    /// REINFORCE through θ, and the consistency of single steps, as published.
    HONE_ENERGY_OBJECTIVE_REINFORCE = 1,
} hone_energy_objective;

/// What either net of a marginalization model is.
typedef enum {
    /// Residual perceptrons over the whole row.
    HONE_NETWORK_MLP = 0,
    /// A transformer over the sites.
    HONE_NETWORK_TRANSFORMER = 1,
    /// 3×3 convolutions of rows with two sides: see `shape`.
    HONE_NETWORK_CONV = 2,
} hone_network;

/// What a convolution finds beyond an edge.
typedef enum {
    /// TORUS for an Ising model, else ZERO.
    HONE_PADDING_AUTO = 0,
    /// Nothing.
    HONE_PADDING_ZERO = 1,
    /// The opposite edge; no site is told from others.
    HONE_PADDING_TORUS = 2,
} hone_padding;

/// What takes the steps of a training of marginalization models.
typedef enum {
    /// Adam with β₁ = 0.9 and β₂ = 0.99.
    HONE_MAM_OPTIMIZER_ADAM = 0,
    /// M-FAC with momentum 0.9, damped in the metric of Adam. From an energy Adam has learnt
    /// several times faster.
    HONE_MAM_OPTIMIZER_MFAC = 1,
} hone_mam_optimizer;

/// Where models run and jobs are done.
typedef struct hone_engine hone_engine;

/// An error: a code and a message. NULL is success.
typedef struct hone_error hone_error;

/// F⁻¹ = (λI + (1/m) Σ g gᵀ)⁻¹ of m gradients g, or of the diagonal blocks of that, never formed.
/// Immutable: any number of threads may ask at once.
typedef struct hone_fisher hone_fisher;

/// m gradients of d weights, one per sample: what a Fisher is made of. For the process they are
/// made in.
typedef struct hone_gradients hone_gradients;

/// A job. Its handle may be freed at any time; the job itself goes on.
typedef struct hone_job hone_job;

/// An ONNX model.
typedef struct hone_model hone_model;

/// An optimizer with its state, for the process it is made in. Steps of several threads take
/// turns.
typedef struct hone_optimizer hone_optimizer;

/// A JSON document. Its first member, `schema`, names a schema in which members are only ever
/// added.
typedef struct hone_report hone_report;

/// Samples that fit the inputs of a model, checked completely, and possibly their labels.
typedef struct hone_samples hone_samples;

/// A marginalization model, ready to answer. Immutable: any number of threads may ask at once.
///
/// Rows are int64 values, row after row, each of as many sites as `hone_scorer_length` says; −1 is
/// missing. An answer does not depend on the rows beside it. A row that has none, because a value
/// is not one of its site, say, gets NaN; asked alone, it is the error of the call.
typedef struct hone_scorer hone_scorer;

/// Receives log lines.
typedef struct {
    /// Called for each line, on any thread and from several at once; NULL for none. `target` names
    /// the part of the library, `message` is one line of UTF-8; both are valid during the call
    /// only. Must not call into hone.
    void (*call)(void *context, hone_log_level level, const char *target, const char *message);
    /// Called once, after the last `call`, when the sink has been replaced; NULL for nothing.
    void (*drop)(void *context);
    /// Passed to both.
    void *context;
} hone_log_sink;

/// How to open an engine. Zero means default.
typedef struct {
    /// sizeof(hone_engine_options)
    size_t size;
    /// What gradients and Fisher blocks of a job may take in memory, in bytes; 0 means 4 GiB.
    uint64_t memory_limit;
    /// The shared library of ONNX Runtime, 1.22 or later; NULL means HONE_ORT_DYLIB, then
    /// ORT_DYLIB_PATH, then one the process has loaded already, then beside this library, then the
    /// system's.
    const char *onnxruntime;
    /// The host's own ONNX Runtime: what its OrtGetApiBase() returns. Wins over the path; NULL for
    /// none. A process has one ONNX Runtime: the first engine's.
    const void *ort_api_base;
    /// Threads a job may use; 0 means one per core. Results do not depend on it.
    uint32_t threads;
    /// Jobs done at once; 0 means 1. The rest wait in line.
    uint32_t jobs;
    /// A `hone_device`.
    uint32_t device;
    /// Must be 0.
    uint32_t reserved;
} hone_engine_options;

/// How samples become what the model expects: x becomes (x·scale − mean)/std. Zero means default.
typedef struct {
    /// sizeof(hone_samples_options)
    size_t size;
    /// `scale_count` factors, one or one per channel; NULL means 1/255 for images, otherwise 1.
    /// Integers for a float input need one.
    const double *scale;
    /// How many.
    size_t scale_count;
    /// What is subtracted then: `mean_count` numbers, one or one per channel; NULL means 0.
    const double *mean;
    /// How many.
    size_t mean_count;
    /// What is divided by then: `std_count` numbers, one or one per channel; NULL means 1.
    const double *std;
    /// How many.
    size_t std_count;
    /// Files: the array of the archive that holds the labels; NULL means "labels", else "targets".
    const char *labels;
    /// Files: read at most so many samples; 0 means all.
    size_t limit;
    /// Files: what the samples may take in memory, in bytes; 0 means 8 GiB.
    uint64_t memory_limit;
} hone_samples_options;

/// A view of an array of the caller's: nothing here owns. Read before the call returns. This struct
/// never changes.
typedef struct {
    /// The first element; may be NULL when there are none. Needs no alignment.
    const void *data;
    /// `rank` lengths, each at least 0.
    const int64_t *shape;
    /// `rank` distances between neighbours, in elements, of any sign; NULL for row-major without
    /// gaps.
    const int64_t *strides;
    /// The number of axes, at most 16.
    uint32_t rank;
    /// A `hone_dtype`.
    uint32_t dtype;
} hone_tensor;

/// A tensor with the name of the model's input it is for.
typedef struct {
    /// UTF-8, ends in NUL.
    const char *name;
    /// The array.
    hone_tensor tensor;
} hone_named_tensor;

/// How far a job is.
typedef struct {
    /// sizeof(hone_progress): set by who owns the struct
    size_t size;
    /// What the job is at, such as "gradients"; "" before the first phase. For an observer it is
    /// valid during the call, from `hone_job_progress` as long as the job's handle.
    const char *phase;
    /// Units of the phase that are over.
    uint64_t done;
    /// Units of the phase.
    uint64_t total;
    /// Seconds since the job began, until it ended.
    double elapsed;
    /// A `hone_job_state`.
    uint32_t state;
    /// 0.
    uint32_t reserved;
} hone_progress;

/// Hears of a job's progress.
typedef struct {
    /// Called for each event, on threads of the engine (on the caller's when a job is cancelled
    /// that waits in line), one call at a time per job; NULL for none. The last event says that the
    /// job has ended. Must not block; may use every function but a waiting `hone_job_wait` for the
    /// same job. C++: must not throw.
    void (*call)(void *context, const hone_progress *progress);
    /// Called once, after the last `call` and before those who wait for the job go on; NULL for
    /// nothing. Not called when the job could not be submitted.
    void (*drop)(void *context);
    /// Passed to both; must live until `drop`.
    void *context;
} hone_observer;

/// How to prune. Zero means default.
typedef struct {
    /// sizeof(hone_prune_options)
    size_t size;
    /// The fraction of prunable weights to remove, above 0 and below 1; 0 only with an N:M pattern,
    /// which then fixes it.
    double sparsity;
    /// λ as a fraction of the layer's mean Fisher diagonal; 0 means 0.01.
    double damping;
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    double damping_absolute;
    /// Which weights go together: "N:M" such as "2:4" (at most N of M consecutive inputs stay);
    /// NULL means "unstructured".
    const char *pattern;
    /// Where the pruned model is written as soon as it is made; NULL means nowhere: see
    /// `hone_job_model`.
    const char *output;
    /// `skip_count` names of tensors to leave alone; * stands for any characters.
    const char *const *skip;
    /// How many.
    size_t skip_count;
    /// `outputs_count` names of outputs to differentiate; none means all float ones.
    const char *const *outputs;
    /// How many.
    size_t outputs_count;
    /// Samples to compare the dense and the pruned model on; NULL for none.
    const hone_samples *evaluation;
    /// Seeds the choice of samples and the random cotangents.
    uint64_t seed;
    /// What gradients and Fisher blocks may take in memory, in bytes; 0 means the engine's limit.
    uint64_t memory_limit;
    /// A `hone_method`.
    uint32_t method;
    /// A `hone_scope`.
    uint32_t scope;
    /// A `hone_update`.
    uint32_t update;
    /// A `hone_seed`: what is differentiated.
    uint32_t fisher;
    /// A `hone_choice`: whether layers get their old output statistics back after each stage.
    uint32_t match_statistics;
    /// How often the survivors of a block are scored anew; 0 means after each removed weight.
    uint32_t selection_stages;
    /// Weights per Fisher block; 0 means 128. HONE_BLOCK_LAYER means whole layers.
    uint32_t block;
    /// How often gradients are taken anew on the way to the sparsity, or in each step of a gradual
    /// run; 0 means 8, or 2 in each step.
    uint32_t stages;
    /// Gradients of each stage (m); 0 means 512.
    uint32_t gradients;
    /// Samples averaged into a gradient; 0 means 1.
    uint32_t fisher_batch;
    /// Threads; 0 means the engine's number. The result does not depend on it.
    uint32_t threads;
    /// Must be 0.
    uint32_t reserved;
    /// Who hears of the progress.
    hone_observer observer;
    /// Gradual: how often each sample is seen after each step but the last; 0 means 3.
    double tune_epochs;
    /// Gradual: training steps after each pruning step but the last; 0 means what the epochs come
    /// to.
    uint64_t tune_steps;
    /// Gradual: η at its peak, from which it falls to 0 along a cosine after each step; 0 means
    /// 0.004 for M-FAC and 0.001 for Adam and SGD.
    double learning_rate;
    /// Gradual: the share of the dense model's outputs in the loss, at most 1; 0 means a half, and
    /// all where the samples have no labels; a negative number none.
    double distill_weight;
    /// Gradual: keeps the state of the run here, also when it is cancelled, and goes on from it if
    /// it is there, to the same bits; removed at the end. NULL for none.
    const char *checkpoint;
    /// Gradual: training steps between two checkpoints; 0 means 200.
    uint64_t checkpoint_every;
    /// A `hone_prune_schedule`. Fields that say "Gradual" must be 0 unless it is that.
    uint32_t schedule;
    /// Gradual: pruning steps, up to 1000; 0 means 4.
    uint32_t steps;
    /// Gradual: a `hone_ramp`.
    uint32_t ramp;
    /// Gradual: samples per training step; 0 means 64.
    uint32_t batch;
    /// Gradual: a `hone_optimizer_method`, with the settings that a fine-tuning job has by default.
    uint32_t optimizer;
    /// Gradual: a `hone_loss`.
    uint32_t loss;
    /// Gradual: how often each sample is seen after the last step; 0 means 8 times as often, or
    /// as many steps, as after another.
    double final_epochs;
    /// Gradual: training steps after the last pruning step; 0 means what the epochs come to.
    uint64_t final_steps;
} hone_prune_options;

/// How to fine-tune. Zero means default.
typedef struct {
    /// sizeof(hone_finetune_options)
    size_t size;
    /// How often each sample is seen; 0 means 5.
    double epochs;
    /// The number of steps; 0 means what the epochs come to.
    uint64_t steps;
    /// η at its peak; 0 means 0.004 for M-FAC (1 in the metric of the identity) and 0.001 for Adam
    /// and SGD. M-FAC with `damping_absolute`, whose steps are on the scale of the gradients, needs
    /// one.
    double learning_rate;
    /// β, or β₁ of Adam, below 1; 0 means 0.9, a negative number none.
    double momentum;
    /// λ of M-FAC as a multiple of the window's mean Fisher diagonal; the direction is λF⁻¹g, so
    /// that η means what it means for SGD, or for Adam: see `metric`. 0 means 100 in the metric of
    /// the diagonal, 1 in that of the identity.
    double damping;
    /// λ of M-FAC itself, in units of a squared gradient, and the direction F⁻¹g; 0 means the
    /// multiple above.
    double damping_absolute;
    /// The weight decay; 0 means none.
    double weight_decay;
    /// See `hone_schedule`.
    double schedule_factor;
    /// Steps between two stairs; the other schedules fall over the whole run.
    uint64_t schedule_steps;
    /// Steps over which η first rises to its peak.
    uint64_t warmup_steps;
    /// Gradients longer than this are scaled down to it; 0 means none are.
    double clip;
    /// The result is an average of the weights that decays by this factor per step, such as 0.999;
    /// 0 means the latest weights.
    double average;
    /// A model to learn from as well, such as the dense one; NULL for none. Of the same inputs.
    const hone_model *distill;
    /// Its share in the loss, at most 1; 0 means 0.5. With 1 the samples need no labels.
    double distill_weight;
    /// What the logits of both are divided by before they are compared; 0 means 2.
    double temperature;
    /// The output to train; NULL means the only float one.
    const char *output_name;
    /// `train_count` names of tensors to train; * stands for any characters. None means those of
    /// `trained`.
    const char *const *train;
    /// How many.
    size_t train_count;
    /// Samples to judge the model on while it learns and at the end; NULL for none.
    const hone_samples *evaluation;
    /// Steps between two evaluations, each a line of the log and an entry of the report; 0 means a
    /// tenth of the run.
    uint64_t evaluate_every;
    /// Keeps the state of the run here, also when it is cancelled, and goes on from it if it is
    /// there, to the same bits; removed at the end. NULL for none.
    const char *checkpoint;
    /// Steps between two checkpoints; 0 means 200.
    uint64_t checkpoint_every;
    /// Where the model is written as soon as it is made; NULL means nowhere: see `hone_job_model`.
    const char *output;
    /// Seeds the order of the samples.
    uint64_t seed;
    /// Samples per step; 0 means 64.
    uint32_t batch;
    /// A `hone_optimizer_method`.
    uint32_t optimizer;
    /// Gradients in the window of M-FAC (m); 0 means 128.
    uint32_t window;
    /// A `hone_storage`: the format of the window.
    uint32_t window_storage;
    /// A `hone_decay`.
    uint32_t decay;
    /// A `hone_schedule`.
    uint32_t schedule;
    /// A `hone_loss`.
    uint32_t loss;
    /// A `hone_trained`.
    uint32_t trained;
    /// Not 0 to let zeros of prunable weights move, too.
    uint32_t free_zeros;
    /// Threads; 0 means the engine's number. The result does not depend on it.
    uint32_t threads;
    /// Who hears of the progress.
    hone_observer observer;
    /// A `hone_metric`: what λ of M-FAC is a multiple of.
    uint32_t metric;
    /// Must be 0.
    uint32_t reserved;
} hone_finetune_options;

/// How to evaluate. Zero means default.
typedef struct {
    /// sizeof(hone_evaluate_options)
    size_t size;
    /// The output to judge; NULL means the first float one.
    const char *output;
    /// Threads; 0 means the engine's number. The result does not depend on it.
    uint32_t threads;
    /// Must be 0.
    uint32_t reserved;
    /// Who hears of the progress.
    hone_observer observer;
} hone_evaluate_options;

/// How to load a scorer. Zero means default.
typedef struct {
    /// sizeof(hone_scorer_options)
    size_t size;
    /// Threads that one question uses; 0 means the engine's number. Answers do not depend on it.
    uint32_t threads;
    /// Most rows in one run of a net; 0 means 64.
    uint32_t batch;
} hone_scorer_options;

/// How to score. Zero means default.
typedef struct {
    /// sizeof(hone_score_options)
    size_t size;
    /// Seeds the orders of φ's chains.
    uint64_t seed;
    /// A byte for each cell of the rows, 0 where the value is missing whatever the row says there;
    /// NULL means that −1 alone is.
    const uint8_t *known;
    /// A `hone_half`.
    uint32_t half;
    /// Orders of φ's chains; 0 means 1. A model that was trained in one order has that one.
    uint32_t orders;
    /// log Σ_x p_θ(x), as `hone_scorer_normaliser` has it, for `hone_scorer_score` by θ: it is
    /// subtracted from the score of a complete row, which makes that a log-likelihood. A row with a
    /// missing site then has no score. 0 means that θ is taken as it is.
    double log_normaliser;
} hone_score_options;

/// How to draw. Zero means default.
typedef struct {
    /// sizeof(hone_sample_options)
    size_t size;
    /// Of the random numbers.
    uint64_t seed;
    /// The number of the first draw, so that a run in parts equals a run in one.
    uint64_t first_draw;
    /// Logits are divided by it; 0 means 1.
    double temperature;
    /// As in `hone_score_options`.
    const uint8_t *known;
    /// `order_count` sites, all of them, in the order they are filled in; NULL means a random order
    /// for each draw, and the forward one where the model was trained in that.
    const uint32_t *order;
    /// How many.
    size_t order_count;
    /// Draw from the likeliest so many values of a site only; 0 means all.
    uint32_t top_k;
    /// Sweeps that redraw what was missing, in blocks, afterwards; 0 means none.
    uint32_t sweeps;
    /// Sites in a block; 0 means 1.
    uint32_t block;
    /// Draws for each row; 0 means 1.
    uint32_t draws;
} hone_sample_options;

/// How to check a model. Zero means default.
typedef struct {
    /// sizeof(hone_check_options)
    size_t size;
    /// Seeds everything random.
    uint64_t seed;
    /// Steps (a subset of the known sites and one more) per row; 0 means 4.
    uint32_t steps;
    /// Orders of φ's chains; 0 means 5.
    uint32_t orders;
    /// Draws for the normaliser; 0 means 2048.
    uint32_t draws;
    /// Must be 0.
    uint32_t reserved;
    /// Who hears of the progress.
    hone_observer observer;
} hone_check_options;

/// How to estimate the normaliser. Zero means default.
typedef struct {
    /// sizeof(hone_normaliser_options)
    size_t size;
    /// Of the draws.
    uint64_t seed;
    /// Draws from φ, at least 2; 0 means 2048.
    uint32_t draws;
    /// Must be 0.
    uint32_t reserved;
} hone_normaliser_options;

/// log Σ_x p_θ(x) over all complete rows: 0 for a θ that sums to one. Set `size`.
typedef struct {
    /// sizeof(hone_normaliser)
    size_t size;
    /// The sum, in nats: by enumeration where the model has no more rows than draws (or 1024), else
    /// the estimate log (1/n) Σ w with w = p_θ(x)/q(x) and x drawn from q, the chains of φ.
    double log_sum;
    /// Its standard error, in nats; 0 for an enumeration.
    double error;
    /// (Σ w)² / Σ w²: how many independent draws the estimate is worth.
    double effective_draws;
    /// The share of the largest w in their sum, up to 1.
    double largest_share;
    /// Pareto k̂ of the largest w: from 0.7 on the estimate cannot be relied on. NaN where there is
    /// none: an enumeration, few draws, weights that are all alike.
    double pareto_k;
    /// Draws, or rows for an enumeration.
    uint64_t draws;
    /// 1 for an enumeration, else 0.
    uint32_t exact;
    /// 1 if it is exact, or if at least 100 draws are effective and k̂ is below 0.7; else 0.
    uint32_t reliable;
} hone_normaliser;

/// The Ising model on a torus, log f(x) = coupling·Σ_edges s_i·s_j + field·Σ_i s_i with s = 2x − 1.
typedef struct {
    /// sizeof(hone_ising)
    size_t size;
    /// Sites of a column.
    size_t rows;
    /// Sites of a row; site (r, c) is the (r·columns + c)th.
    size_t columns;
    /// K of each edge, up to 1000 in absolute value.
    double coupling;
    /// h of each site, likewise.
    double field;
} hone_ising;

/// How to train a marginalization model. Zero means default.
typedef struct {
    /// sizeof(hone_mam_train_options)
    size_t size;
    /// `held_out_count` rows that are only looked at; NULL means every tenth of the others.
    const int64_t *held_out;
    /// How many.
    size_t held_out_count;
    /// How many values sites have: `values_count` numbers, one for all sites or one for each; NULL
    /// means one more than the largest value there is.
    const size_t *values;
    /// How many.
    size_t values_count;
    /// How sites are laid out for display, such as 28, 28: `shape_count` sides; NULL for nothing.
    const size_t *shape;
    /// How many.
    size_t shape_count;
    /// η at its peak, from which it falls to 0 along a cosine; 0 means 0.001, and 0.005 for M-FAC.
    double learning_rate;
    /// Decoupled weight decay; 0 means 0.01, or none from an energy; a negative number none.
    double weight_decay;
    /// Gradients longer than this are scaled down to it; 0 means 1.
    double clip_norm;
    /// The result is an average of the weights that decays by this factor per step; 0 means 0.999,
    /// a negative number the latest weights.
    double average;
    /// Steps of stage 1, in which φ learns the conditionals of every subset; 0 means 4000.
    uint64_t conditional_steps;
    /// Steps of stage 2, in which θ learns what φ says of whole rows; 0 means 4000.
    uint64_t marginal_steps;
    /// Steps between two reports, which advance the progress, and checkpoints; 0 means 250.
    uint64_t report_every;
    /// Keeps the state here, also when the job is cancelled, and goes on from it if it is there, to
    /// the same bits; NULL for none.
    const char *checkpoint;
    /// Where the model is written as soon as it is made; NULL means nowhere: see `hone_job_model`.
    const char *output;
    /// Of everything random.
    uint64_t seed;
    /// Units of a hidden layer of either net, of a transformer per site, of a convolutional net
    /// channels; 0 means 256, 64 or 32.
    uint32_t hidden;
    /// Hidden layers; 0 means 3, and 4 for convolutions.
    uint32_t layers;
    /// Rows per step, up to 64 or a multiple of 64; 0 means 128.
    uint32_t batch;
    /// A `hone_regression`.
    uint32_t regression;
    /// Threads; 0 means the engine's number. The result does not depend on it.
    uint32_t threads;
    /// Must be 0.
    uint32_t reserved;
    /// Who hears of the progress.
    hone_observer observer;
    /// To learn log f(x) of complete rows, up to log Z, instead of rows: of an Ising model. NULL
    /// for none.
    const hone_ising *ising;
    /// The same of a graph from x (int64 `[B, L]`, values from 0) to log f (float `[B]`), see
    /// docs/mam-contract.md; `values` says how many values sites have unless its metadata does. It
    /// may be freed at once. NULL for none.
    const hone_model *energy;
    /// Steps of training from an energy; 0 means 4000.
    uint64_t energy_steps;
    /// A `hone_energy_objective`.
    uint32_t objective;
    /// A `hone_network`.
    uint32_t network;
    /// Attention heads of a transformer, which divide `hidden`; 0 means 4.
    uint32_t heads;
    /// A `hone_padding`, of convolutions.
    uint32_t padding;
    /// A `hone_mam_optimizer`.
    uint32_t optimizer;
    /// m, the gradients in the window of M-FAC, up to 4096; 0 means 32.
    uint32_t window;
    /// Damping of M-FAC, as a multiple of the mean diagonal of the Fisher matrix in Adam's metric;
    /// 0 means 100.
    double damping;
    /// A picture (SVG) of the loss and of what the reports measure, by step, is written here when
    /// the training is done; NULL for none.
    const char *curve;
    /// Up to this share of the values of a row is replaced by others before θ learns what φ says
    /// of it, so that it follows φ on rows unlike these too; 0 means 0.1, a negative number none.
    double noise;
} hone_mam_train_options;

/// How to keep gradients. Zero means default.
typedef struct {
    /// sizeof(hone_gradients_options)
    size_t size;
    /// A folder for a nameless file that holds the gradients instead of memory; NULL means memory.
    const char *folder;
    /// A `hone_storage`.
    uint32_t storage;
    /// Must be 0.
    uint32_t reserved;
} hone_gradients_options;

/// How to invert a Fisher. Zero means default.
typedef struct {
    /// sizeof(hone_fisher_options)
    size_t size;
    /// λ as a fraction of the mean Fisher diagonal; 0 means 0.01.
    double damping;
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    double damping_absolute;
    /// Weights per diagonal block of F, the last block may be shorter; 0 means one block: all of F.
    size_t block;
    /// Threads; 0 means one per core. Results do not depend on it.
    uint32_t threads;
    /// Must be 0.
    uint32_t reserved;
} hone_fisher_options;

/// A prunable tensor inside the flat vector of weights, outputs × inputs, row-major.
typedef struct {
    /// For messages; UTF-8, ends in NUL.
    const char *name;
    /// Its first weight in the flat vector.
    size_t offset;
    /// Its number of weights.
    size_t len;
    /// Weights of one output: divides `len`. Groups of an N:M pattern are consecutive inside.
    size_t row;
} hone_layer;

/// How to prune flat weights. Zero means default.
typedef struct {
    /// sizeof(hone_weights_options)
    size_t size;
    /// The fraction of zeros after the step, those before it included; 0 only with an N:M pattern.
    double sparsity;
    /// λ as a fraction of the layer's mean Fisher diagonal; 0 means 0.01.
    double damping;
    /// λ itself, in units of a squared gradient; 0 means the fraction above.
    double damping_absolute;
    /// "N:M" such as "2:4"; NULL means "unstructured".
    const char *pattern;
    /// A `hone_scope`.
    uint32_t scope;
    /// A `hone_update`.
    uint32_t update;
    /// How often the survivors of a block are scored anew; 0 means after each removed weight.
    uint32_t selection_stages;
    /// Weights per Fisher block; 0 means 128. HONE_BLOCK_LAYER means whole layers.
    uint32_t block;
    /// Threads; 0 means one per core. The result does not depend on it.
    uint32_t threads;
    /// Must be 0.
    uint32_t reserved;
} hone_weights_options;

/// How to optimize. Zero means default.
typedef struct {
    /// sizeof(hone_optimizer_options)
    size_t size;
    /// η at its peak; 0 means 0.001. See `hone_optimizer_set_learning_rate` for a rate of 0.
    double learning_rate;
    /// β, or β₁ of Adam: at least 0 and below 1; 0 means 0, and 0.9 for Adam.
    double momentum;
    /// β₂ of Adam and of the metric HONE_METRIC_DIAGONAL; 0 means 0.999.
    double beta2;
    /// ε of Adam; 0 means 1e-8.
    double epsilon;
    /// λ of M-FAC, in units of a squared gradient; 0 means 1e-5, as published.
    double damping;
    /// λ as a fraction of the window's mean Fisher diagonal, which it then follows; the direction
    /// is λF⁻¹g, so that η means what it means for SGD. 0 means the fixed λ above.
    double damping_relative;
    /// The weight decay; 0 means none.
    double weight_decay;
    /// See `hone_schedule`.
    double schedule_factor;
    /// See `hone_schedule`.
    uint64_t schedule_steps;
    /// Steps over which η first rises to its peak.
    uint64_t warmup_steps;
    /// As many bytes as there are weights, 0 where a weight stays 0; copied. NULL means no mask.
    const uint8_t *mask;
    /// A folder for a nameless file that holds the window instead of memory; NULL means memory.
    const char *folder;
    /// A `hone_optimizer_method`.
    uint32_t method;
    /// Gradients in the window of M-FAC (m); 0 means 1024. They take m·dimension·4 bytes.
    uint32_t window;
    /// A `hone_storage`: the format of the window.
    uint32_t storage;
    /// A `hone_decay`.
    uint32_t decay;
    /// A `hone_schedule`.
    uint32_t schedule;
    /// Threads; 0 means one per core. Results do not depend on it.
    uint32_t threads;
    /// A `hone_metric`: what λ of M-FAC is a multiple of.
    uint32_t metric;
    /// Must be 0.
    uint32_t reserved;
} hone_optimizer_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// The error's code; HONE_CODE_OK for NULL.
HONE_API hone_code hone_error_code(const hone_error *error);

/// The error's message, which names what is wrong and how to mend it; "" for NULL. Borrowed from
/// `error`.
HONE_API
const char *hone_error_message(const hone_error *error);

/// Frees an error. NULL is fine.
HONE_API void hone_error_free(hone_error *error);

/// The library's version, as "MAJOR.MINOR.PATCH". Static.
HONE_API const char *hone_version(void);

/// The library's version as 0x00MMmmpp, to compare with HONE_VERSION_NUMBER of the header.
HONE_API uint32_t hone_version_number(void);

/// How the library was built: a JSON object with its version, target and least ONNX Runtime.
/// Static.
HONE_API const char *hone_build_info(void);

/// Sends log lines up to `level`, a `hone_log_level`, to `sink`; to nobody if that is NULL, as at
/// the start.
///
/// Replaces the sink set before. A call to that one on another thread may still be under way when
/// this returns; its `drop` tells when its context is free.
HONE_API
HONE_MUST_USE
hone_error *hone_log_set(uint32_t level,
                         const hone_log_sink *sink);

/// The document as JSON, UTF-8; "" for NULL. Borrowed from `report`.
HONE_API const char *hone_report_json(const hone_report *report);

/// A number of the document, by its JSON pointer (RFC 6901), such as "/total/sparsity" or
/// "/layers/0/zeros".
///
/// Errors: INVALID_ARGUMENT when there is nothing at the place or it is no number (`null` is what
/// does not apply).
HONE_API
HONE_MUST_USE
hone_error *hone_report_number(const hone_report *report,
                               const char *pointer,
                               double *out);

/// Frees a report. NULL is fine.
HONE_API void hone_report_free(hone_report *report);

/// Opens an engine, and loads ONNX Runtime unless the process has done so.
///
/// `target` says where: NULL or "embedded" for this process. `options` may be NULL.
///
/// Errors: UNSUPPORTED for another target; RUNTIME when ONNX Runtime cannot be loaded (the message
/// lists what was tried; another path may be tried then); CONFLICT when the process has loaded
/// another one before.
HONE_API
HONE_MUST_USE
hone_error *hone_engine_open(const char *target,
                             const hone_engine_options *options,
                             hone_engine **out);

/// Cancels the engine's jobs, waits until their threads are gone, and frees the engine. NULL is
/// fine.
///
/// After this no observer is called any more. From within an observer it does not wait. Models,
/// samples and jobs that remain may be used and freed, but start nothing new. In a forked child it
/// frees nothing.
HONE_API
void hone_engine_free(hone_engine *engine);

/// Reads the model at `path`; its external data, if any, from files in the same folder.
///
/// Errors: IO, INVALID_MODEL, UNSUPPORTED; the message names the file. UNAVAILABLE in a forked
/// child.
HONE_API
HONE_MUST_USE
hone_error *hone_model_load(const hone_engine *engine,
                            const char *path,
                            hone_model **out);

/// Decodes the model in the `len` bytes at `data`, which are not needed afterwards.
///
/// `folder` is where its external data is looked for; NULL when it has none.
///
/// Errors: INVALID_MODEL, UNSUPPORTED, IO for external data; UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_model_from_bytes(const hone_engine *engine,
                                  const void *data,
                                  size_t len,
                                  const char *folder,
                                  hone_model **out);

/// Writes the model to `path`: the file appears whole or not at all. Where its source had external
/// data, a new data file appears beside it. Errors: IO.
HONE_API
HONE_MUST_USE
hone_error *hone_model_save(const hone_model *model,
                            const char *path);

/// The model as the bytes of an ONNX file, borrowed from `model`.
///
/// Errors: UNSUPPORTED for a model that one file does not hold; save that to a path.
HONE_API
HONE_MUST_USE
hone_error *hone_model_bytes(const hone_model *model,
                             const void **data,
                             size_t *len);

/// What the model consists of and what hone can do with it: inputs and outputs, tensors that can be
/// pruned, those that cannot and why, operators and whether gradients pass through them. Schema
/// "hone.inspect/1".
///
/// Errors: INVALID_MODEL and UNSUPPORTED for a model that hone cannot bring into its working form.
HONE_API
HONE_MUST_USE
hone_error *hone_model_inspect(const hone_model *model,
                               hone_report **out);

/// The prunable weights as one vector to `out`: the tensors that `hone_model_inspect` lists as
/// "prunable", one after the other in that order, each as the model stores it. `len` is their
/// number, "prunable_weights" of the same document.
///
/// For hosts that take gradients themselves: with the same order in `hone_gradients`,
/// `hone_weights_prune` prunes such a vector, and `hone_model_with_weights` makes it a model.
/// Half-precision weights are widened. Rows of layers and N:M patterns are those of the tensors as
/// stored, so they need weights stored outputs first (Conv, Gemm with transB).
///
/// Errors: INVALID_ARGUMENT for another `len`; else as `hone_model_inspect`.
HONE_API
HONE_MUST_USE
hone_error *hone_model_weights(const hone_model *model,
                               float *out,
                               size_t len);

/// A model like `model` with other prunable weights: `len` numbers, ordered as those of
/// `hone_model_weights`; rounded where the model stores half precision.
///
/// Errors: INVALID_ARGUMENT for another `len`, INVALID_DATA for weights that are not finite.
HONE_API
HONE_MUST_USE
hone_error *hone_model_with_weights(const hone_model *model,
                                    const float *weights,
                                    size_t len,
                                    hone_model **out);

/// Frees a model. NULL is fine; jobs and samples that use it keep what they need.
HONE_API void hone_model_free(hone_model *model);

/// Reads samples for `model` from `path`: an .npz archive with arrays named as the inputs (and
/// `labels` or `targets`), an .npy array for a model with one input, or a folder of PNG and JPEG
/// images with one sub-folder per class. `options` may be NULL.
///
/// Errors: IO, INVALID_DATA (the message names file, array and row), MEMORY.
HONE_API
HONE_MUST_USE
hone_error *hone_samples_load(const hone_model *model,
                              const char *path,
                              const hone_samples_options *options,
                              hone_samples **out);

/// Copies samples for `model` from arrays of the caller: `count` tensors, one for each input by its
/// name, whose first axes count the samples. `labels` may be NULL: integers [N] or [N, T] are class
/// indices, floats [N, ...] are targets. `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for names that are not the model's, INVALID_DATA for shapes, types and
/// values that do not fit.
HONE_API
HONE_MUST_USE
hone_error *hone_samples_from_tensors(const hone_model *model,
                                      const hone_named_tensor *inputs,
                                      size_t count,
                                      const hone_tensor *labels,
                                      const hone_samples_options *options,
                                      hone_samples **out);

/// The number of samples; 0 for NULL.
HONE_API size_t hone_samples_count(const hone_samples *samples);

/// Frees samples. NULL is fine; jobs that use them keep what they need.
HONE_API void hone_samples_free(hone_samples *samples);

/// The job's number, unique in its engine; 0 for NULL.
HONE_API uint64_t hone_job_id(const hone_job *job);

/// Waits until the job has ended or `timeout_ms` milliseconds have passed; a negative number waits
/// as long as it takes, 0 only looks. `out` (which may be NULL) says where the job is then; that
/// time is up, or that the job has failed, is no error of this call.
///
/// Errors: CONFLICT from the job's own observer, UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_job_wait(const hone_job *job,
                          int64_t timeout_ms,
                          hone_job_state *out);

/// How far the job is. Set `out->size` first. Errors: UNAVAILABLE in a forked child.
HONE_API HONE_MUST_USE hone_error *hone_job_progress(const hone_job *job, hone_progress *out);

/// A descriptor that is readable once the job has ended, for poll, epoll or an event loop; -1 for
/// NULL. Do not read from it or close it; it is open until the handle is freed and the job has
/// ended.
HONE_API
int hone_job_fd(const hone_job *job);

/// Asks the job to stop, without waiting: it ends soon, one that waits in line at once. NULL is
/// fine.
HONE_API void hone_job_cancel(const hone_job *job);

/// NULL once the job is completed, its error if it failed, CANCELLED if it was stopped; CONFLICT
/// while it has not ended.
HONE_API
HONE_MUST_USE
hone_error *hone_job_result(const hone_job *job);

/// The report of a completed job; otherwise the error that `hone_job_result` returns.
HONE_API HONE_MUST_USE hone_error *hone_job_report(const hone_job *job, hone_report **out);

/// The model that a completed job made; otherwise the error that `hone_job_result` returns, and
/// CONFLICT for a job that makes none.
HONE_API HONE_MUST_USE hone_error *hone_job_model(const hone_job *job, hone_model **out);

/// Lets go of the job's handle; the job itself goes on. NULL is fine.
HONE_API void hone_job_free(hone_job *job);

/// Submits the pruning of `model` with gradients taken on `calibration`; the job makes a model and
/// a report (schema "hone.report/1"). The model and the samples may be freed at once.
///
/// Errors are of options only; what happens later is the job's: see `hone_job_result`.
HONE_API
HONE_MUST_USE
hone_error *hone_prune(const hone_model *model,
                       const hone_samples *calibration,
                       const hone_prune_options *options,
                       hone_job **out);

/// Submits the training of `model` on `samples`; zeros of prunable weights stay zero and statistics
/// of norms are frozen. The job makes a model, which differs in the trained tensors alone, and a
/// report (schema "hone.finetune/1"). The models and the samples may be freed at once. It runs on
/// the processor, whatever the engine's device. `options` may be NULL.
///
/// Errors are of options only; what happens later is the job's: see `hone_job_result`. A checkpoint
/// of another run is an error of the job, INVALID_ARGUMENT.
HONE_API
HONE_MUST_USE
hone_error *hone_finetune(const hone_model *model,
                          const hone_samples *samples,
                          const hone_finetune_options *options,
                          hone_job **out);

/// Submits the evaluation of `model` on `samples`: its accuracy and cross-entropy where these have
/// class labels, and how far its outputs are from those of `reference` unless that is NULL. The job
/// makes a report (schema "hone.evaluation/1"). Models are computed in float32.
///
/// Errors are of options only, and INVALID_DATA when there are neither labels nor a reference.
HONE_API
HONE_MUST_USE
hone_error *hone_evaluate(const hone_model *model,
                          const hone_model *reference,
                          const hone_samples *samples,
                          const hone_evaluate_options *options,
                          hone_job **out);

/// Makes a scorer of `model`, and of `other` if the halves are in two files (NULL if not). The
/// models must keep the contract of marginalization models (docs/mam-contract.md), and may be freed
/// at once. `options` may be NULL. It runs a few rows to see that the model does what it says.
///
/// Errors: INVALID_MODEL, also for a model that breaks the contract; RUNTIME, DEVICE; UNAVAILABLE
/// in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_new(const hone_model *model,
                            const hone_model *other,
                            const hone_scorer_options *options,
                            hone_scorer **out);

/// The number of sites of a row; 0 for NULL.
HONE_API size_t hone_scorer_length(const hone_scorer *scorer);

/// The number of values of the site that has most; 0 for NULL.
HONE_API size_t hone_scorer_vocab(const hone_scorer *scorer);

/// What the model is: halves, sites and values, log Z, and what is odd about it. Schema
/// "hone.scorer/1".
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_inspect(const hone_scorer *scorer,
                                hone_report **out);

/// log p of the known sites of each of `count` rows to `out` (`count` numbers), in nats. `options`
/// may be NULL.
///
/// Once there was a call as large, by the same half, for each thread that asks at the same time, it
/// allocates nothing beside what ONNX Runtime does: by θ and by φ, on any number of threads, for as
/// many rows as 128 MiB of working memory are enough for (at least a million by θ, half a million
/// by φ with few orders). So much is kept at most for each thread that asks at the same time, and
/// threads that help wait for the next call.
///
/// Errors: INVALID_ARGUMENT for a half that the model lacks, INVALID_DATA for a single row that
/// does not fit; UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_score(const hone_scorer *scorer,
                              const int64_t *rows,
                              size_t count,
                              const hone_score_options *options,
                              double *out);

/// log p of the other known sites of each row given those at which `given` (a byte for each cell of
/// the rows) is not 0, to `out` (`count` numbers), in nats. Errors as `hone_scorer_score`.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_condition(const hone_scorer *scorer,
                                  const int64_t *rows,
                                  const uint8_t *given,
                                  size_t count,
                                  const hone_score_options *options,
                                  double *out);

/// The distribution of every site of each row given its known ones, to `out`: log p of
/// `count`·length·vocab numbers, values running fastest. A known site has 0 at its value and −∞
/// elsewhere, and so have values that a site lacks.
///
/// Each distribution is of its site alone: their product is not the joint one of several. `options`
/// may be NULL; of them `half` and `known` count, and the usual half is φ where the model has it.
/// Errors as `hone_scorer_score`.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_distributions(const hone_scorer *scorer,
                                      const int64_t *rows,
                                      size_t count,
                                      const hone_score_options *options,
                                      double *out,
                                      size_t len);

/// Draws `count` rows from φ: to `out` (`count`·length numbers), and log of the probability of each
/// along its order to `log_q` (`count` numbers, or NULL). `options` may be NULL; `known`, `draws`
/// and `sweeps` have no meaning here and must be 0.
///
/// The same seed gives the same draws for any number of threads. Errors: INVALID_ARGUMENT for a
/// model without φ and for options out of their range; UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_sample(const hone_scorer *scorer,
                               size_t count,
                               const hone_sample_options *options,
                               int64_t *out,
                               double *log_q);

/// Completes each of `count` rows by draws from φ given its known sites, `draws` of them one after
/// the other: the rows with a value at every site to `out` (`count`·`draws`·length numbers), and
/// log of the probability of each draw along its order to `log_q` (`count`·`draws` numbers, or
/// NULL; it means nothing after sweeps). `options` may be NULL.
///
/// A row that cannot be completed is all −1, and its `log_q` NaN. The same seed gives the same
/// draws for any number of threads. Errors as `hone_scorer_sample`, and INVALID_DATA for a single
/// row that does not fit.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_impute(const hone_scorer *scorer,
                               const int64_t *rows,
                               size_t count,
                               const hone_sample_options *options,
                               int64_t *out,
                               double *log_q);

/// Submits a look at how far θ and φ agree with each other and with probabilities on `count` rows,
/// which are copied. The job makes a report (schema "hone.mam.check/1", in nats). `options` may be
/// NULL. A model without both halves, and a row that does not fit, are errors of the job.
///
/// Errors: of options only, and UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_check(const hone_scorer *scorer,
                              const int64_t *rows,
                              size_t count,
                              const hone_check_options *options,
                              hone_job **out);

/// Frees a scorer. NULL is fine; a check under way keeps what it needs.
HONE_API void hone_scorer_free(hone_scorer *scorer);

/// An estimate of log Σ_x p_θ(x) to `out`, whose `size` is set: what makes θ's score of a complete
/// row a log-likelihood, see `log_normaliser` in `hone_score_options`. `options` may be NULL. It
/// takes as long as drawing `draws` rows and scoring them by θ; the same seed gives the same
/// numbers.
///
/// Errors: INVALID_ARGUMENT for a model without both halves (θ alone will do where it can be
/// enumerated), and for options out of their range; NUMERICS; UNAVAILABLE in a forked child.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_normaliser(const hone_scorer *scorer,
                                   const hone_normaliser_options *options,
                                   hone_normaliser *out);

/// Bounds of log u of each of `count` rows, where u is the mean of p_φ over all orders, which is a
/// normalised probability of the known sites: to `lower` the mean of log p_φ over `orders` orders
/// (0 means 5), to `upper` u/c + log c − 1 with the mean over the same orders in the place of u and
/// c = p_θ, +∞ where θ is hopelessly low; `count` numbers each, in nats. To `lower_error` and
/// `upper_error` (`count` numbers, or NULL) their standard errors over the orders, NaN for a single
/// order.
///
/// `options` may be NULL; of them `seed`, `known` and `orders` count. Errors as
/// `hone_scorer_score`; the model must have both halves.
HONE_API
HONE_MUST_USE
hone_error *hone_scorer_bracket(const hone_scorer *scorer,
                                const int64_t *rows,
                                size_t count,
                                const hone_score_options *options,
                                double *lower,
                                double *upper,
                                double *lower_error,
                                double *upper_error);

/// Submits the training of a marginalization model by maximum likelihood on `count` rows of
/// `length` int64 values, which are copied; −1 is missing, and skipped. The job makes a model (see
/// `hone_scorer_new`) and a report (schema "hone.mam.train/1"). `options` may be NULL. It runs on
/// the processor, whatever the engine's device.
///
/// With `ising` or `energy` there are no rows: `rows` is NULL, `count` and `length` are 0, and the
/// report has the schema "hone.mam.energy/1".
///
/// Errors: INVALID_ARGUMENT for options and numbers of rows that cannot be; a row that does not fit
/// is an error of the job, INVALID_DATA, and so is an energy that does not, INVALID_MODEL.
HONE_API
HONE_MUST_USE
hone_error *hone_mam_train(const hone_engine *engine,
                           const int64_t *rows,
                           size_t count,
                           size_t length,
                           const hone_mam_train_options *options,
                           hone_job **out);

/// Makes room for `count` gradients of `dimension` weights: `count`·`dimension`·4 bytes, or 2.
/// `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a count or dimension of 0, MEMORY or IO when there is no room.
HONE_API
HONE_MUST_USE
hone_error *hone_gradients_new(size_t count,
                               size_t dimension,
                               const hone_gradients_options *options,
                               hone_gradients **out);

/// Copies the next gradient: `len` numbers, the dimension.
///
/// Errors: CONFLICT when all gradients are there or a Fisher has been made of them, NUMERICS for
/// numbers that are not finite, UNAVAILABLE in a forked child of the process they were made in;
/// nothing has changed then.
HONE_API
HONE_MUST_USE
hone_error *hone_gradients_push(const hone_gradients *gradients,
                                const float *gradient,
                                size_t len);

/// The number of gradients that have been pushed; 0 for NULL, and in a forked child.
HONE_API size_t hone_gradients_count(const hone_gradients *gradients);

/// Frees gradients. NULL is fine; a Fisher made of them keeps them.
HONE_API void hone_gradients_free(hone_gradients *gradients);

/// Prepares the inverse Fisher of `gradients`, all of which must be there. `options` may be NULL.
///
/// Errors: CONFLICT when gradients are missing, NUMERICS when λ vanishes beside the gradients (the
/// message names a damping that does not).
HONE_API
HONE_MUST_USE
hone_error *hone_fisher_new(const hone_gradients *gradients,
                            const hone_fisher_options *options,
                            hone_fisher **out);

/// The number of weights, d; 0 for NULL.
HONE_API size_t hone_fisher_dimension(const hone_fisher *fisher);

/// λ; 0 for NULL.
HONE_API double hone_fisher_damping(const hone_fisher *fisher);

/// The diagonal of F⁻¹ to `out`: `len` numbers, the dimension, each above 0 and at most 1/λ.
HONE_API
HONE_MUST_USE
hone_error *hone_fisher_diagonal(const hone_fisher *fisher,
                                 double *out,
                                 size_t len);

/// F⁻¹x to `out`: `len` numbers each, the dimension; the two must not overlap.
///
/// Errors: NUMERICS when `x` is not finite.
HONE_API
HONE_MUST_USE
hone_error *hone_fisher_apply(const hone_fisher *fisher,
                              const float *x,
                              float *out,
                              size_t len);

/// `count` elements of F⁻¹: `out[k]` is that in row `rows[k]` and column `columns[k]`, in double
/// precision; 0 between blocks. Elements of the same block next to each other cost least.
HONE_API
HONE_MUST_USE
hone_error *hone_fisher_elements(const hone_fisher *fisher,
                                 const size_t *rows,
                                 const size_t *columns,
                                 double *out,
                                 size_t count);

/// Frees a Fisher. NULL is fine.
HONE_API void hone_fisher_free(hone_fisher *fisher);

/// Prunes `len` weights in place by the Fisher of `gradients`, all of which must be there: zeros
/// for those that go, and what makes up for them for the others.
///
/// `mask` (`len` bytes) is 0 where a weight is pruned already, and afterwards where it is pruned;
/// NULL means that none is, and that the zeros say it all. `layers` are the `layer_count` tensors
/// to prune, increasing and disjoint; none means one of a single row. `loss`, which may be NULL,
/// takes ½ δᵀFδ: the rise of the loss that the gradients predict.
///
/// Errors: CONFLICT when gradients are missing; NUMERICS when λ is too small; nothing has changed
/// then.
HONE_API
HONE_MUST_USE
hone_error *hone_weights_prune(const hone_gradients *gradients,
                               float *weights,
                               uint8_t *mask,
                               size_t len,
                               const hone_layer *layers,
                               size_t layer_count,
                               const hone_weights_options *options,
                               double *loss);

/// Makes an optimizer of `dimension` weights. `options` may be NULL.
///
/// Errors: INVALID_ARGUMENT for a setting out of its range, MEMORY or IO when there is no room.
HONE_API
HONE_MUST_USE
hone_error *hone_optimizer_new(size_t dimension,
                               const hone_optimizer_options *options,
                               hone_optimizer **out);

/// One step of `weights` (`len` numbers, the dimension) along `gradient` (as many), in place. Once
/// the window is full it allocates nothing, but for the steps at which `damping_relative` is
/// measured anew. Further threads wait from step to step; they are worth it from some 10,000
/// weights on.
///
/// Errors: NUMERICS for a gradient that is not finite; UNAVAILABLE, as from all functions of an
/// optimizer, in a forked child of the process it was made in. Nothing has changed then.
HONE_API
HONE_MUST_USE
hone_error *hone_optimizer_step(const hone_optimizer *optimizer,
                                float *weights,
                                const float *gradient,
                                size_t len);

/// The number of steps taken; 0 for NULL, and in a forked child.
HONE_API uint64_t hone_optimizer_steps(const hone_optimizer *optimizer);

/// Replaces the peak of the learning rate, from which the schedule goes on; for hosts with a
/// schedule of their own. It is not part of the saved state.
HONE_API
HONE_MUST_USE
hone_error *hone_optimizer_set_learning_rate(const hone_optimizer *optimizer,
                                             double learning_rate);

/// Writes the state (not the options) to `path`: the file appears whole or not at all.
HONE_API
HONE_MUST_USE
hone_error *hone_optimizer_save(const hone_optimizer *optimizer,
                                const char *path);

/// Takes over the state at `path`, saved by an optimizer of the same method, dimension and window;
/// the next step has the bits it would have had there.
///
/// Errors: IO when the file cannot be read, is cut short or of another optimizer; nothing has
/// changed then.
HONE_API
HONE_MUST_USE
hone_error *hone_optimizer_restore(const hone_optimizer *optimizer,
                                   const char *path);

/// Frees an optimizer. NULL is fine.
HONE_API void hone_optimizer_free(hone_optimizer *optimizer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HONE_H */
