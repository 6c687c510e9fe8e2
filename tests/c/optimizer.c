/* Optimizers on gradients of the host, against the formulas. */
#include "check.h"

#include <math.h>

enum { D = 6 };

static int near(float a, double b) { return fabs((double)a - b) <= 1e-5 * (1 + fabs(b)); }

static void gradient_at(const float *weights, int step, float *gradient) {
    unsigned long long random = (unsigned long long)step + 3;
    for (int i = 0; i < D; i++) gradient[i] = 0.5f * weights[i] + uniform(&random);
}

static void sgd_and_adam(void) {
    OPTIONS(hone_optimizer_options, how);
    how.method = HONE_OPTIMIZER_METHOD_SGD;
    how.learning_rate = 0.1;
    how.momentum = 0.5;
    how.weight_decay = 0.01;
    hone_optimizer *optimizer;
    OK(hone_optimizer_new(D, &how, &optimizer));
    float weights[D] = {1, 2, 3, 4, 5, 6}, gradient[D];
    double w[D] = {1, 2, 3, 4, 5, 6}, v[D] = {0};
    for (int step = 0; step < 5; step++) {
        gradient_at(weights, step, gradient);
        OK(hone_optimizer_step(optimizer, weights, gradient, D));
        for (int i = 0; i < D; i++) {
            v[i] = 0.5 * v[i] + (double)gradient[i] + 0.01 * w[i];
            w[i] -= 0.1 * v[i];
            CHECK(near(weights[i], w[i]));
        }
    }
    CHECK(hone_optimizer_steps(optimizer) == 5);
    OK(hone_optimizer_set_learning_rate(optimizer, 0));
    memcpy(gradient, weights, sizeof gradient);
    OK(hone_optimizer_step(optimizer, weights, gradient, D));
    CHECK(memcmp(gradient, weights, sizeof gradient) == 0);
    FAILS(INVALID_ARGUMENT, "learning rate", hone_optimizer_set_learning_rate(optimizer, NAN));
    gradient[1] = NAN;
    FAILS(NUMERICS, "weight 1", hone_optimizer_step(optimizer, weights, gradient, D));
    CHECK(hone_optimizer_steps(optimizer) == 6);
    hone_optimizer_free(optimizer);

    OPTIONS(hone_optimizer_options, adam);
    adam.method = HONE_OPTIMIZER_METHOD_ADAM;
    adam.learning_rate = 0.1;
    OK(hone_optimizer_new(D, &adam, &optimizer));
    float start[D] = {0}, first[D] = {1, -2, 3, -4, 5, -6};
    OK(hone_optimizer_step(optimizer, start, first, D));
    for (int i = 0; i < D; i++) CHECK(near(start[i], first[i] > 0 ? -0.1 : 0.1));
    hone_optimizer_free(optimizer);
}

/* The first step of M-FAC: F = λI + ggᵀ/m, so F⁻¹g = g/(λ + gᵀg/m). */
static void mfac(void) {
    OPTIONS(hone_optimizer_options, how);
    how.learning_rate = 1;
    how.damping = 0.1;
    how.window = 4;
    hone_optimizer *optimizer;
    OK(hone_optimizer_new(D, &how, &optimizer));
    float weights[D] = {0}, gradient[D] = {1, 2, 3, -1, 0, 1};
    OK(hone_optimizer_step(optimizer, weights, gradient, D));
    for (int i = 0; i < D; i++) CHECK(near(weights[i], -(double)gradient[i] / (0.1 + 16.0 / 4)));
    hone_optimizer_free(optimizer);

    /* In the metric P = |g| of the first step: P^(-1/2)·(λI + P^(-1/2)ggᵀP^(-1/2)/m)^(-1)·P^(-1/2)g is
     * sign(g)/(λ + Σ|g|/m). */
    how.metric = HONE_METRIC_DIAGONAL;
    OK(hone_optimizer_new(D, &how, &optimizer));
    float other[D] = {0};
    OK(hone_optimizer_step(optimizer, other, gradient, D));
    for (int i = 0; i < D; i++) {
        double sign = (gradient[i] > 0.0f) - (gradient[i] < 0.0f);
        CHECK(near(other[i], -sign / (0.1 + 8.0 / 4)));
    }
    hone_optimizer_free(optimizer);
}

static void masks(uint32_t method) {
    const unsigned char mask[D] = {1, 0, 1, 0, 1, 1};
    OPTIONS(hone_optimizer_options, how);
    how.method = method;
    how.mask = mask;
    how.window = 3;
    hone_optimizer *optimizer;
    OK(hone_optimizer_new(D, &how, &optimizer));
    float weights[D] = {1, 0, 1, 0, 1, 1}, gradient[D];
    for (int step = 0; step < 4; step++) {
        gradient_at(weights, step, gradient);
        OK(hone_optimizer_step(optimizer, weights, gradient, D));
        for (int i = 0; i < D; i++) CHECK((weights[i] == 0.0f) == (mask[i] == 0));
    }
    hone_optimizer_free(optimizer);
}

/* What was saved goes on with the same bits, whatever happened in between. */
static void saved_state(uint32_t method, const char *path) {
    OPTIONS(hone_optimizer_options, how);
    how.method = method;
    how.momentum = 0.5;
    how.window = 3;
    how.schedule = HONE_SCHEDULE_COSINE;
    how.schedule_steps = 20;
    hone_optimizer *first, *second;
    OK(hone_optimizer_new(D, &how, &first));
    OK(hone_optimizer_new(D, &how, &second));
    float weights[D] = {1, 1, 1, 1, 1, 1}, others[D], gradient[D];
    for (int step = 0; step < 7; step++) {
        gradient_at(weights, step, gradient);
        OK(hone_optimizer_step(first, weights, gradient, D));
    }
    OK(hone_optimizer_save(first, path));
    memcpy(others, weights, sizeof others);
    OK(hone_optimizer_restore(second, path));
    CHECK(hone_optimizer_steps(second) == 7);
    for (int step = 7; step < 12; step++) {
        gradient_at(weights, step, gradient);
        OK(hone_optimizer_step(first, weights, gradient, D));
        gradient_at(others, step, gradient);
        OK(hone_optimizer_step(second, others, gradient, D));
    }
    CHECK(memcmp(weights, others, sizeof weights) == 0);

    /* A file that is not such a state changes nothing. */
    FILE *file = fopen(path, "r+b");
    CHECK(file != NULL && fputs("nonsense", file) >= 0 && fclose(file) == 0);
    FAILS(IO, "optimizer", hone_optimizer_restore(second, path));
    CHECK(hone_optimizer_steps(second) == 12);
    OK(hone_optimizer_save(first, path));
    file = fopen(path, "ab");
    CHECK(file != NULL && fputs("more", file) >= 0 && fclose(file) == 0);
    FAILS(IO, "goes on", hone_optimizer_restore(second, path));
    remove(path);
    hone_optimizer_free(first);
    hone_optimizer_free(second);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    sgd_and_adam();
    mfac();
    for (uint32_t method = 0; method < 3; method++) {
        masks(method);
        saved_state(method, argv[1]);
    }
    return 0;
}
