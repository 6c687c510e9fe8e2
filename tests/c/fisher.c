/* The static algorithm and the pruning of flat weights, against arithmetic done here. */
#include "check.h"

#include <math.h>

enum { M = 20, D = 12 };

static float g[M][D];

/* The inverse of λI + GᵀG/m within blocks of `block` weights, by Gauss and Jordan. */
static void invert(double lambda, size_t block, double out[D][D]) {
    static double a[D][2 * D];
    for (size_t i = 0; i < D; i++) {
        for (size_t j = 0; j < D; j++) {
            double sum = 0;
            for (size_t k = 0; k < M; k++) sum += (double)g[k][i] * (double)g[k][j];
            a[i][j] = i / block == j / block ? sum / M + (i == j ? lambda : 0) : 0;
            a[i][D + j] = i == j;
        }
    }
    for (size_t p = 0; p < D; p++) {
        double pivot = a[p][p];
        for (size_t j = 0; j < 2 * D; j++) a[p][j] /= pivot;
        for (size_t i = 0; i < D; i++) {
            double factor = a[i][p];
            for (size_t j = 0; j < 2 * D && i != p; j++) a[i][j] -= factor * a[p][j];
        }
    }
    for (size_t i = 0; i < D; i++) {
        for (size_t j = 0; j < D; j++) out[i][j] = a[i][D + j];
    }
}

static int near(double a, double b) { return fabs(a - b) <= 1e-4 * (fabs(a) + fabs(b)) + 1e-5; }

static hone_gradients *gradients_of(uint32_t storage) {
    OPTIONS(hone_gradients_options, how);
    how.storage = storage;
    hone_gradients *gradients;
    OK(hone_gradients_new(M, D, &how, &gradients));
    for (size_t k = 0; k < M; k++) {
        CHECK(hone_gradients_count(gradients) == k);
        OK(hone_gradients_push(gradients, g[k], D));
    }
    return gradients;
}

static void inverse(size_t block) {
    hone_gradients *gradients = gradients_of(HONE_STORAGE_F32);
    OPTIONS(hone_fisher_options, how);
    how.damping_absolute = 0.05;
    how.block = block;
    how.threads = 2;
    hone_fisher *fisher;
    OK(hone_fisher_new(gradients, &how, &fisher));
    FAILS(CONFLICT, "are there", hone_gradients_push(gradients, g[0], D));
    hone_gradients_free(gradients); /* The Fisher keeps them. */
    CHECK(hone_fisher_dimension(fisher) == D && hone_fisher_damping(fisher) == 0.05);

    double want[D][D], diagonal[D], elements[D];
    invert(0.05, block == 0 ? (size_t)D : block, want);
    OK(hone_fisher_diagonal(fisher, diagonal, D));
    float x[D], y[D];
    unsigned long long random = 9;
    for (size_t i = 0; i < D; i++) x[i] = uniform(&random);
    OK(hone_fisher_apply(fisher, x, y, D));
    for (size_t i = 0; i < D; i++) {
        CHECK(near(diagonal[i], want[i][i]));
        double sum = 0;
        for (size_t j = 0; j < D; j++) sum += want[i][j] * (double)x[j];
        CHECK(near((double)y[i], sum));
        size_t rows[D], columns[D];
        for (size_t j = 0; j < D; j++) rows[j] = i, columns[j] = j;
        OK(hone_fisher_elements(fisher, rows, columns, elements, D));
        for (size_t j = 0; j < D; j++) CHECK(near(elements[j], want[i][j]));
    }

    FAILS(INVALID_ARGUMENT, "length 11", hone_fisher_diagonal(fisher, diagonal, D - 1));
    FAILS(INVALID_ARGUMENT, "`out`", hone_fisher_diagonal(fisher, NULL, D));
    FAILS(INVALID_ARGUMENT, "overlap", hone_fisher_apply(fisher, x, x, D));
    x[3] = NAN;
    FAILS(NUMERICS, "`x`[3]", hone_fisher_apply(fisher, x, y, D));
    size_t beyond = D;
    FAILS(INVALID_ARGUMENT, "no weight 12",
          hone_fisher_elements(fisher, &beyond, &beyond, elements, 1));
    OK(hone_fisher_elements(fisher, NULL, NULL, NULL, 0));
    hone_fisher_free(fisher);
}

static void what_is_missing(void) {
    hone_gradients *gradients;
    hone_fisher *fisher;
    OK(hone_gradients_new(2, D, NULL, &gradients));
    OK(hone_gradients_push(gradients, g[0], D));
    FAILS(CONFLICT, "1 of 2", hone_fisher_new(gradients, NULL, &fisher));
    float broken[D] = {0};
    broken[4] = INFINITY;
    FAILS(NUMERICS, "not finite", hone_gradients_push(gradients, broken, D));
    FAILS(INVALID_ARGUMENT, "length 3", hone_gradients_push(gradients, g[1], 3));
    CHECK(hone_gradients_count(gradients) == 1);
    OK(hone_gradients_push(gradients, g[0], D));
    OPTIONS(hone_fisher_options, how);
    how.damping = -1;
    FAILS(INVALID_ARGUMENT, "damping", hone_fisher_new(gradients, &how, &fisher));
    hone_gradients_free(gradients);

    float ones[D];
    for (size_t i = 0; i < D; i++) ones[i] = 1;
    how.damping = 0;
    how.damping_absolute = 1e-30;
    OK(hone_gradients_new(40, D, NULL, &gradients));
    for (size_t k = 0; k < 40; k++) OK(hone_gradients_push(gradients, ones, D));
    FAILS(NUMERICS, "raise the damping", hone_fisher_new(gradients, &how, &fisher));
    hone_gradients_free(gradients);

    float zeros[D] = {0};
    OK(hone_gradients_new(1, D, NULL, &gradients));
    OK(hone_gradients_push(gradients, zeros, D));
    FAILS(NUMERICS, "all gradients are zero", hone_fisher_new(gradients, NULL, &fisher));
    hone_gradients_free(gradients);
}

/* λ as a fraction of the mean square, in every format. */
static void relative_damping(void) {
    double mean = 0;
    for (size_t k = 0; k < M; k++) {
        for (size_t i = 0; i < D; i++) mean += (double)g[k][i] * (double)g[k][i] / (M * D);
    }
    for (uint32_t storage = 0; storage < 3; storage++) {
        hone_gradients *gradients = gradients_of(storage);
        hone_fisher *fisher;
        OK(hone_fisher_new(gradients, NULL, &fisher));
        CHECK(fabs(hone_fisher_damping(fisher) / (0.01 * mean) - 1) < 0.01);
        hone_fisher_free(fisher);
        hone_gradients_free(gradients);
    }
}

/* The exact optimum for a set of removed weights: w_S = w⁰_S + (F_SS)⁻¹ F_SP w⁰_P. */
static void pruned_weights(void) {
    hone_gradients *gradients = gradients_of(HONE_STORAGE_F32);
    float before[D], weights[D];
    unsigned char mask[D];
    unsigned long long random = 11;
    for (size_t i = 0; i < D; i++) before[i] = weights[i] = uniform(&random);
    memset(mask, 1, sizeof mask);
    mask[2] = 0;
    before[2] = weights[2] = 0;
    OPTIONS(hone_weights_options, how);
    how.sparsity = 0.5;
    how.damping_absolute = 0.05;
    double loss;
    OK(hone_weights_prune(gradients, weights, mask, D, NULL, 0, &how, &loss));
    size_t zeros = 0;
    for (size_t i = 0; i < D; i++) {
        CHECK((mask[i] == 0) == (weights[i] == 0.0f));
        zeros += mask[i] == 0;
    }
    CHECK(zeros == D / 2 && mask[2] == 0 && loss > 0);
    /* At the optimum the gradient of the damped quadratic vanishes on the survivors. */
    for (size_t i = 0; i < D; i++) {
        double slope = 0.05 * (double)(weights[i] - before[i]);
        for (size_t k = 0; k < M; k++) {
            double along = 0;
            for (size_t j = 0; j < D; j++) {
                along += (double)g[k][j] * (double)(weights[j] - before[j]);
            }
            slope += (double)g[k][i] * along / M;
        }
        CHECK(mask[i] == 0 || fabs(slope) < 1e-5);
    }

    /* N:M within rows of layers; what lies outside stays. */
    hone_layer layers[1] = {{"w", 0, 8, 4}};
    memcpy(weights, before, sizeof weights);
    OPTIONS(hone_weights_options, pattern);
    pattern.pattern = "2:4";
    OK(hone_weights_prune(gradients, weights, NULL, D, layers, 1, &pattern, NULL));
    for (size_t row = 0; row < 2; row++) {
        size_t left = 0;
        for (size_t j = 0; j < 4; j++) left += weights[4 * row + j] != 0.0f;
        CHECK(left == 2);
    }
    CHECK(memcmp(weights + 8, before + 8, 4 * sizeof *weights) == 0);

    layers[0].len = 13;
    FAILS(INVALID_ARGUMENT, "reaches beyond",
          hone_weights_prune(gradients, weights, NULL, D, layers, 1, &pattern, NULL));
    layers[0].len = 8;
    layers[0].row = 3;
    FAILS(INVALID_ARGUMENT, "rows of 3",
          hone_weights_prune(gradients, weights, NULL, D, layers, 1, &pattern, NULL));
    pattern.pattern = "5:4";
    FAILS(INVALID_ARGUMENT, "5:4",
          hone_weights_prune(gradients, weights, NULL, D, NULL, 0, &pattern, NULL));
    FAILS(INVALID_ARGUMENT, "sparsity",
          hone_weights_prune(gradients, weights, NULL, D, NULL, 0, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "length 5",
          hone_weights_prune(gradients, weights, NULL, 5, NULL, 0, &how, NULL));
    hone_gradients_free(gradients);
}

int main(void) {
    unsigned long long random = 5;
    for (size_t k = 0; k < M; k++) {
        for (size_t i = 0; i < D; i++) g[k][i] = uniform(&random);
    }
    inverse(0);
    inverse(5);
    what_is_missing();
    relative_damping();
    pruned_weights();
    return 0;
}
