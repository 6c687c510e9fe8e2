/* Jobs that train: fine-tuning of a model, marginalization models of rows; and the weights of a
 * model that the host prunes by gradients of its own.
 *
 *     train MODEL SAMPLES FOLDER ENERGY
 */
#include "check.h"

#include <math.h>

static char checkpoint[4096], picture[4096];

/* `call` with the options `how`, which are those of `good` but for one field, is an error. */
#define REFUSED(how, good, field, value, words, call)                                              \
    do {                                                                                           \
        how = good;                                                                                \
        how.field = value;                                                                         \
        FAILS(INVALID_ARGUMENT, words, call);                                                      \
    } while (0)

typedef struct {
    hone_job *job;
    uint64_t stop_at; /* Cancels once so much of a phase is done; 0 for never. */
    int calls, drops;
    const char *phase; /* Of phases with this in their name only; NULL for any. */
} witness;

static void seen(void *context, const hone_progress *progress) {
    witness *w = (witness *)context;
    CHECK(w->drops == 0 && progress->done <= progress->total);
    w->calls++;
    if (w->stop_at == 0 || progress->done < w->stop_at) return;
    if (w->phase != NULL && strstr(progress->phase, w->phase) == NULL) return;
    hone_job *job;
    while ((job = __atomic_load_n(&w->job, __ATOMIC_ACQUIRE)) == NULL) continue;
    hone_job_cancel(job);
}

static void dropped(void *context) { ((witness *)context)->drops++; }

static hone_observer observer(witness *w) {
    hone_observer watching;
    watching.call = seen;
    watching.drop = dropped;
    watching.context = w;
    return watching;
}

/* How the job ends, when it was observed by the witness. */
static hone_job_state end_of(hone_job *job, witness *w) {
    hone_job_state state;
    __atomic_store_n(&w->job, job, __ATOMIC_RELEASE);
    OK(hone_job_wait(job, -1, &state));
    CHECK(w->drops == 1 && w->calls > 1);
    return state;
}

static int same_bytes(const hone_model *a, const hone_model *b) {
    const void *left, *right;
    size_t left_len, right_len;
    OK(hone_model_bytes(a, &left, &left_len));
    OK(hone_model_bytes(b, &right, &right_len));
    return left_len == right_len && memcmp(left, right, left_len) == 0;
}

static int exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file != NULL) fclose(file);
    return file != NULL;
}

static hone_finetune_options short_run(hone_samples *samples, witness *w) {
    OPTIONS(hone_finetune_options, how);
    how.steps = 12;
    how.batch = 8;
    how.window = 4;
    how.evaluation = samples;
    how.evaluate_every = 6;
    how.observer = observer(w);
    return how;
}

static void finetuned(hone_model *model, hone_samples *samples) {
    witness w = {NULL, 0, 0, 0, NULL};
    hone_finetune_options how = short_run(samples, &w);
    hone_job *job;
    hone_report *report;
    hone_model *tuned;
    double before, after, steps;
    OK(hone_finetune(model, samples, &how, &job));
    CHECK(end_of(job, &w) == HONE_JOB_STATE_COMPLETED);
    OK(hone_job_report(job, &report));
    CHECK(strstr(hone_report_json(report), "hone.finetune/1") != NULL);
    OK(hone_report_number(report, "/training_steps", &steps));
    OK(hone_report_number(report, "/evaluation/before/loss", &before));
    OK(hone_report_number(report, "/evaluation/after/loss", &after));
    CHECK(steps == 12 && before > 0 && after > 0 && after != before);
    hone_report_free(report);
    OK(hone_job_model(job, &tuned));
    CHECK(!same_bytes(model, tuned));
    hone_job_free(job);

    /* A run that is stopped and taken up again, on another number of threads. */
    witness stopped = {NULL, 5, 0, 0, NULL}, resumed = {NULL, 0, 0, 0, NULL};
    hone_model *again;
    how.checkpoint = checkpoint;
    how.observer = observer(&stopped);
    OK(hone_finetune(model, samples, &how, &job));
    CHECK(end_of(job, &stopped) == HONE_JOB_STATE_CANCELLED);
    FAILS(CANCELLED, "run again to go on", hone_job_result(job));
    hone_job_free(job);
    CHECK(exists(checkpoint));
    how.observer = observer(&resumed);
    how.threads = 1;
    OK(hone_finetune(model, samples, &how, &job));
    CHECK(end_of(job, &resumed) == HONE_JOB_STATE_COMPLETED);
    OK(hone_job_report(job, &report));
    OK(hone_report_number(report, "/training_steps", &steps));
    CHECK(steps < 12);
    hone_report_free(report);
    OK(hone_job_model(job, &again));
    hone_job_free(job);
    CHECK(same_bytes(tuned, again) && !exists(checkpoint));
    hone_model_free(again);

    /* The tuned model as the pupil of the first one, with other settings. */
    OPTIONS(hone_finetune_options, other);
    const char *names[1] = {"*weight*"};
    other.steps = 2;
    other.batch = 4;
    other.optimizer = HONE_OPTIMIZER_METHOD_ADAM;
    other.momentum = -1;
    other.schedule = HONE_SCHEDULE_STAIRS;
    other.schedule_steps = 1;
    other.schedule_factor = 0.5;
    other.decay = HONE_DECAY_COUPLED;
    other.clip = 0.1;
    other.average = 0.5;
    other.distill = model;
    other.distill_weight = 1;
    other.train = names;
    other.train_count = 1;
    OK(hone_finetune(tuned, samples, &other, &job));
    hone_model_free(tuned);
    OK(hone_job_wait(job, -1, NULL));
    OK(hone_job_result(job));
    OK(hone_job_report(job, &report));
    const char *json = hone_report_json(report);
    CHECK(strstr(json, "\"optimizer\": \"adam\"") && strstr(json, "\"stairs:1:0.5\""));
    CHECK(strstr(json, "\"coupled\"") && strstr(json, "\"clip_norm\": 0.1"));
    OK(hone_report_number(report, "/options/momentum", &steps));
    CHECK(steps == 0);
    OK(hone_report_number(report, "/options/distill_weight", &steps));
    CHECK(steps == 1);
    hone_report_free(report);
    hone_job_free(job);
}

static void refused(hone_model *model, hone_samples *samples) {
    witness w = {NULL, 0, 0, 0, NULL};
    hone_job *job = NULL;
    hone_finetune_options how = short_run(samples, &w), good = how;
    FAILS(INVALID_ARGUMENT, "`samples`", hone_finetune(model, NULL, &how, &job));
    FAILS(INVALID_ARGUMENT, "`out`", hone_finetune(model, samples, &how, NULL));
    how.distill_weight = 0.5;
    FAILS(INVALID_ARGUMENT, "`distill`", hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, damping_absolute, 1e-3, "`learning_rate`",
            hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, epochs, -1, "`epochs`", hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, optimizer, 7, "hone_optimizer_method",
            hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, loss, 7, "hone_loss", hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, trained, 7, "hone_trained", hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, schedule, HONE_SCHEDULE_STAIRS, "stairs",
            hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, train_count, 1, "`train`", hone_finetune(model, samples, &how, &job));
    REFUSED(how, good, size, 4, "sizeof", hone_finetune(model, samples, &how, &job));
    CHECK(w.calls == 0 && w.drops == 0);
    how = good;
    how.momentum = 1.5;
    OK(hone_finetune(model, samples, &how, &job));
    CHECK(end_of(job, &w) == HONE_JOB_STATE_FAILED);
    FAILS(INVALID_ARGUMENT, "momentum", hone_job_result(job));
    hone_job_free(job);
}

/* What the report of a job has at a pointer. */
static double number_of(hone_job *job, const char *pointer) {
    hone_report *report;
    double number;
    OK(hone_job_report(job, &report));
    OK(hone_report_number(report, pointer, &number));
    hone_report_free(report);
    return number;
}

static int report_has(hone_job *job, const char *words) {
    hone_report *report;
    OK(hone_job_report(job, &report));
    int has = strstr(hone_report_json(report), words) != NULL;
    hone_report_free(report);
    return has;
}

/* What M-FAC is damped by: Adam's metric unless the identity is asked for. */
static void metrics(hone_model *model, hone_samples *samples) {
    hone_model *made[3];
    for (uint32_t metric = HONE_METRIC_AUTO; metric <= HONE_METRIC_DIAGONAL; metric++) {
        OPTIONS(hone_finetune_options, how);
        hone_job *job;
        how.steps = 3;
        how.batch = 4;
        how.window = 4;
        how.metric = metric;
        OK(hone_finetune(model, samples, &how, &job));
        OK(hone_job_wait(job, -1, NULL));
        OK(hone_job_result(job));
        int diagonal = metric != HONE_METRIC_IDENTITY;
        CHECK(report_has(job, diagonal ? "\"damping_metric\": \"diagonal\""
                                       : "\"damping_metric\": \"identity\""));
        CHECK(number_of(job, "/options/learning_rate") == (diagonal ? 0.004 : 1.0));
        OK(hone_job_model(job, &made[metric]));
        hone_job_free(job);
    }
    CHECK(same_bytes(made[HONE_METRIC_AUTO], made[HONE_METRIC_DIAGONAL]));
    CHECK(!same_bytes(made[HONE_METRIC_AUTO], made[HONE_METRIC_IDENTITY]));
    for (int i = 0; i < 3; i++) hone_model_free(made[i]);
    OPTIONS(hone_finetune_options, how);
    hone_job *job = NULL;
    how.metric = 3;
    FAILS(INVALID_ARGUMENT, "hone_metric", hone_finetune(model, samples, &how, &job));
    how.metric = HONE_METRIC_DIAGONAL;
    how.optimizer = HONE_OPTIMIZER_METHOD_ADAM;
    FAILS(INVALID_ARGUMENT, "`metric`", hone_finetune(model, samples, &how, &job));
}

/* Pruning in steps with training between them, whole and stopped in the second step. */
static void gradually(hone_model *model, hone_samples *samples) {
    witness w = {NULL, 0, 0, 0, NULL}, stopped = {NULL, 1, 0, 0, "step 2/2: fine-tuning"};
    witness resumed = {NULL, 0, 0, 0, NULL};
    hone_model *pruned, *again;
    hone_job *job;
    OPTIONS(hone_prune_options, how);
    how.sparsity = 0.9;
    how.gradients = 8;
    how.stages = 1;
    how.schedule = HONE_PRUNE_SCHEDULE_GRADUAL;
    how.steps = 2;
    how.ramp = HONE_RAMP_CUBIC;
    how.tune_steps = 3;
    how.final_steps = 5;
    how.batch = 8;
    how.optimizer = HONE_OPTIMIZER_METHOD_ADAM;
    how.distill_weight = 0.25;
    how.observer = observer(&w);
    OK(hone_prune(model, samples, &how, &job));
    CHECK(end_of(job, &w) == HONE_JOB_STATE_COMPLETED);
    CHECK(report_has(job, "\"ramp\": \"cubic\"") && report_has(job, "\"optimizer\": \"adam\""));
    CHECK(number_of(job, "/gradual/tuning/distill_weight") == 0.25);
    CHECK(number_of(job, "/gradual/tuning/steps") == 3);
    CHECK(number_of(job, "/gradual/final_steps") == 5);
    double last = number_of(job, "/gradual/steps/1/sparsity");
    CHECK(last > 0.899 && last < 0.901 && number_of(job, "/gradual/steps/0/sparsity") < last);
    OK(hone_job_model(job, &pruned));
    hone_job_free(job);

    how.checkpoint = checkpoint;
    how.observer = observer(&stopped);
    OK(hone_prune(model, samples, &how, &job));
    CHECK(end_of(job, &stopped) == HONE_JOB_STATE_CANCELLED && exists(checkpoint));
    hone_job_free(job);
    how.observer = observer(&resumed);
    how.threads = 1;
    OK(hone_prune(model, samples, &how, &job));
    CHECK(end_of(job, &resumed) == HONE_JOB_STATE_COMPLETED && !exists(checkpoint));
    OK(hone_job_model(job, &again));
    hone_job_free(job);
    CHECK(same_bytes(pruned, again));
    hone_model_free(again);
    hone_model_free(pruned);

    OPTIONS(hone_prune_options, bad);
    bad.sparsity = 0.5;
    bad.steps = 3;
    FAILS(INVALID_ARGUMENT, "`steps` belongs", hone_prune(model, samples, &bad, &job));
    bad.steps = 0;
    bad.checkpoint = checkpoint;
    FAILS(INVALID_ARGUMENT, "`checkpoint` belongs", hone_prune(model, samples, &bad, &job));
    bad.schedule = 2;
    FAILS(INVALID_ARGUMENT, "hone_prune_schedule", hone_prune(model, samples, &bad, &job));
    bad.schedule = HONE_PRUNE_SCHEDULE_GRADUAL;
    bad.ramp = 2;
    FAILS(INVALID_ARGUMENT, "hone_ramp", hone_prune(model, samples, &bad, &job));
    bad.ramp = 0;
    bad.tune_epochs = -1;
    FAILS(INVALID_ARGUMENT, "`tune_epochs`", hone_prune(model, samples, &bad, &job));
    bad.tune_epochs = 0;
    bad.final_epochs = -1;
    FAILS(INVALID_ARGUMENT, "`final_epochs`", hone_prune(model, samples, &bad, &job));
    bad.final_epochs = 0;
    bad.distill_weight = 2;
    FAILS(INVALID_ARGUMENT, "share", hone_prune(model, samples, &bad, &job));
    bad.distill_weight = 0;
    bad.optimizer = 3;
    FAILS(INVALID_ARGUMENT, "hone_optimizer_method", hone_prune(model, samples, &bad, &job));
}

/* The host's own gradients prune a model; its zeros outlive training. */
static void weights(hone_model *model, hone_samples *samples) {
    hone_report *report;
    double number;
    OK(hone_model_inspect(model, &report));
    OK(hone_report_number(report, "/prunable_weights", &number));
    hone_report_free(report);
    size_t len = (size_t)number;
    float *dense = (float *)calloc(len, sizeof *dense), *now = (float *)calloc(len, sizeof *now);
    CHECK(dense != NULL && now != NULL && len > 1000);
    OK(hone_model_weights(model, dense, len));
    FAILS(INVALID_ARGUMENT, "length", hone_model_weights(model, dense, len - 1));
    FAILS(INVALID_ARGUMENT, "`out`", hone_model_weights(model, NULL, len));
    hone_model *other = NULL;
    FAILS(INVALID_ARGUMENT, "length", hone_model_with_weights(model, dense, 3, &other));
    OK(hone_model_with_weights(model, dense, len, &other));
    CHECK(same_bytes(model, other));
    hone_model_free(other);

    hone_gradients *gradients;
    unsigned long long random = 9;
    OK(hone_gradients_new(4, len, NULL, &gradients));
    for (int k = 0; k < 4; k++) {
        for (size_t i = 0; i < len; i++) now[i] = uniform(&random);
        OK(hone_gradients_push(gradients, now, len));
    }
    memcpy(now, dense, len * sizeof *now);
    OPTIONS(hone_weights_options, half);
    half.sparsity = 0.5;
    OK(hone_weights_prune(gradients, now, NULL, len, NULL, 0, &half, NULL));
    hone_gradients_free(gradients);
    OK(hone_model_with_weights(model, now, len, &other));
    float first = now[0];
    now[0] = HUGE_VALF;
    hone_model *none = NULL;
    FAILS(INVALID_DATA, "number 0", hone_model_with_weights(model, now, len, &none));
    now[0] = first;

    OPTIONS(hone_finetune_options, how);
    how.steps = 2;
    how.batch = 4;
    how.trained = HONE_TRAINED_WEIGHTS;
    hone_job *job;
    OK(hone_finetune(other, samples, &how, &job));
    hone_model_free(other);
    OK(hone_job_wait(job, -1, NULL));
    OK(hone_job_model(job, &other));
    hone_job_free(job);
    OK(hone_model_weights(other, dense, len));
    size_t zeros = 0, moved = 0;
    for (size_t i = 0; i < len; i++) {
        CHECK(now[i] != 0.0f || dense[i] == 0.0f);
        zeros += now[i] == 0.0f;
        moved += dense[i] != now[i];
    }
    CHECK(2 * zeros >= len - 1 && 2 * zeros <= len + 1 && moved > len / 4);
    hone_model_free(other);
    free(dense);
    free(now);
}

enum { ROWS = 200, SITES = 4 };

/* Rows in which the second site repeats the first; one value is missing. */
static void fill(int64_t rows[ROWS][SITES]) {
    unsigned long long random = 4;
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < SITES; i++) rows[r][i] = uniform(&random) > 0;
        rows[r][1] = rows[r][0];
    }
    rows[3][2] = -1;
}

static hone_mam_train_options short_training(witness *w) {
    OPTIONS(hone_mam_train_options, how);
    how.conditional_steps = 90;
    how.marginal_steps = 240;
    how.report_every = 30;
    how.batch = 32;
    how.hidden = 16;
    how.layers = 1;
    how.learning_rate = 0.02;
    how.average = 0.9;
    how.seed = 1;
    how.observer = observer(w);
    return how;
}

/* Every network and optimizer learns that the second site repeats the first. */
static void networks(hone_engine *engine) {
    static int64_t rows[ROWS][SITES];
    const size_t shape[2] = {2, 2};
    fill(rows);
    hone_model *mlp = NULL;
    for (uint32_t network = HONE_NETWORK_MLP; network <= HONE_NETWORK_CONV; network++) {
        for (uint32_t optimizer = 0; optimizer <= HONE_MAM_OPTIMIZER_MFAC; optimizer++) {
            witness w = {NULL, 0, 0, 0, NULL};
            hone_mam_train_options how = short_training(&w);
            hone_job *job;
            how.network = network;
            how.optimizer = optimizer;
            how.shape = shape;
            how.shape_count = 2;
            how.curve = picture;
            if (network == HONE_NETWORK_TRANSFORMER) how.heads = 2;
            if (network == HONE_NETWORK_CONV) how.padding = HONE_PADDING_ZERO;
            if (optimizer == HONE_MAM_OPTIMIZER_MFAC) {
                how.window = 8;
                how.damping = 30;
                how.learning_rate = 0.05;
            }
            remove(picture);
            OK(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
            CHECK(end_of(job, &w) == HONE_JOB_STATE_COMPLETED && exists(picture));
            double bits = number_of(job, "/bits_per_site");
            printf("network %u, optimizer %u: %.3f bits per site\n", network, optimizer, bits);
            CHECK(bits < 0.9); /* 3/4 is the truth, 1 is knowing nothing. */
            hone_model *made;
            OK(hone_job_model(job, &made));
            hone_job_free(job);
            CHECK(mlp == NULL || !same_bytes(mlp, made));
            if (mlp == NULL) mlp = made;
            else hone_model_free(made);
        }
    }
    hone_model_free(mlp);
    remove(picture);

    witness none = {NULL, 0, 0, 0, NULL};
    hone_mam_train_options good = short_training(&none), how;
    hone_job *job = NULL;
#define TRAIN hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job)
    REFUSED(how, good, network, 3, "hone_network", TRAIN);
    REFUSED(how, good, padding, 3, "hone_padding", TRAIN);
    REFUSED(how, good, optimizer, 2, "hone_mam_optimizer", TRAIN);
    REFUSED(how, good, heads, 2, "`heads`", TRAIN);
    REFUSED(how, good, padding, HONE_PADDING_TORUS, "`padding`", TRAIN);
    REFUSED(how, good, window, 8, "M-FAC", TRAIN);
    REFUSED(how, good, damping, 8, "M-FAC", TRAIN);
    REFUSED(how, good, damping, -1, "`damping`", TRAIN);
    REFUSED(how, good, curve, "", "`curve`", TRAIN);
    good.optimizer = HONE_MAM_OPTIMIZER_MFAC;
    REFUSED(how, good, window, 4097, "`window`", TRAIN);
    good.network = HONE_NETWORK_TRANSFORMER;
    REFUSED(how, good, heads, 3, "3 heads do not divide 16", TRAIN);
    REFUSED(how, good, hidden, 1u << 17, "65536", TRAIN);
#undef TRAIN
    CHECK(none.calls == 0 && none.drops == 0);
    /* Convolutions need two sides, and what needs a shape says so. */
    good.network = HONE_NETWORK_CONV;
    OK(hone_mam_train(engine, rows[0], ROWS, SITES, &good, &job));
    CHECK(hone_job_wait(job, -1, NULL) == NULL);
    FAILS(INVALID_ARGUMENT, "two sides", hone_job_result(job));
    hone_job_free(job);
}

static void mam(hone_engine *engine) {
    static int64_t rows[ROWS][SITES];
    size_t shape[2] = {2, 2}, values[3] = {2, 2, 2};
    witness w = {NULL, 0, 0, 0, NULL};
    fill(rows);
    hone_mam_train_options how = short_training(&w), good;
    how.shape = shape;
    how.shape_count = 2;
    good = how;
    hone_job *job = NULL;
    OK(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    CHECK(end_of(job, &w) == HONE_JOB_STATE_COMPLETED);
    hone_report *report;
    double bits, held, count;
    OK(hone_job_report(job, &report));
    CHECK(strstr(hone_report_json(report), "hone.mam.train/1") != NULL);
    OK(hone_report_number(report, "/bits_per_site", &bits));
    OK(hone_report_number(report, "/held_out_rows", &held));
    OK(hone_report_number(report, "/history/4/step", &count));
    CHECK(bits > 0.7 && bits < 0.85 && held == ROWS / 10 && count == 60); /* 3/4 is the truth. */
    hone_report_free(report);
    hone_model *made, *again;
    OK(hone_job_model(job, &made));
    hone_job_free(job);

    hone_scorer *scorer;
    OK(hone_scorer_new(made, NULL, NULL, &scorer));
    CHECK(hone_scorer_length(scorer) == SITES && hone_scorer_vocab(scorer) == 2);
    int64_t asked[2][SITES] = {{1, 1, 0, 0}, {1, 0, 0, 0}};
    double log_p[2];
    for (uint32_t half = HONE_HALF_THETA; half <= HONE_HALF_PHI; half++) {
        OPTIONS(hone_score_options, by);
        by.half = half;
        OK(hone_scorer_score(scorer, asked[0], 2, &by, log_p));
        CHECK(log_p[0] > log_p[1] + (half == HONE_HALF_PHI ? 1 : 0.2));
    }
    hone_scorer_free(scorer);

    /* Stopped in the first stage, taken up again on one thread. */
    witness stopped = {NULL, 30, 0, 0, NULL}, resumed = {NULL, 0, 0, 0, NULL};
    how.checkpoint = checkpoint;
    how.observer = observer(&stopped);
    OK(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    CHECK(end_of(job, &stopped) == HONE_JOB_STATE_CANCELLED && exists(checkpoint));
    hone_job_free(job);
    how.observer = observer(&resumed);
    how.threads = 1;
    OK(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    CHECK(end_of(job, &resumed) == HONE_JOB_STATE_COMPLETED);
    OK(hone_job_model(job, &again));
    hone_job_free(job);
    CHECK(same_bytes(made, again));
    hone_model_free(again);
    hone_model_free(made);
    remove(checkpoint);

    witness none = {NULL, 0, 0, 0, NULL};
    good.observer = observer(&none);
    how = good;
    FAILS(INVALID_ARGUMENT, "`rows`", hone_mam_train(engine, NULL, ROWS, SITES, &how, &job));
    FAILS(INVALID_ARGUMENT, "0 rows", hone_mam_train(engine, rows[0], 0, SITES, &how, &job));
    FAILS(INVALID_ARGUMENT, "0 sites", hone_mam_train(engine, rows[0], ROWS, 0, &how, &job));
    FAILS(INVALID_ARGUMENT, "too few", hone_mam_train(engine, rows[0], 5, SITES, &how, &job));
    FAILS(INVALID_ARGUMENT, "`out`", hone_mam_train(engine, rows[0], ROWS, SITES, &how, NULL));
    how.values = values;
    how.values_count = 3;
    FAILS(INVALID_ARGUMENT, "values", hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    REFUSED(how, good, shape_count, 1, "shape",
            hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    REFUSED(how, good, batch, 65, "batch",
            hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    REFUSED(how, good, regression, 2, "hone_regression",
            hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    REFUSED(how, good, noise, 1, "noise",
            hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    REFUSED(how, good, reserved, 1, "reserved",
            hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    CHECK(none.calls == 0 && none.drops == 0);
    how = good;
    how.held_out = rows[0];
    how.held_out_count = 3;
    rows[5][0] = -5;
    OK(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    CHECK(end_of(job, &none) == HONE_JOB_STATE_FAILED);
    FAILS(INVALID_DATA, "row 5", hone_job_result(job));
    hone_job_free(job);
}

/* What a short training from an energy says of log Z; the job's model is a scorer's. */
static double learnt(hone_engine *engine, const hone_mam_train_options *how, double *exact) {
    hone_job *job;
    hone_model *made;
    hone_scorer *scorer;
    witness w = {NULL, 0, 0, 0, NULL};
    hone_mam_train_options watched = *how;
    watched.observer = observer(&w);
    OK(hone_mam_train(engine, NULL, 0, 0, &watched, &job));
    CHECK(end_of(job, &w) == HONE_JOB_STATE_COMPLETED && report_has(job, "hone.mam.energy/1"));
    double log_z = number_of(job, "/figures/log_z");
    *exact = number_of(job, "/figures/exact_log_z");
    CHECK(number_of(job, "/history/1/step") == 240);
    OK(hone_job_model(job, &made));
    hone_job_free(job);
    OK(hone_scorer_new(made, NULL, NULL, &scorer));
    hone_model_free(made);
    int64_t likely[4] = {1, 0, 1, 1};
    double log_p;
    OK(hone_scorer_score(scorer, likely, 1, NULL, &log_p));
    CHECK(log_p < 0);
    hone_scorer_free(scorer);
    return log_z;
}

static void energies(hone_engine *engine, const char *path) {
    OPTIONS(hone_mam_train_options, how);
    OPTIONS(hone_ising, ising);
    how.energy_steps = 240;
    how.report_every = 120;
    how.batch = 32;
    how.hidden = 16;
    how.layers = 1;
    how.learning_rate = 0.02;
    how.average = 0.9;
    hone_job *job = NULL;
    FAILS(INVALID_ARGUMENT, "`ising` or `energy`", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    ising.rows = 2;
    ising.columns = 2;
    ising.coupling = 0.1;
    ising.field = 0.3;
    how.ising = &ising;
    double exact, log_z = learnt(engine, &how, &exact);
    CHECK(fabs(log_z - exact) < 0.1 && exact > 2.7);

    how.network = HONE_NETWORK_CONV;
    how.hidden = 8;
    log_z = learnt(engine, &how, &exact);
    CHECK(fabs(log_z - exact) < 0.2);
    how.network = 0;
    how.hidden = 16;

    hone_model *energy;
    size_t values = 2;
    OK(hone_model_load(engine, path, &energy));
    how.ising = NULL;
    how.energy = energy;
    how.values = &values;
    how.values_count = 1;
    log_z = learnt(engine, &how, &exact);
    double truth = log1p(exp(1)) + log1p(exp(-1)) + log1p(exp(0.5));
    CHECK(fabs(exact - truth) < 1e-5 && fabs(log_z - exact) < 0.1);
    /* The published objective moves log Z slowly. */
    how.objective = HONE_ENERGY_OBJECTIVE_REINFORCE;
    double slow = learnt(engine, &how, &exact);
    CHECK(fabs(exact - truth) < 1e-5 && fabs(slow - truth) < 1 && slow != log_z);

    int64_t rows[20][4] = {{0}};
    FAILS(INVALID_ARGUMENT, "without rows", hone_mam_train(engine, rows[0], 20, 4, &how, &job));
    how.objective = 2;
    FAILS(INVALID_ARGUMENT, "hone_energy_objective", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    how.objective = 0;
    how.noise = 0.1;
    FAILS(INVALID_ARGUMENT, "`noise`", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    how.noise = 0;
    how.ising = &ising;
    FAILS(INVALID_ARGUMENT, "two energies", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    how.energy = NULL;
    FAILS(INVALID_ARGUMENT, "`values`", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    how.values_count = 0;
    ising.rows = 0;
    FAILS(INVALID_ARGUMENT, "`ising`", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    ising.size = 0;
    FAILS(INVALID_ARGUMENT, "sizeof", hone_mam_train(engine, NULL, 0, 0, &how, &job));
    how.ising = NULL;
    how.energy = energy;
    /* Without `values` nobody says how many a site has. */
    how.values = NULL;
    OK(hone_mam_train(engine, NULL, 0, 0, &how, &job));
    hone_model_free(energy);
    OK(hone_job_wait(job, -1, NULL));
    FAILS(INVALID_ARGUMENT, "how many values", hone_job_result(job));
    hone_job_free(job);
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    const char *name = strrchr(argv[0], '/');
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint-%s", argv[3], name ? name + 1 : "");
    snprintf(picture, sizeof picture, "%s/curve-%s.svg", argv[3], name ? name + 1 : "");
    remove(checkpoint);
    hone_engine *engine;
    hone_model *model;
    hone_samples *samples;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, argv[1], &model));
    OPTIONS(hone_samples_options, few);
    few.limit = 32;
    OK(hone_samples_load(model, argv[2], &few, &samples));
    finetuned(model, samples);
    refused(model, samples);
    metrics(model, samples);
    gradually(model, samples);
    weights(model, samples);
    mam(engine);
    networks(engine);
    energies(engine, argv[4]);
    hone_samples_free(samples);
    hone_model_free(model);
    hone_engine_free(engine);
    return 0;
}
