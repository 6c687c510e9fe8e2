/* Prunes weights of one's own by gradients of one's own: a linear model whose inputs are correlated,
 * so that what is removed can be made up for. Compares M-FAC with plain magnitude. */
#include <hone.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { WEIGHTS = 64, SAMPLES = 256 };

static float inputs[SAMPLES][WEIGHTS];

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "weights: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

static float uniform(void) {
    static unsigned long long state = 7;
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(state >> 40) / (float)(1 << 23) - 1.0f;
}

/* Mean square of how far the outputs move. */
static double change(const float *from, const float *to) {
    double sum = 0;
    for (int i = 0; i < SAMPLES; i++) {
        double d = 0;
        for (int j = 0; j < WEIGHTS; j++) d += (double)(to[j] - from[j]) * (double)inputs[i][j];
        sum += d * d;
    }
    return sum / SAMPLES;
}

static int by_magnitude(const void *a, const void *b) {
    float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
    return (x > y) - (x < y);
}

int main(void) {
    float weights[WEIGHTS], pruned[WEIGHTS], cut[WEIGHTS], sorted[WEIGHTS];
    for (int j = 0; j < WEIGHTS; j++) weights[j] = pruned[j] = cut[j] = sorted[j] = uniform();

    /* Neighbouring inputs have most in common. The gradient of the output is the input itself. */
    hone_gradients *gradients;
    check(hone_gradients_new(SAMPLES, WEIGHTS, NULL, &gradients));
    for (int i = 0; i < SAMPLES; i++) {
        float common = 0;
        for (int j = 0; j < WEIGHTS; j++) {
            if (j % 4 == 0) common = uniform();
            inputs[i][j] = common + 0.3f * uniform();
        }
        check(hone_gradients_push(gradients, inputs[i], WEIGHTS));
    }

    hone_weights_options options = {.size = sizeof options, .sparsity = 0.5, .damping = 1e-3};
    double predicted;
    check(hone_weights_prune(gradients, pruned, NULL, WEIGHTS, NULL, 0, &options, &predicted));
    hone_gradients_free(gradients);

    qsort(sorted, WEIGHTS, sizeof *sorted, by_magnitude);
    int zeros = 0;
    for (int j = 0; j < WEIGHTS; j++) {
        if (fabsf(cut[j]) <= fabsf(sorted[WEIGHTS / 2 - 1])) cut[j] = 0;
        zeros += pruned[j] == 0.0f;
    }
    printf("%d of %d weights removed; outputs move by %.4f (predicted %.4f), magnitude: %.4f\n",
           zeros, WEIGHTS, change(weights, pruned), 2 * predicted, change(weights, cut));
    return zeros == WEIGHTS / 2 && change(weights, pruned) < change(weights, cut) ? 0 : 1;
}
