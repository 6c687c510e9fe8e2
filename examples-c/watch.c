/* Watches a job from a poll loop, as a server would that has other descriptors to serve, and gives
 * up on it after a while.
 *
 *     watch model.onnx calibration.npz
 */
#include <hone.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "watch: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL SAMPLES\n", argv[0]);
        return 2;
    }
    hone_engine *engine;
    hone_model *model;
    hone_samples *samples;
    hone_job *job;
    check(hone_engine_open(NULL, NULL, &engine));
    check(hone_model_load(engine, argv[1], &model));
    check(hone_samples_load(model, argv[2], NULL, &samples));
    hone_prune_options options = {.size = sizeof options, .sparsity = 0.9, .gradients = 100000};
    check(hone_prune(model, samples, &options, &job));
    /* The job keeps what it needs. */
    hone_samples_free(samples);
    hone_model_free(model);

    struct pollfd watched = {.fd = hone_job_fd(job), .events = POLLIN};
    for (int round = 0; poll(&watched, 1, 200) == 0; round++) {
        hone_progress now = {.size = sizeof now};
        check(hone_job_progress(job, &now));
        printf("%s %llu/%llu\n", now.phase, (unsigned long long)now.done,
               (unsigned long long)now.total);
        if (round == 10) hone_job_cancel(job);
    }
    hone_error *why = hone_job_result(job);
    printf("ended: %s\n", why == NULL ? "completed" : hone_error_message(why));
    int expected = why == NULL || hone_error_code(why) == HONE_CODE_CANCELLED;
    hone_error_free(why);
    hone_job_free(job);
    hone_engine_free(engine);
    return expected ? 0 : 1;
}
