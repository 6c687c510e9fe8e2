/* Prunes a model to 80 % zeros and shows the progress.
 *
 *     prune model.onnx calibration.npz pruned.onnx
 */
#include <hone.h>

#include <stdio.h>
#include <stdlib.h>

/* Ends the program with the error's message, if there is one. */
static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "prune: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

/* Called by hone on its own threads, one call at a time. */
static void show(void *context, const hone_progress *progress) {
    (void)context;
    printf("%6.1f s  %s %llu/%llu\n", progress->elapsed, progress->phase,
           (unsigned long long)progress->done, (unsigned long long)progress->total);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL SAMPLES OUTPUT\n", argv[0]);
        return 2;
    }
    hone_engine *engine;
    check(hone_engine_open(NULL, NULL, &engine));
    hone_model *model;
    check(hone_model_load(engine, argv[1], &model));
    hone_samples_options reading = {.size = sizeof reading, .limit = 64};
    hone_samples *samples;
    check(hone_samples_load(model, argv[2], &reading, &samples));

    /* A real run leaves out `limit`, `gradients` and `stages`. */
    hone_prune_options options = {
        .size = sizeof options,
        .sparsity = 0.8,
        .gradients = 64,
        .stages = 2,
        .output = argv[3],
        .observer = {.call = show},
    };
    hone_job *job;
    check(hone_prune(model, samples, &options, &job));
    check(hone_job_wait(job, -1, NULL));
    check(hone_job_result(job));

    hone_report *report;
    double sparsity;
    check(hone_job_report(job, &report));
    check(hone_report_number(report, "/total/sparsity", &sparsity));
    printf("%s: %.1f %% zeros\n", argv[3], 100.0 * sparsity);

    hone_report_free(report);
    hone_job_free(job);
    hone_samples_free(samples);
    hone_model_free(model);
    hone_engine_free(engine);
    return 0;
}
