/* A training loop in plain C: logistic regression on badly scaled inputs, with gradients of its own
 * and M-FAC as the optimizer; plain gradient descent beside it for comparison. Needs no model and
 * no ONNX Runtime. */
#include <hone.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHTS = 32, SAMPLES = 512, BATCH = 32, STEPS = 400 };

static float inputs[SAMPLES][WEIGHTS];
static float labels[SAMPLES];

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "train: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

/* Uniform numbers between -1 and 1, the same on every machine. */
static float uniform(void) {
    static unsigned long long state = 1;
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(state >> 40) / (float)(1 << 23) - 1.0f;
}

/* Inputs whose scales span three orders of magnitude, and labels of a random linear rule. */
static void make_data(void) {
    float rule[WEIGHTS];
    for (int j = 0; j < WEIGHTS; j++) rule[j] = uniform();
    for (int i = 0; i < SAMPLES; i++) {
        float sum = 0;
        for (int j = 0; j < WEIGHTS; j++) {
            float x = uniform();
            sum += rule[j] * x;
            inputs[i][j] = x * powf(10.0f, -3.0f * (float)j / WEIGHTS);
        }
        labels[i] = sum > 0 ? 1.0f : 0.0f;
    }
}

/* The mean cross-entropy of the samples from `first`; adds its gradient to `gradient` if given. */
static double loss(const float *weights, int first, int count, float *gradient) {
    double total = 0;
    for (int i = first; i < first + count; i++) {
        double z = 0;
        for (int j = 0; j < WEIGHTS; j++) z += (double)weights[j] * (double)inputs[i][j];
        double p = 1 / (1 + exp(-z));
        total -= labels[i] > 0 ? log(fmax(p, 1e-12)) : log(fmax(1 - p, 1e-12));
        if (gradient == NULL) continue;
        float error = (float)(p - (double)labels[i]) / (float)count;
        for (int j = 0; j < WEIGHTS; j++) gradient[j] += error * inputs[i][j];
    }
    return total / count;
}

static double train(hone_optimizer_options options) {
    hone_optimizer *optimizer;
    float weights[WEIGHTS] = {0};
    check(hone_optimizer_new(WEIGHTS, &options, &optimizer));
    for (int step = 0; step < STEPS; step++) {
        float gradient[WEIGHTS];
        memset(gradient, 0, sizeof gradient);
        loss(weights, step * BATCH % SAMPLES, BATCH, gradient);
        check(hone_optimizer_step(optimizer, weights, gradient, WEIGHTS));
    }
    hone_optimizer_free(optimizer);
    return loss(weights, 0, SAMPLES, NULL);
}

int main(void) {
    make_data();
    hone_optimizer_options mfac = {.size = sizeof mfac,
                                   .method = HONE_OPTIMIZER_METHOD_MFAC,
                                   .window = 64,
                                   .damping = 1e-4,
                                   .learning_rate = 0.02,
                                   .threads = 1};
    hone_optimizer_options sgd = {
        .size = sizeof sgd, .method = HONE_OPTIMIZER_METHOD_SGD, .learning_rate = 1};
    double with_mfac = train(mfac), with_sgd = train(sgd);
    printf("loss after %d steps: M-FAC %.4f, SGD %.4f\n", STEPS, with_mfac, with_sgd);
    return with_mfac < with_sgd ? 0 : 1;
}
