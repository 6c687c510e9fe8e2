/* Eight threads that score, draw, submit, watch, cancel, wait, step, query and free at random.
 *
 *     stress MODEL SAMPLES MAM SECONDS
 */
#include "check.h"

#include <pthread.h>
#include <time.h>

enum { THREADS = 8, SLOTS = 6, D = 64 };

static hone_engine *engine;
static hone_model *model;
static hone_samples *samples;
static hone_optimizer *optimizer;
static hone_fisher *fisher;
static hone_model *table;
static hone_scorer *scorer;
static double certain;
static time_t end;
static long long submitted, drops, scored, ended[5];

static void seen(void *context, const hone_progress *progress) {
    CHECK(context == &submitted && progress->state < 5);
    if (progress->state > HONE_JOB_STATE_RUNNING) {
        __atomic_add_fetch(&ended[progress->state], 1, __ATOMIC_RELAXED);
    }
}

static void dropped(void *context) {
    CHECK(context == &submitted);
    __atomic_add_fetch(&drops, 1, __ATOMIC_RELAXED);
}

static hone_job *submit(unsigned long long *random) {
    OPTIONS(hone_prune_options, how);
    how.sparsity = 0.5;
    how.method = uniform(random) < -0.5f ? HONE_METHOD_MFAC : HONE_METHOD_MAGNITUDE;
    how.match_statistics = HONE_CHOICE_OFF;
    how.gradients = uniform(random) < 0 ? 8 : 100000;
    how.stages = 1;
    how.threads = 1;
    how.observer.call = seen;
    how.observer.drop = dropped;
    how.observer.context = &submitted;
    hone_job *job = NULL;
    hone_error *error = hone_prune(model, samples, &how, &job);
    if (error == NULL) {
        __atomic_add_fetch(&submitted, 1, __ATOMIC_RELAXED);
    } else {
        CHECK(hone_error_code(error) == HONE_CODE_UNAVAILABLE); /* Too many wait. */
        hone_error_free(error);
    }
    return job;
}

/* Asks the shared scorer, or one of this thread's own that goes away at once. */
static void score(unsigned long long *random) {
    int64_t rows[5][3], drawn[5][3];
    double log_p[5];
    hone_scorer *own = NULL;
    OPTIONS(hone_scorer_options, how);
    how.threads = 1 + (uniform(random) < 0);
    how.batch = 2;
    if (uniform(random) < -0.9f) OK(hone_scorer_new(table, NULL, &how, &own));
    const hone_scorer *asked = own != NULL ? own : scorer;
    for (int i = 0; i < 15; i++) rows[i / 3][i % 3] = (int64_t)(1.5f + 1.49f * uniform(random)) - 1;
    for (int i = 0; i < 3; i++) rows[2][i] = 1;
    OK(hone_scorer_score(asked, rows[0], 5, NULL, log_p));
    CHECK(log_p[2] == certain); /* Whatever the rows beside it. */
    OK(hone_scorer_impute(asked, rows[0], 5, NULL, drawn[0], log_p));
    for (int i = 0; i < 15; i++) CHECK(rows[i / 3][i % 3] < 0 || drawn[i / 3][i % 3] == rows[i / 3][i % 3]);
    hone_scorer_free(own);
    __atomic_add_fetch(&scored, 1, __ATOMIC_RELAXED);
}

static void act(hone_job **slot, unsigned long long *random) {
    float weights[D] = {0}, gradient[D], product[D];
    double diagonal[D];
    hone_job_state state;
    OPTIONS(hone_progress, progress);
    hone_report *report = NULL;
    for (int i = 0; i < D; i++) gradient[i] = uniform(random);
    switch ((int)(5.0f + 4.99f * uniform(random))) {
    case 0:
        if (*slot == NULL) *slot = submit(random);
        break;
    case 1:
        if (uniform(random) < -0.8f) hone_job_cancel(*slot);
        break;
    case 2:
        if (*slot != NULL) OK(hone_job_wait(*slot, 5, &state));
        break;
    case 3:
        if (*slot != NULL) OK(hone_job_progress(*slot, &progress));
        break;
    case 4:
        if (*slot != NULL) hone_error_free(hone_job_report(*slot, &report));
        hone_report_free(report);
        break;
    case 5:
        if (uniform(random) < 0) break;
        if (uniform(random) < 0) hone_job_cancel(*slot);
        hone_job_free(*slot);
        *slot = NULL;
        break;
    case 6: OK(hone_optimizer_step(optimizer, weights, gradient, D)); break;
    case 7: OK(hone_fisher_apply(fisher, gradient, product, D)); break;
    case 8: OK(hone_fisher_diagonal(fisher, diagonal, D)); break;
    default: score(random); break;
    }
}

static void *play(void *seed) {
    unsigned long long random = (unsigned long long)(size_t)seed;
    hone_job *slots[SLOTS] = {NULL};
    while (time(NULL) < end) {
        int slot = (int)((uniform(&random) + 1) * 0.499f * SLOTS);
        act(&slots[slot], &random);
        struct timespec moment = {0, 1000000}; /* The jobs need the processors, too. */
        nanosleep(&moment, NULL);
    }
    for (int i = 0; i < SLOTS; i++) hone_job_free(slots[i]);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    OPTIONS(hone_engine_options, how);
    how.jobs = 2;
    OK(hone_engine_open(NULL, &how, &engine));
    OK(hone_model_load(engine, argv[1], &model));
    OPTIONS(hone_samples_options, few);
    few.limit = 16;
    OK(hone_samples_load(model, argv[2], &few, &samples));
    OPTIONS(hone_optimizer_options, steps);
    steps.window = 16;
    steps.threads = 2;
    OK(hone_optimizer_new(D, &steps, &optimizer));
    hone_gradients *gradients;
    OK(hone_gradients_new(8, D, NULL, &gradients));
    unsigned long long random = 3;
    for (int k = 0; k < 8; k++) {
        float gradient[D];
        for (int i = 0; i < D; i++) gradient[i] = uniform(&random);
        OK(hone_gradients_push(gradients, gradient, D));
    }
    OK(hone_fisher_new(gradients, NULL, &fisher));
    hone_gradients_free(gradients);

    OK(hone_model_load(engine, argv[3], &table));
    OK(hone_scorer_new(table, NULL, NULL, &scorer));
    int64_t ones[3] = {1, 1, 1};
    OK(hone_scorer_score(scorer, ones, 1, NULL, &certain));

    end = time(NULL) + atoi(argv[4]);
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, play, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    hone_model_free(model);
    hone_samples_free(samples);
    hone_model_free(table);
    hone_engine_free(engine);
    hone_scorer_free(scorer);
    hone_fisher_free(fisher);
    printf("%llu steps, %lld scores; %lld jobs: %lld completed, %lld cancelled\n",
           (unsigned long long)hone_optimizer_steps(optimizer), scored, submitted,
           ended[HONE_JOB_STATE_COMPLETED], ended[HONE_JOB_STATE_CANCELLED]);
    hone_optimizer_free(optimizer);
    CHECK(scored > 0 && submitted > 0 && drops == submitted);
    CHECK(ended[HONE_JOB_STATE_COMPLETED] > 0 && ended[HONE_JOB_STATE_CANCELLED] > 0);
    CHECK(ended[HONE_JOB_STATE_FAILED] == 0);
    CHECK(ended[HONE_JOB_STATE_COMPLETED] + ended[HONE_JOB_STATE_CANCELLED] == submitted);
    return 0;
}
