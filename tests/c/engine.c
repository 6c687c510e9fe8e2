/* Models, samples and jobs, in process, on the example model. */
#include "check.h"

#include <poll.h>
#include <time.h>

/* No job of these tests takes that long, not even under valgrind. */
enum { PATIENCE_MS = 1200000 };

static const char *folder;

static const char *in(const char *base, const char *name) {
    static char paths[4][4096];
    static int next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", base, name);
    return paths[next];
}

typedef struct {
    int calls, drops, states[5];
    hone_job **job;
} witness;

static void seen(void *context, const hone_progress *progress) {
    witness *w = (witness *)context;
    CHECK(progress->size == sizeof *progress && progress->state < 5 && progress->phase != NULL);
    CHECK(progress->done <= progress->total && w->drops == 0);
    w->calls++;
    w->states[progress->state]++;
}

static void dropped(void *context) { ((witness *)context)->drops++; }

static void models(hone_engine *engine, hone_model *model) {
    hone_model *other = NULL;
    hone_report *report;
    double number;
    FAILS(IO, "gone.onnx", hone_model_load(engine, in(folder, "gone.onnx"), &other));
    FAILS(INVALID_ARGUMENT, "`path`", hone_model_load(engine, NULL, &other));
    FAILS(INVALID_MODEL, "ONNX", hone_model_from_bytes(engine, "nonsense", 8, NULL, &other));
    FAILS(INVALID_ARGUMENT, "`data`", hone_model_from_bytes(engine, NULL, 0, NULL, &other));

    OK(hone_model_inspect(model, &report));
    CHECK(strstr(hone_report_json(report), "hone.inspect/1") != NULL);
    OK(hone_report_number(report, "/prunable_weights", &number));
    CHECK(number > 1000);
    OK(hone_report_number(report, "/prunable/0/weights", &number));
    FAILS(INVALID_ARGUMENT, "nothing", hone_report_number(report, "/no/such", &number));
    FAILS(INVALID_ARGUMENT, "no number", hone_report_number(report, "/schema", &number));
    FAILS(INVALID_ARGUMENT, "`pointer`", hone_report_number(report, NULL, &number));
    hone_report_free(report);

    /* Bytes and back. */
    const void *bytes, *again;
    size_t len, len_again;
    OK(hone_model_bytes(model, &bytes, &len));
    OK(hone_model_bytes(model, &again, &len_again));
    CHECK(bytes == again && len == len_again);
    OK(hone_model_from_bytes(engine, bytes, len, NULL, &other));
    OK(hone_model_save(other, in(folder, "copy.onnx")));
    hone_model_free(other);
    FILE *file = fopen(in(folder, "copy.onnx"), "rb");
    char *copy = (char *)malloc(len + 1);
    CHECK(file != NULL && copy != NULL && fread(copy, 1, len + 1, file) == len);
    CHECK(memcmp(copy, bytes, len) == 0);
    free(copy);
    fclose(file);
    FAILS(IO, "no/such", hone_model_save(model, "/no/such/folder/m.onnx"));
}

/* Samples from memory: as they are, strided, and scaled from bytes. */
static hone_samples *samples(hone_model *model, const char *calibration) {
    enum { N = 48, SIDE = 28 };
    static float images[N][SIDE][SIDE];
    static unsigned char bytes[SIDE][SIDE][N];
    static int64_t labels[N];
    unsigned long long random = 1;
    for (int i = 0; i < N; i++) {
        labels[i] = i % 10;
        for (int y = 0; y < SIDE; y++) {
            for (int x = 0; x < SIDE; x++) {
                bytes[y][x][i] = (unsigned char)(128 + 127 * uniform(&random));
                images[i][y][x] = (float)bytes[y][x][i] / 255.0f;
            }
        }
    }
    int64_t shape[4] = {N, 1, SIDE, SIDE}, count[1] = {N};
    hone_named_tensor input;
    memset(&input, 0, sizeof input);
    input.name = "image";
    input.tensor.data = images;
    input.tensor.shape = shape;
    input.tensor.rank = 4;
    input.tensor.dtype = HONE_DTYPE_F32;
    hone_tensor classes;
    memset(&classes, 0, sizeof classes);
    classes.data = labels;
    classes.shape = count;
    classes.rank = 1;
    classes.dtype = HONE_DTYPE_I64;
    hone_samples *made = NULL, *strided = NULL;
    OK(hone_samples_from_tensors(model, &input, 1, &classes, NULL, &made));
    CHECK(hone_samples_count(made) == N);

    int64_t strides[4] = {1, 0, SIDE * N, N};
    hone_named_tensor turned = input;
    turned.tensor.data = bytes;
    turned.tensor.strides = strides;
    turned.tensor.dtype = HONE_DTYPE_U8;
    FAILS(INVALID_DATA, "scale",
          hone_samples_from_tensors(model, &turned, 1, NULL, NULL, &strided));
    double scale = 1.0 / 255;
    OPTIONS(hone_samples_options, how);
    how.scale = &scale;
    how.scale_count = 1;
    OK(hone_samples_from_tensors(model, &turned, 1, NULL, &how, &strided));
    hone_samples_free(strided);

    hone_named_tensor wrong = input;
    wrong.name = "no-input";
    FAILS(INVALID_ARGUMENT, "no-input",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    FAILS(INVALID_ARGUMENT, "missing",
          hone_samples_from_tensors(model, NULL, 0, NULL, NULL, &strided));
    wrong = input;
    wrong.tensor.dtype = 8;
    FAILS(INVALID_ARGUMENT, "hone_dtype",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    wrong = input;
    wrong.tensor.rank = 17;
    FAILS(INVALID_ARGUMENT, "axes",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    int64_t negative[4] = {N, 1, -SIDE, SIDE}, huge[4] = {INT64_MAX, INT64_MAX, 1, 1};
    wrong = input;
    wrong.tensor.shape = negative;
    FAILS(INVALID_ARGUMENT, "negative",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    wrong.tensor.shape = huge;
    FAILS(INVALID_ARGUMENT, "memory",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    wrong.tensor.shape = shape;
    wrong.tensor.data = NULL;
    FAILS(INVALID_ARGUMENT, "NULL",
          hone_samples_from_tensors(model, &wrong, 1, NULL, NULL, &strided));
    float before = images[3][0][0];
    images[3][0][0] = 0.0f / (0.0f * before + 0.0f);
    FAILS(INVALID_DATA, "row 3",
          hone_samples_from_tensors(model, &input, 1, NULL, NULL, &strided));
    images[3][0][0] = before;
    count[0] = N - 1;
    FAILS(INVALID_DATA, "47",
          hone_samples_from_tensors(model, &input, 1, &classes, NULL, &strided));

    OPTIONS(hone_samples_options, few);
    few.limit = 5;
    OK(hone_samples_load(model, calibration, &few, &strided));
    CHECK(hone_samples_count(strided) == 5);
    hone_samples_free(strided);
    FAILS(IO, "gone.npz", hone_samples_load(model, in(folder, "gone.npz"), NULL, &strided));
    few.memory_limit = 10;
    FAILS(MEMORY, "limit", hone_samples_load(model, calibration, &few, &strided));
    return made;
}

static hone_job *pruning(hone_model *model, hone_samples *samples, uint32_t gradients, witness *w) {
    OPTIONS(hone_prune_options, how);
    how.sparsity = 0.5;
    how.gradients = gradients;
    how.stages = 1;
    how.evaluation = samples;
    how.observer.call = seen;
    how.observer.drop = dropped;
    how.observer.context = w;
    hone_job *job = NULL;
    OK(hone_prune(model, samples, &how, &job));
    return job;
}

static void completed(hone_model *model, hone_samples *samples) {
    witness w = {0, 0, {0, 0, 0, 0, 0}, NULL};
    hone_job *job = pruning(model, samples, 32, &w);
    hone_job_state state = HONE_JOB_STATE_QUEUED;
    struct pollfd watched = {hone_job_fd(job), POLLIN, 0};
    CHECK(hone_job_id(job) > 0 && watched.fd >= 0);
    CHECK(poll(&watched, 1, PATIENCE_MS) == 1);
    OK(hone_job_wait(job, -1, &state));
    CHECK(state == HONE_JOB_STATE_COMPLETED && w.drops == 1);
    CHECK(w.states[HONE_JOB_STATE_RUNNING] == w.calls - 1 && w.calls > 3);
    CHECK(w.states[HONE_JOB_STATE_COMPLETED] == 1);
    CHECK(poll(&watched, 1, 0) == 1);
    OK(hone_job_result(job));
    OPTIONS(hone_progress, progress);
    OK(hone_job_progress(job, &progress));
    CHECK(progress.state == HONE_JOB_STATE_COMPLETED && progress.elapsed > 0);
    progress.size = 0;
    FAILS(INVALID_ARGUMENT, "sizeof", hone_job_progress(job, &progress));

    hone_report *report;
    double zeros, dense, pruned;
    OK(hone_job_report(job, &report));
    OK(hone_report_number(report, "/total/sparsity", &zeros));
    CHECK(zeros > 0.499 && zeros < 0.501);
    OK(hone_report_number(report, "/size/dense_bytes", &dense));
    OK(hone_report_number(report, "/size/pruned_bytes", &pruned));
    CHECK(dense == pruned && dense > 1000);
    hone_report_free(report);

    /* The pruned model is a model like any other. */
    hone_model *half;
    OK(hone_job_model(job, &half));
    hone_job_free(job);
    OK(hone_evaluate(half, model, samples, NULL, &job));
    OK(hone_job_wait(job, -1, &state));
    CHECK(state == HONE_JOB_STATE_COMPLETED);
    FAILS(CONFLICT, "no model", hone_job_model(job, &half));
    OK(hone_job_report(job, &report));
    OK(hone_report_number(report, "/divergence/relative_error", &zeros));
    CHECK(zeros > 0 && zeros < 1);
    OK(hone_report_number(report, "/model/predictions", &zeros));
    CHECK(zeros == 48);
    hone_report_free(report);
    hone_job_free(job);
    hone_model_free(half);
}

static void cancelled(hone_model *model, hone_samples *samples) {
    witness running = {0, 0, {0, 0, 0, 0, 0}, NULL}, waiting = {0, 0, {0, 0, 0, 0, 0}, NULL};
    hone_job *first = pruning(model, samples, 1000000, &running);
    hone_job *second = pruning(model, samples, 1000000, &waiting);
    hone_job_state state;
    hone_report *report = NULL;
    OK(hone_job_wait(first, 50, &state));
    CHECK(state == HONE_JOB_STATE_RUNNING || state == HONE_JOB_STATE_QUEUED);
    FAILS(CONFLICT, "not ended", hone_job_result(first));
    FAILS(CONFLICT, "not ended", hone_job_report(first, &report));
    hone_job_cancel(second);
    OK(hone_job_wait(second, 0, &state));
    CHECK(state == HONE_JOB_STATE_CANCELLED && waiting.drops == 1);
    hone_job_cancel(first);
    OK(hone_job_wait(first, PATIENCE_MS, &state));
    CHECK(state == HONE_JOB_STATE_CANCELLED && running.drops == 1);
    FAILS(CANCELLED, "stopped", hone_job_report(first, &report));
    hone_job_free(first);
    hone_job_free(second);
}

static void refused(hone_model *model, hone_samples *samples) {
    witness w = {0, 0, {0, 0, 0, 0, 0}, NULL};
    hone_job *job = NULL;
    OPTIONS(hone_prune_options, how);
    how.observer.call = seen;
    how.observer.drop = dropped;
    how.observer.context = &w;
    FAILS(INVALID_ARGUMENT, "sparsity", hone_prune(model, samples, &how, &job));
    how.sparsity = 0.9;
    how.pattern = "2:4";
    FAILS(INVALID_ARGUMENT, "2:4", hone_prune(model, samples, &how, &job));
    how.pattern = NULL;
    how.fisher = 17;
    FAILS(INVALID_ARGUMENT, "hone_seed", hone_prune(model, samples, &how, &job));
    how.fisher = 0;
    how.skip_count = 2;
    FAILS(INVALID_ARGUMENT, "`skip`", hone_prune(model, samples, &how, &job));
    how.skip_count = 0;
    FAILS(INVALID_ARGUMENT, "`calibration`", hone_prune(model, NULL, &how, &job));
    FAILS(INVALID_ARGUMENT, "`out`", hone_prune(model, samples, &how, NULL));
    CHECK(w.calls == 0 && w.drops == 0);

    /* What shows later is the job's. */
    const char *outputs[1] = {"no-such-output"};
    how.outputs = outputs;
    how.outputs_count = 1;
    OK(hone_prune(model, samples, &how, &job));
    hone_job_state state;
    OK(hone_job_wait(job, -1, &state));
    CHECK(state == HONE_JOB_STATE_FAILED && w.drops == 1);
    hone_error *why = hone_job_result(job);
    CHECK(why != NULL && strstr(hone_error_message(why), "no-such-output") != NULL);
    hone_error_free(why);
    hone_job_free(job);
    OPTIONS(hone_evaluate_options, judged);
    judged.output = "no-such-output";
    FAILS(INVALID_ARGUMENT, "no-such-output", hone_evaluate(model, NULL, samples, &judged, &job));
}

/* An observer that closes its own engine; the handle is the observer's to free. */
static void closing(void *context, const hone_progress *progress) {
    hone_engine **engine = (hone_engine **)context;
    (void)progress;
    hone_engine_free(*engine);
    *engine = NULL;
}

static void engines(const char *path, const char *calibration) {
    hone_engine *first, *second;
    hone_model *model, *other;
    OPTIONS(hone_engine_options, how);
    how.threads = 1;
    OK(hone_engine_open("embedded", &how, &first));
    OK(hone_engine_open(NULL, NULL, &second));
    how.onnxruntime = "/no/such/libonnxruntime.so";
    hone_engine *third = NULL;
    FAILS(CONFLICT, "elsewhere", hone_engine_open(NULL, &how, &third));
    OPTIONS(hone_engine_options, wrong);
    wrong.device = 8;
    FAILS(INVALID_ARGUMENT, "hone_device", hone_engine_open(NULL, &wrong, &third));
    OK(hone_model_load(first, path, &model));
    OK(hone_model_load(second, path, &other));
    hone_samples *shared = samples(model, calibration);

    /* Freed in any order: the engine first, what it made afterwards. */
    hone_engine_free(first);
    hone_job *job = NULL;
    OPTIONS(hone_prune_options, prune);
    prune.sparsity = 0.5;
    FAILS(UNAVAILABLE, "closed", hone_prune(model, shared, &prune, &job));
    hone_model_free(model);

    prune.observer.call = closing;
    prune.observer.context = &second;
    OK(hone_prune(other, shared, &prune, &job));
    hone_model_free(other);
    hone_samples_free(shared);
    hone_job_state state;
    OK(hone_job_wait(job, PATIENCE_MS, &state));
    CHECK(state == HONE_JOB_STATE_CANCELLED && second == NULL);
    hone_job_free(job);
    /* The worker ends by itself after its last event; give it time to be gone. */
    struct timespec moment = {0, 200000000};
    nanosleep(&moment, NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    folder = argv[3];
    hone_engine *engine;
    hone_model *model;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, argv[1], &model));
    models(engine, model);
    hone_samples *made = samples(model, argv[2]);
    completed(model, made);
    cancelled(model, made);
    refused(model, made);
    hone_samples_free(made);
    hone_model_free(model);
    hone_engine_free(engine);
    engines(argv[1], argv[2]);
    return 0;
}
