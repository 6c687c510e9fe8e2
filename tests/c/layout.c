/* The layout of the structs on 64-bit Linux: what programs were compiled with. A line may be added;
 * one that changes breaks them. */
#include <hone.h>

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define AT(type, field, bytes) _Static_assert(offsetof(type, field) == (bytes), #type "." #field)

SIZE(hone_log_sink, 24);
AT(hone_log_sink, call, 0);
AT(hone_log_sink, drop, 8);
AT(hone_log_sink, context, 16);

SIZE(hone_engine_options, 48);
AT(hone_engine_options, size, 0);
AT(hone_engine_options, memory_limit, 8);
AT(hone_engine_options, onnxruntime, 16);
AT(hone_engine_options, ort_api_base, 24);
AT(hone_engine_options, threads, 32);
AT(hone_engine_options, jobs, 36);
AT(hone_engine_options, device, 40);
AT(hone_engine_options, reserved, 44);

SIZE(hone_samples_options, 80);
AT(hone_samples_options, size, 0);
AT(hone_samples_options, scale, 8);
AT(hone_samples_options, scale_count, 16);
AT(hone_samples_options, mean, 24);
AT(hone_samples_options, mean_count, 32);
AT(hone_samples_options, std, 40);
AT(hone_samples_options, std_count, 48);
AT(hone_samples_options, labels, 56);
AT(hone_samples_options, limit, 64);
AT(hone_samples_options, memory_limit, 72);

SIZE(hone_tensor, 32);
AT(hone_tensor, data, 0);
AT(hone_tensor, shape, 8);
AT(hone_tensor, strides, 16);
AT(hone_tensor, rank, 24);
AT(hone_tensor, dtype, 28);

SIZE(hone_named_tensor, 40);
AT(hone_named_tensor, name, 0);
AT(hone_named_tensor, tensor, 8);

SIZE(hone_progress, 48);
AT(hone_progress, size, 0);
AT(hone_progress, phase, 8);
AT(hone_progress, done, 16);
AT(hone_progress, total, 24);
AT(hone_progress, elapsed, 32);
AT(hone_progress, state, 40);
AT(hone_progress, reserved, 44);

SIZE(hone_observer, 24);
AT(hone_observer, call, 0);
AT(hone_observer, drop, 8);
AT(hone_observer, context, 16);

SIZE(hone_prune_options, 176);
AT(hone_prune_options, size, 0);
AT(hone_prune_options, sparsity, 8);
AT(hone_prune_options, damping, 16);
AT(hone_prune_options, damping_absolute, 24);
AT(hone_prune_options, pattern, 32);
AT(hone_prune_options, output, 40);
AT(hone_prune_options, skip, 48);
AT(hone_prune_options, skip_count, 56);
AT(hone_prune_options, outputs, 64);
AT(hone_prune_options, outputs_count, 72);
AT(hone_prune_options, evaluation, 80);
AT(hone_prune_options, seed, 88);
AT(hone_prune_options, memory_limit, 96);
AT(hone_prune_options, method, 104);
AT(hone_prune_options, scope, 108);
AT(hone_prune_options, update, 112);
AT(hone_prune_options, fisher, 116);
AT(hone_prune_options, match_statistics, 120);
AT(hone_prune_options, selection_stages, 124);
AT(hone_prune_options, block, 128);
AT(hone_prune_options, stages, 132);
AT(hone_prune_options, gradients, 136);
AT(hone_prune_options, fisher_batch, 140);
AT(hone_prune_options, threads, 144);
AT(hone_prune_options, reserved, 148);
AT(hone_prune_options, observer, 152);

SIZE(hone_evaluate_options, 48);
AT(hone_evaluate_options, size, 0);
AT(hone_evaluate_options, output, 8);
AT(hone_evaluate_options, threads, 16);
AT(hone_evaluate_options, reserved, 20);
AT(hone_evaluate_options, observer, 24);

SIZE(hone_scorer_options, 16);
AT(hone_scorer_options, size, 0);
AT(hone_scorer_options, threads, 8);
AT(hone_scorer_options, batch, 12);

SIZE(hone_score_options, 24);
AT(hone_score_options, size, 0);
AT(hone_score_options, seed, 8);
AT(hone_score_options, half, 16);
AT(hone_score_options, orders, 20);

SIZE(hone_sample_options, 48);
AT(hone_sample_options, size, 0);
AT(hone_sample_options, seed, 8);
AT(hone_sample_options, first_draw, 16);
AT(hone_sample_options, temperature, 24);
AT(hone_sample_options, top_k, 32);
AT(hone_sample_options, sweeps, 36);
AT(hone_sample_options, block, 40);
AT(hone_sample_options, reserved, 44);

SIZE(hone_check_options, 56);
AT(hone_check_options, size, 0);
AT(hone_check_options, seed, 8);
AT(hone_check_options, steps, 16);
AT(hone_check_options, orders, 20);
AT(hone_check_options, draws, 24);
AT(hone_check_options, reserved, 28);
AT(hone_check_options, observer, 32);

SIZE(hone_gradients_options, 24);
AT(hone_gradients_options, size, 0);
AT(hone_gradients_options, folder, 8);
AT(hone_gradients_options, storage, 16);
AT(hone_gradients_options, reserved, 20);

SIZE(hone_fisher_options, 40);
AT(hone_fisher_options, size, 0);
AT(hone_fisher_options, damping, 8);
AT(hone_fisher_options, damping_absolute, 16);
AT(hone_fisher_options, block, 24);
AT(hone_fisher_options, threads, 32);
AT(hone_fisher_options, reserved, 36);

SIZE(hone_layer, 32);
AT(hone_layer, name, 0);
AT(hone_layer, offset, 8);
AT(hone_layer, len, 16);
AT(hone_layer, row, 24);

SIZE(hone_weights_options, 64);
AT(hone_weights_options, size, 0);
AT(hone_weights_options, sparsity, 8);
AT(hone_weights_options, damping, 16);
AT(hone_weights_options, damping_absolute, 24);
AT(hone_weights_options, pattern, 32);
AT(hone_weights_options, scope, 40);
AT(hone_weights_options, update, 44);
AT(hone_weights_options, selection_stages, 48);
AT(hone_weights_options, block, 52);
AT(hone_weights_options, threads, 56);
AT(hone_weights_options, reserved, 60);

SIZE(hone_optimizer_options, 128);
AT(hone_optimizer_options, size, 0);
AT(hone_optimizer_options, learning_rate, 8);
AT(hone_optimizer_options, momentum, 16);
AT(hone_optimizer_options, beta2, 24);
AT(hone_optimizer_options, epsilon, 32);
AT(hone_optimizer_options, damping, 40);
AT(hone_optimizer_options, damping_relative, 48);
AT(hone_optimizer_options, weight_decay, 56);
AT(hone_optimizer_options, schedule_factor, 64);
AT(hone_optimizer_options, schedule_steps, 72);
AT(hone_optimizer_options, warmup_steps, 80);
AT(hone_optimizer_options, mask, 88);
AT(hone_optimizer_options, folder, 96);
AT(hone_optimizer_options, method, 104);
AT(hone_optimizer_options, window, 108);
AT(hone_optimizer_options, storage, 112);
AT(hone_optimizer_options, decay, 116);
AT(hone_optimizer_options, schedule, 120);
AT(hone_optimizer_options, threads, 124);

/* Numbers that travel. */
_Static_assert(HONE_CODE_OK == 0, "HONE_CODE_OK");
_Static_assert(HONE_CODE_INVALID_ARGUMENT == 1, "HONE_CODE_INVALID_ARGUMENT");
_Static_assert(HONE_CODE_IO == 2, "HONE_CODE_IO");
_Static_assert(HONE_CODE_INVALID_MODEL == 3, "HONE_CODE_INVALID_MODEL");
_Static_assert(HONE_CODE_UNSUPPORTED == 4, "HONE_CODE_UNSUPPORTED");
_Static_assert(HONE_CODE_INVALID_DATA == 5, "HONE_CODE_INVALID_DATA");
_Static_assert(HONE_CODE_RUNTIME == 6, "HONE_CODE_RUNTIME");
_Static_assert(HONE_CODE_DEVICE == 7, "HONE_CODE_DEVICE");
_Static_assert(HONE_CODE_MEMORY == 8, "HONE_CODE_MEMORY");
_Static_assert(HONE_CODE_NUMERICS == 9, "HONE_CODE_NUMERICS");
_Static_assert(HONE_CODE_CANCELLED == 10, "HONE_CODE_CANCELLED");
_Static_assert(HONE_CODE_CONFLICT == 11, "HONE_CODE_CONFLICT");
_Static_assert(HONE_CODE_UNAVAILABLE == 12, "HONE_CODE_UNAVAILABLE");
_Static_assert(HONE_CODE_INTERNAL == 13, "HONE_CODE_INTERNAL");
_Static_assert(HONE_LOG_LEVEL_OFF == 0, "HONE_LOG_LEVEL_OFF");
_Static_assert(HONE_LOG_LEVEL_ERROR == 1, "HONE_LOG_LEVEL_ERROR");
_Static_assert(HONE_LOG_LEVEL_WARN == 2, "HONE_LOG_LEVEL_WARN");
_Static_assert(HONE_LOG_LEVEL_INFO == 3, "HONE_LOG_LEVEL_INFO");
_Static_assert(HONE_LOG_LEVEL_DEBUG == 4, "HONE_LOG_LEVEL_DEBUG");
_Static_assert(HONE_LOG_LEVEL_TRACE == 5, "HONE_LOG_LEVEL_TRACE");
_Static_assert(HONE_JOB_STATE_QUEUED == 0, "HONE_JOB_STATE_QUEUED");
_Static_assert(HONE_JOB_STATE_RUNNING == 1, "HONE_JOB_STATE_RUNNING");
_Static_assert(HONE_JOB_STATE_COMPLETED == 2, "HONE_JOB_STATE_COMPLETED");
_Static_assert(HONE_JOB_STATE_CANCELLED == 3, "HONE_JOB_STATE_CANCELLED");
_Static_assert(HONE_JOB_STATE_FAILED == 4, "HONE_JOB_STATE_FAILED");
_Static_assert(HONE_DTYPE_F32 == 1, "HONE_DTYPE_F32");
_Static_assert(HONE_DTYPE_U8 == 2, "HONE_DTYPE_U8");
_Static_assert(HONE_DTYPE_I8 == 3, "HONE_DTYPE_I8");
_Static_assert(HONE_DTYPE_U16 == 4, "HONE_DTYPE_U16");
_Static_assert(HONE_DTYPE_I16 == 5, "HONE_DTYPE_I16");
_Static_assert(HONE_DTYPE_I32 == 6, "HONE_DTYPE_I32");
_Static_assert(HONE_DTYPE_I64 == 7, "HONE_DTYPE_I64");
_Static_assert(HONE_DTYPE_BOOL == 9, "HONE_DTYPE_BOOL");
_Static_assert(HONE_DTYPE_F16 == 10, "HONE_DTYPE_F16");
_Static_assert(HONE_DTYPE_F64 == 11, "HONE_DTYPE_F64");
_Static_assert(HONE_DTYPE_U32 == 12, "HONE_DTYPE_U32");
_Static_assert(HONE_DTYPE_U64 == 13, "HONE_DTYPE_U64");
_Static_assert(HONE_DTYPE_BF16 == 16, "HONE_DTYPE_BF16");
_Static_assert(HONE_DEVICE_CPU == 0, "HONE_DEVICE_CPU");
_Static_assert(HONE_DEVICE_CUDA == 1, "HONE_DEVICE_CUDA");
_Static_assert(HONE_DEVICE_AUTO == 2, "HONE_DEVICE_AUTO");
_Static_assert(HONE_METHOD_MFAC == 0, "HONE_METHOD_MFAC");
_Static_assert(HONE_METHOD_MAGNITUDE == 1, "HONE_METHOD_MAGNITUDE");
_Static_assert(HONE_SCOPE_GLOBAL == 0, "HONE_SCOPE_GLOBAL");
_Static_assert(HONE_SCOPE_LAYER == 1, "HONE_SCOPE_LAYER");
_Static_assert(HONE_UPDATE_JOINT == 0, "HONE_UPDATE_JOINT");
_Static_assert(HONE_UPDATE_INDEPENDENT == 1, "HONE_UPDATE_INDEPENDENT");
_Static_assert(HONE_SEED_OUTPUTS == 0, "HONE_SEED_OUTPUTS");
_Static_assert(HONE_SEED_GAUSSIAN == 1, "HONE_SEED_GAUSSIAN");
_Static_assert(HONE_SEED_LABELS == 2, "HONE_SEED_LABELS");
_Static_assert(HONE_SEED_SAMPLED == 3, "HONE_SEED_SAMPLED");
_Static_assert(HONE_SEED_MSE == 4, "HONE_SEED_MSE");
_Static_assert(HONE_SEED_SCALAR == 5, "HONE_SEED_SCALAR");
_Static_assert(HONE_CHOICE_AUTO == 0, "HONE_CHOICE_AUTO");
_Static_assert(HONE_CHOICE_ON == 1, "HONE_CHOICE_ON");
_Static_assert(HONE_CHOICE_OFF == 2, "HONE_CHOICE_OFF");
_Static_assert(HONE_STORAGE_F32 == 0, "HONE_STORAGE_F32");
_Static_assert(HONE_STORAGE_F16 == 1, "HONE_STORAGE_F16");
_Static_assert(HONE_STORAGE_BF16 == 2, "HONE_STORAGE_BF16");
_Static_assert(HONE_OPTIMIZER_METHOD_MFAC == 0, "HONE_OPTIMIZER_METHOD_MFAC");
_Static_assert(HONE_OPTIMIZER_METHOD_SGD == 1, "HONE_OPTIMIZER_METHOD_SGD");
_Static_assert(HONE_OPTIMIZER_METHOD_ADAM == 2, "HONE_OPTIMIZER_METHOD_ADAM");
_Static_assert(HONE_DECAY_COUPLED == 0, "HONE_DECAY_COUPLED");
_Static_assert(HONE_DECAY_DECOUPLED == 1, "HONE_DECAY_DECOUPLED");
_Static_assert(HONE_SCHEDULE_CONSTANT == 0, "HONE_SCHEDULE_CONSTANT");
_Static_assert(HONE_SCHEDULE_LINEAR == 1, "HONE_SCHEDULE_LINEAR");
_Static_assert(HONE_SCHEDULE_COSINE == 2, "HONE_SCHEDULE_COSINE");
_Static_assert(HONE_SCHEDULE_STAIRS == 3, "HONE_SCHEDULE_STAIRS");
_Static_assert(HONE_HALF_AUTO == 0, "HONE_HALF_AUTO");
_Static_assert(HONE_HALF_THETA == 1, "HONE_HALF_THETA");
_Static_assert(HONE_HALF_PHI == 2, "HONE_HALF_PHI");
