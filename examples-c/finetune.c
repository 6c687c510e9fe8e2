/* Prunes a model to 90 % zeros, then trains what is left, taught by the dense model.
 *
 *     finetune model.onnx labelled.npz tuned.onnx
 */
#include <hone.h>

#include <stdio.h>
#include <stdlib.h>

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "finetune: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

/* Waits for a job and lets go of it: its model. */
static hone_model *model_of(hone_job *job) {
    hone_model *model;
    check(hone_job_wait(job, -1, NULL));
    check(hone_job_model(job, &model));
    hone_job_free(job);
    return model;
}

/* Cross-entropy of a model on labelled samples. */
static double loss(const hone_model *model, const hone_samples *samples) {
    hone_job *job;
    hone_report *report;
    double value;
    check(hone_evaluate(model, NULL, samples, NULL, &job));
    check(hone_job_wait(job, -1, NULL));
    check(hone_job_report(job, &report));
    check(hone_report_number(report, "/model/loss", &value));
    hone_report_free(report);
    hone_job_free(job);
    return value;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL SAMPLES OUTPUT\n", argv[0]);
        return 2;
    }
    hone_engine *engine;
    hone_model *dense;
    hone_samples *samples;
    hone_job *job;
    check(hone_engine_open(NULL, NULL, &engine));
    check(hone_model_load(engine, argv[1], &dense));
    hone_samples_options reading = {.size = sizeof reading, .limit = 64};
    check(hone_samples_load(dense, argv[2], &reading, &samples));

    /* A real run leaves out `limit`, `gradients`, `stages`, `steps` and `window`. */
    hone_prune_options prune = {
        .size = sizeof prune, .sparsity = 0.9, .gradients = 64, .stages = 1};
    check(hone_prune(dense, samples, &prune, &job));
    hone_model *pruned = model_of(job);

    hone_finetune_options train = {.size = sizeof train,
                                   .distill = dense,
                                   .output = argv[3],
                                   .batch = 16,
                                   .steps = 12,
                                   .window = 8};
    check(hone_finetune(pruned, samples, &train, &job));
    hone_model *tuned = model_of(job);

    double before = loss(pruned, samples), after = loss(tuned, samples);
    printf("%s: loss on the training samples %.4f, %.4f before training\n", argv[3], after, before);

    hone_model_free(tuned);
    hone_model_free(pruned);
    hone_samples_free(samples);
    hone_model_free(dense);
    hone_engine_free(engine);
    return after < before ? 0 : 1;
}
