/* Trains a marginalization model of rows made here, and asks it: rows of eight bits that are either
 * all like the first half of a pattern or all unlike it, with some noise. Needs no files. */
#include <hone.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 2000, SITES = 8 };

static int64_t rows[ROWS][SITES];

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "learn: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

/* Uniform numbers between 0 and 1, the same on every machine. */
static double uniform(void) {
    static unsigned long long state = 1;
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (double)(state >> 40) / (double)(1 << 24);
}

/* Called every `report_every` steps, on a thread of hone. */
static void show(void *context, const hone_progress *progress) {
    (void)context;
    printf("%s: %llu of %llu steps\n", progress->phase, (unsigned long long)progress->done,
           (unsigned long long)progress->total);
}

int main(void) {
    for (int r = 0; r < ROWS; r++) {
        int flipped = uniform() < 0.5;
        for (int i = 0; i < SITES; i++) rows[r][i] = (i % 2) ^ flipped ^ (uniform() < 0.1);
    }
    hone_engine *engine;
    hone_job *job;
    hone_model *model;
    hone_scorer *scorer;
    check(hone_engine_open(NULL, NULL, &engine));
    /* A real run leaves out the steps and the size of the nets. */
    hone_mam_train_options how = {.size = sizeof how,
                                  .conditional_steps = 300,
                                  .marginal_steps = 300,
                                  .report_every = 150,
                                  .learning_rate = 0.01,
                                  .average = 0.98,
                                  .hidden = 32,
                                  .layers = 2,
                                  .batch = 64,
                                  .observer = {.call = show}};
    check(hone_mam_train(engine, rows[0], ROWS, SITES, &how, &job));
    check(hone_job_wait(job, -1, NULL));
    check(hone_job_model(job, &model));
    check(hone_scorer_new(model, NULL, NULL, &scorer));

    /* The last bit, once the first is known: as the first is 0, a 1 is likely. */
    int64_t known[SITES] = {0, -1, -1, -1, -1, -1, -1, -1};
    double log_p[SITES][2];
    check(hone_scorer_distributions(scorer, known, 1, NULL, log_p[0], SITES * 2));
    double p = exp(log_p[SITES - 1][1]), truth = 0.9 * 0.9 + 0.1 * 0.1;
    printf("p(last = 1 | first = 0) = %.3f, in truth %.3f\n", p, truth);

    hone_scorer_free(scorer);
    hone_model_free(model);
    hone_job_free(job);
    hone_engine_free(engine);
    return fabs(p - truth) < 0.1 ? 0 : 1;
}
