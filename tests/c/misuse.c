/* NULL and nonsense for every function: an error that says so, never a crash. */
#include "check.h"

/* Structs as callers of other versions have them: shorter, longer, and never filled in. */
static void options_of_other_sizes(void) {
    hone_gradients *gradients = NULL;
    struct {
        hone_gradients_options known;
        unsigned char later[24];
    } longer;
    memset(&longer, 0, sizeof longer);
    longer.known.size = sizeof longer;
    OK(hone_gradients_new(1, 1, &longer.known, &gradients));
    hone_gradients_free(gradients);
    longer.later[7] = 1;
    FAILS(INVALID_ARGUMENT, "too old", hone_gradients_new(1, 1, &longer.known, &gradients));

    /* A caller that knew the size alone; what follows must not be read. */
    hone_gradients_options shorter;
    memset(&shorter, 0xff, sizeof shorter);
    shorter.size = sizeof shorter.size;
    OK(hone_gradients_new(1, 1, &shorter, &gradients));
    hone_gradients_free(gradients);

    OPTIONS(hone_gradients_options, unset);
    unset.size = 0;
    FAILS(INVALID_ARGUMENT, "sizeof", hone_gradients_new(1, 1, &unset, &gradients));
    unset.size = (size_t)-1;
    FAILS(INVALID_ARGUMENT, "sizeof", hone_gradients_new(1, 1, &unset, &gradients));
    unset.size = sizeof unset;
    unset.reserved = 1;
    FAILS(INVALID_ARGUMENT, "reserved", hone_gradients_new(1, 1, &unset, &gradients));
}

static void null_handles(void) {
    hone_engine *engine = NULL;
    hone_model *model = NULL;
    hone_samples *samples = NULL;
    hone_report *report = NULL;
    hone_job *job = NULL;
    hone_fisher *fisher = NULL;
    hone_job_state state;
    const void *data;
    size_t len, index = 0;
    double number;
    float weight = 0, other = 0;
    OPTIONS(hone_progress, progress);

    FAILS(INVALID_ARGUMENT, "`out`", hone_engine_open(NULL, NULL, NULL));
    FAILS(UNSUPPORTED, "no daemon", hone_engine_open("unix:/run/hone.sock", NULL, &engine));
    FAILS(INVALID_ARGUMENT, "UTF-8", hone_engine_open("\xff", NULL, &engine));
    FAILS(INVALID_ARGUMENT, "`engine`", hone_model_load(NULL, "m.onnx", &model));
    FAILS(INVALID_ARGUMENT, "`engine`", hone_model_from_bytes(NULL, "", 0, NULL, &model));
    FAILS(INVALID_ARGUMENT, "`model`", hone_model_save(NULL, "m.onnx"));
    FAILS(INVALID_ARGUMENT, "`model`", hone_model_bytes(NULL, &data, &len));
    FAILS(INVALID_ARGUMENT, "`model`", hone_model_inspect(NULL, &report));
    FAILS(INVALID_ARGUMENT, "`model`", hone_samples_load(NULL, "s.npz", NULL, &samples));
    FAILS(INVALID_ARGUMENT, "`model`",
          hone_samples_from_tensors(NULL, NULL, 0, NULL, NULL, &samples));
    FAILS(INVALID_ARGUMENT, "`model`", hone_prune(NULL, NULL, NULL, &job));
    FAILS(INVALID_ARGUMENT, "`model`", hone_evaluate(NULL, NULL, NULL, NULL, &job));
    FAILS(INVALID_ARGUMENT, "`model`", hone_finetune(NULL, NULL, NULL, &job));
    FAILS(INVALID_ARGUMENT, "`engine`", hone_mam_train(NULL, NULL, 0, 0, NULL, &job));
    FAILS(INVALID_ARGUMENT, "`model`", hone_model_weights(NULL, &weight, 1));
    FAILS(INVALID_ARGUMENT, "`model`", hone_model_with_weights(NULL, &weight, 1, &model));
    FAILS(INVALID_ARGUMENT, "`job`", hone_job_wait(NULL, 0, &state));
    FAILS(INVALID_ARGUMENT, "`job`", hone_job_progress(NULL, &progress));
    FAILS(INVALID_ARGUMENT, "`job`", hone_job_result(NULL));
    FAILS(INVALID_ARGUMENT, "`job`", hone_job_report(NULL, &report));
    FAILS(INVALID_ARGUMENT, "`job`", hone_job_model(NULL, &model));
    FAILS(INVALID_ARGUMENT, "`report`", hone_report_number(NULL, "/a", &number));
    FAILS(INVALID_ARGUMENT, "`out`", hone_gradients_new(1, 1, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`gradients`", hone_gradients_push(NULL, &weight, 1));
    FAILS(INVALID_ARGUMENT, "`gradients`", hone_fisher_new(NULL, NULL, &fisher));
    FAILS(INVALID_ARGUMENT, "`fisher`", hone_fisher_diagonal(NULL, &number, 1));
    FAILS(INVALID_ARGUMENT, "`fisher`", hone_fisher_apply(NULL, &weight, &other, 1));
    FAILS(INVALID_ARGUMENT, "`fisher`", hone_fisher_elements(NULL, &index, &index, &number, 1));
    FAILS(INVALID_ARGUMENT, "`gradients`",
          hone_weights_prune(NULL, &weight, NULL, 1, NULL, 0, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`out`", hone_optimizer_new(1, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`optimizer`", hone_optimizer_step(NULL, &weight, &other, 1));
    FAILS(INVALID_ARGUMENT, "`optimizer`", hone_optimizer_set_learning_rate(NULL, 0.1));
    FAILS(INVALID_ARGUMENT, "`optimizer`", hone_optimizer_save(NULL, "o"));
    FAILS(INVALID_ARGUMENT, "`optimizer`", hone_optimizer_restore(NULL, "o"));
    FAILS(INVALID_ARGUMENT, "hone_log_level", hone_log_set(9, NULL));

    CHECK(hone_job_id(NULL) == 0 && hone_job_fd(NULL) == -1);
    CHECK(hone_samples_count(NULL) == 0 && hone_gradients_count(NULL) == 0);
    CHECK(hone_fisher_dimension(NULL) == 0 && hone_fisher_damping(NULL) == 0.0);
    CHECK(hone_optimizer_steps(NULL) == 0);
    CHECK(strcmp(hone_report_json(NULL), "") == 0);
    hone_job_cancel(NULL);
}

static void null_frees(void) {
    hone_error_free(NULL);
    hone_engine_free(NULL);
    hone_model_free(NULL);
    hone_samples_free(NULL);
    hone_job_free(NULL);
    hone_report_free(NULL);
    hone_gradients_free(NULL);
    hone_fisher_free(NULL);
    hone_optimizer_free(NULL);
}

static void numbers_that_cannot_be(void) {
    hone_gradients *gradients = NULL;
    FAILS(INVALID_ARGUMENT, "no Fisher", hone_gradients_new(0, 3, NULL, &gradients));
    FAILS(INVALID_ARGUMENT, "no Fisher", hone_gradients_new(3, 0, NULL, &gradients));
    FAILS(MEMORY, "too large", hone_gradients_new((size_t)-1, 3, NULL, &gradients));
    OPTIONS(hone_gradients_options, kept);
    kept.storage = 77;
    FAILS(INVALID_ARGUMENT, "hone_storage", hone_gradients_new(1, 1, &kept, &gradients));
    kept.storage = HONE_STORAGE_F32;
    kept.folder = "/no/such/folder";
    FAILS(IO, "/no/such/folder", hone_gradients_new(1, 1, &kept, &gradients));
    kept.folder = "";
    FAILS(INVALID_ARGUMENT, "empty path", hone_gradients_new(1, 1, &kept, &gradients));

    hone_optimizer *optimizer = NULL;
    FAILS(INVALID_ARGUMENT, "0 weights", hone_optimizer_new(0, NULL, &optimizer));
    OPTIONS(hone_optimizer_options, how);
    how.momentum = 1.5;
    FAILS(INVALID_ARGUMENT, "momentum", hone_optimizer_new(4, &how, &optimizer));
    how.momentum = 0;
    how.learning_rate = -1;
    FAILS(INVALID_ARGUMENT, "learning rate", hone_optimizer_new(4, &how, &optimizer));
    how.learning_rate = 0;
    how.schedule = HONE_SCHEDULE_COSINE;
    FAILS(INVALID_ARGUMENT, "schedule_steps", hone_optimizer_new(4, &how, &optimizer));
    how.schedule = 9;
    FAILS(INVALID_ARGUMENT, "hone_schedule", hone_optimizer_new(4, &how, &optimizer));
    how.schedule = 0;
    how.method = 9;
    FAILS(INVALID_ARGUMENT, "hone_optimizer_method", hone_optimizer_new(4, &how, &optimizer));
    OPTIONS(hone_optimizer_options, other);
    other.metric = 3;
    FAILS(INVALID_ARGUMENT, "hone_metric", hone_optimizer_new(4, &other, &optimizer));
    other.metric = HONE_METRIC_DIAGONAL;
    other.method = HONE_OPTIMIZER_METHOD_ADAM;
    FAILS(INVALID_ARGUMENT, "`metric`", hone_optimizer_new(4, &other, &optimizer));
    other.method = HONE_OPTIMIZER_METHOD_MFAC;
    other.reserved = 1;
    FAILS(INVALID_ARGUMENT, "reserved", hone_optimizer_new(4, &other, &optimizer));
    how.method = HONE_OPTIMIZER_METHOD_SGD;
    OK(hone_optimizer_new(4, &how, &optimizer));
    float weights[8] = {0}, gradient[8] = {0};
    FAILS(INVALID_ARGUMENT, "length 3", hone_optimizer_step(optimizer, weights, gradient, 3));
    FAILS(INVALID_ARGUMENT, "`weights`", hone_optimizer_step(optimizer, NULL, gradient, 4));
    FAILS(INVALID_ARGUMENT, "`gradient`", hone_optimizer_step(optimizer, weights, NULL, 4));
    FAILS(INVALID_ARGUMENT, "overlap", hone_optimizer_step(optimizer, weights, weights + 2, 4));
    const char *bytes = (const char *)gradient + 1;
    FAILS(INVALID_ARGUMENT, "aligned",
          hone_optimizer_step(optimizer, weights, (const float *)(const void *)bytes, 4));
    FAILS(INVALID_ARGUMENT, "`path`", hone_optimizer_save(optimizer, NULL));
    FAILS(IO, "no-such", hone_optimizer_save(optimizer, "/no-such/state"));
    FAILS(IO, "no-such", hone_optimizer_restore(optimizer, "no-such-state"));
    hone_optimizer_free(optimizer);
}

int main(void) {
    CHECK(hone_version_number() == HONE_VERSION_NUMBER);
    CHECK(strstr(hone_build_info(), hone_version()) != NULL);
    CHECK(hone_error_code(NULL) == HONE_CODE_OK);
    CHECK(strcmp(hone_error_message(NULL), "") == 0);
    options_of_other_sizes();
    null_handles();
    null_frees();
    numbers_that_cannot_be();
    return 0;
}
