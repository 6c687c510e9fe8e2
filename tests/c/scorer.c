/* A marginalization model whose probabilities are known: (1 + x0 + 2·x1·x2 + 3·x0·x2) / 22. */
#include "check.h"

#include <math.h>

enum { L = 3, K = 2 };

/* The probability of the known values of a row; -1 is missing. */
static double exact(const int64_t *row) {
    double sum = 0;
    for (int64_t code = 0; code < 8; code++) {
        int64_t x[L] = {code >> 2, code >> 1 & 1, code & 1};
        int fits = 1;
        for (int i = 0; i < L; i++) fits &= row[i] == -1 || row[i] == x[i];
        if (fits) sum += (double)(1 + x[0] + 2 * x[1] * x[2] + 3 * x[0] * x[2]) / 22;
    }
    return sum;
}

static int near(double a, double b) { return fabs(a - b) <= 1e-5 * (1 + fabs(b)); }

static void scores(hone_scorer *scorer) {
    int64_t rows[27][L];
    for (int64_t code = 0; code < 27; code++) {
        rows[code][0] = code / 9 - 1;
        rows[code][1] = code / 3 % 3 - 1;
        rows[code][2] = code % 3 - 1;
    }
    for (uint32_t half = 0; half < 3; half++) {
        OPTIONS(hone_score_options, how);
        how.half = half;
        how.orders = 3;
        double out[27];
        OK(hone_scorer_score(scorer, rows[0], 27, &how, out));
        for (int i = 0; i < 27; i++) CHECK(near(out[i], log(exact(rows[i]))));
    }

    /* A row that cannot be is NaN beside others, and an error by itself. */
    int64_t mixed[2][L] = {{0, 7, 1}, {1, 1, 1}};
    double out[2];
    OK(hone_scorer_score(scorer, mixed[0], 2, NULL, out));
    CHECK(isnan(out[0]) && near(out[1], log(7.0 / 22)));
    FAILS(INVALID_DATA, "site 1", hone_scorer_score(scorer, mixed[0], 1, NULL, out));
    OK(hone_scorer_score(scorer, NULL, 0, NULL, NULL));

    /* log p(x0, x1 | x2). */
    unsigned char given[2 * L] = {0, 0, 1, 0, 0, 1};
    int64_t asked[2][L] = {{1, 0, 1}, {1, -1, 0}};
    for (uint32_t half = 0; half < 3; half++) {
        OPTIONS(hone_score_options, how);
        how.half = half;
        if (half == 0) OK(hone_scorer_condition(scorer, asked[0], given, 2, NULL, out));
        if (half > 0) OK(hone_scorer_condition(scorer, asked[0], given, 2, &how, out));
        for (int i = 0; i < 2; i++) {
            int64_t rest[L] = {-1, -1, asked[i][2]};
            CHECK(near(out[i], log(exact(asked[i]) / exact(rest))));
        }
    }
}

static void distributions(hone_scorer *scorer) {
    int64_t rows[2][L] = {{-1, 1, -1}, {0, 9, 0}};
    double out[2][L][K];
    for (uint32_t half = 0; half < 3; half++) {
        OPTIONS(hone_score_options, how);
        how.half = half;
        OK(hone_scorer_distributions(scorer, rows[0], 2, &how, out[0][0], 2 * L * K));
        CHECK(out[0][1][1] == 0 && isinf(out[0][1][0]) && isnan(out[1][2][1]));
        for (int site = 0; site < L; site += 2) {
            for (int value = 0; value < K; value++) {
                int64_t both[L] = {-1, 1, -1};
                both[site] = value;
                CHECK(near(out[0][site][value], log(exact(both) / exact(rows[0]))));
            }
        }
    }
    FAILS(INVALID_DATA, "site 1",
          hone_scorer_distributions(scorer, rows[1], 1, NULL, out[0][0], L * K));
    OPTIONS(hone_score_options, how);
    how.half = 5;
    FAILS(INVALID_ARGUMENT, "hone_half",
          hone_scorer_distributions(scorer, rows[0], 1, &how, out[0][0], L * K));
    FAILS(INVALID_ARGUMENT, "length 5",
          hone_scorer_distributions(scorer, rows[0], 1, NULL, out[0][0], 5));
}

static void draws(hone_scorer *scorer) {
    enum { N = 4000 };
    static int64_t rows[N][L], drawn[N][L], again[N][L];
    static double log_q[N];
    for (uint32_t sweeps = 0; sweeps < 2; sweeps++) {
        OPTIONS(hone_sample_options, how);
        how.seed = 5;
        how.sweeps = sweeps;
        for (int i = 0; i < N; i++) rows[i][0] = 1, rows[i][1] = rows[i][2] = -1;
        OK(hone_scorer_impute(scorer, rows[0], N, &how, drawn[0], log_q));
        double ones = 0;
        for (int i = 0; i < N; i++) {
            CHECK(drawn[i][0] == 1 && drawn[i][1] >= 0 && drawn[i][2] >= 0);
            if (sweeps == 0) CHECK(near(log_q[i], log(exact(drawn[i]) / exact(rows[0]))));
            ones += (double)(drawn[i][1] & drawn[i][2]) / N;
        }
        /* Four standard errors. */
        double p = 7.0 / (2 + 2 + 5 + 7);
        CHECK(fabs(ones - p) < 4 * sqrt(p * (1 - p) / N));
        OK(hone_scorer_impute(scorer, rows[0], N, &how, again[0], NULL));
        CHECK(memcmp(drawn, again, sizeof drawn) == 0);
        /* Draws of one row are those of the row as often as there are draws. */
        how.draws = N;
        OK(hone_scorer_impute(scorer, rows[0], 1, &how, again[0], NULL));
        CHECK(memcmp(drawn, again, sizeof drawn) == 0);
        how.draws = 0;
        how.first_draw = 7;
        OK(hone_scorer_impute(scorer, rows[7], 5, &how, again[0], NULL));
        CHECK(memcmp(drawn[7], again, 5 * sizeof again[0]) == 0);
    }
    rows[0][1] = 5;
    OK(hone_scorer_impute(scorer, rows[0], 2, NULL, drawn[0], log_q));
    CHECK(drawn[0][0] == -1 && isnan(log_q[0]) && drawn[1][0] == 1);
    FAILS(INVALID_DATA, "site 1", hone_scorer_impute(scorer, rows[0], 1, NULL, drawn[0], log_q));

    /* Out of nothing, in an order of the caller's. */
    OPTIONS(hone_sample_options, how);
    uint32_t order[L] = {2, 0, 1};
    how.order = order;
    how.order_count = L;
    OK(hone_scorer_sample(scorer, N, &how, drawn[0], log_q));
    double ones = 0;
    for (int i = 0; i < N; i++) {
        CHECK(near(log_q[i], log(exact(drawn[i]))));
        ones += (double)drawn[i][2] / N;
    }
    int64_t last[L] = {-1, -1, 1};
    double p = exact(last);
    CHECK(fabs(ones - p) < 4 * sqrt(p * (1 - p) / N));
    how.order_count = 2;
    FAILS(INVALID_ARGUMENT, "order", hone_scorer_sample(scorer, 1, &how, drawn[0], NULL));
    how.order = NULL;
    how.sweeps = 1;
    FAILS(INVALID_ARGUMENT, "hone_scorer_impute", hone_scorer_sample(scorer, 1, &how, drawn[0], NULL));
    how.sweeps = 0;
    how.temperature = -1;
    FAILS(INVALID_ARGUMENT, "temperature", hone_scorer_sample(scorer, 1, &how, drawn[0], NULL));
    FAILS(INVALID_ARGUMENT, "too many", hone_scorer_sample(scorer, (size_t)-1, NULL, drawn[0], NULL));
    OK(hone_scorer_sample(scorer, 0, NULL, NULL, NULL));
}

/* A mask hides values as -1 does, for every question. */
static void masks(hone_scorer *scorer) {
    int64_t rows[2][L] = {{1, 9, 1}, {0, 1, 1}}, hidden[2][L] = {{1, -1, 1}, {-1, 1, -1}};
    unsigned char known[2][L] = {{1, 0, 1}, {0, 1, 0}}, given[2][L] = {{1, 0, 0}, {0, 0, 0}};
    double a[2 * L * K], b[2 * L * K];
    int64_t drawn[2][L], again[2][L];
    OPTIONS(hone_score_options, how);
    how.known = known[0];
    OK(hone_scorer_score(scorer, rows[0], 2, &how, a));
    OK(hone_scorer_score(scorer, hidden[0], 2, NULL, b));
    CHECK(a[0] == b[0] && a[1] == b[1] && near(a[0], log(exact(hidden[0]))));
    OK(hone_scorer_condition(scorer, rows[0], given[0], 2, &how, a));
    OK(hone_scorer_condition(scorer, hidden[0], given[0], 2, NULL, b));
    CHECK(a[0] == b[0] && a[1] == b[1]);
    OK(hone_scorer_distributions(scorer, rows[0], 2, &how, a, 2 * L * K));
    OK(hone_scorer_distributions(scorer, hidden[0], 2, NULL, b, 2 * L * K));
    CHECK(memcmp(a, b, sizeof a) == 0);
    OPTIONS(hone_sample_options, draw);
    OK(hone_scorer_impute(scorer, hidden[0], 2, &draw, again[0], NULL));
    draw.known = known[0];
    OK(hone_scorer_impute(scorer, rows[0], 2, &draw, drawn[0], NULL));
    CHECK(memcmp(drawn, again, sizeof drawn) == 0 && drawn[0][0] == 1 && drawn[1][1] == 1);
}

/* θ and φ of this model are the same probabilities. */
static void agreement(hone_scorer *scorer) {
    int64_t rows[3][L] = {{0, 1, 1}, {1, -1, 0}, {1, 0, 1}};
    hone_job *job = NULL;
    hone_report *report;
    double value;
    OK(hone_scorer_check(scorer, rows[0], 3, NULL, &job));
    OK(hone_job_wait(job, -1, NULL));
    OK(hone_job_report(job, &report));
    hone_job_free(job);
    OK(hone_report_number(report, "/one_step/max", &value));
    CHECK(value < 1e-5);
    OK(hone_report_number(report, "/theta_against_phi/max", &value));
    CHECK(value < 1e-5);
    OK(hone_report_number(report, "/rows", &value));
    CHECK(value == 3);
    hone_report_free(report);
    rows[1][0] = 4;
    OK(hone_scorer_check(scorer, rows[0], 3, NULL, &job));
    OK(hone_job_wait(job, -1, NULL));
    FAILS(INVALID_DATA, "site 0", hone_job_result(job));
    hone_job_free(job);
}

static void misuse(hone_engine *engine, hone_scorer *scorer, const char *no_mam) {
    hone_model *other;
    hone_scorer *none = NULL;
    hone_report *report;
    int64_t row[L] = {0, 0, 0};
    unsigned char given[L] = {0, 0, 1};
    double out[L * K];
    OK(hone_model_load(engine, no_mam, &other));
    FAILS(INVALID_MODEL, "mam.", hone_scorer_new(other, NULL, NULL, &none));
    hone_model_free(other);
    FAILS(INVALID_ARGUMENT, "`model`", hone_scorer_new(NULL, NULL, NULL, &none));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_score(NULL, row, 1, NULL, out));
    FAILS(INVALID_ARGUMENT, "`rows`", hone_scorer_score(scorer, NULL, 1, NULL, out));
    FAILS(INVALID_ARGUMENT, "`out`", hone_scorer_score(scorer, row, 1, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "too many", hone_scorer_score(scorer, row, (size_t)-1, NULL, out));
    FAILS(INVALID_ARGUMENT, "`given`", hone_scorer_condition(scorer, row, NULL, 1, NULL, out));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_condition(NULL, row, given, 1, NULL, out));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_distributions(NULL, row, 1, NULL, out, L * K));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_sample(NULL, 1, NULL, row, out));
    FAILS(INVALID_ARGUMENT, "`out`", hone_scorer_sample(scorer, 1, NULL, NULL, out));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_impute(NULL, row, 1, NULL, row, out));
    FAILS(INVALID_ARGUMENT, "`rows`", hone_scorer_impute(scorer, NULL, 1, NULL, row, out));
    FAILS(INVALID_ARGUMENT, "`out`", hone_scorer_impute(scorer, row, 1, NULL, NULL, out));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_inspect(NULL, &report));
    hone_job *job = NULL;
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_check(NULL, row, 1, NULL, &job));
    FAILS(INVALID_ARGUMENT, "`out`", hone_scorer_check(scorer, row, 1, NULL, NULL));
    OPTIONS(hone_score_options, how);
    how.half = 7;
    FAILS(INVALID_ARGUMENT, "hone_half", hone_scorer_score(scorer, row, 1, &how, out));
    CHECK(hone_scorer_length(NULL) == 0 && hone_scorer_vocab(NULL) == 0);
    hone_scorer_free(NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    hone_engine *engine;
    hone_model *model;
    hone_scorer *scorer;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, argv[1], &model));
    OPTIONS(hone_scorer_options, how);
    how.threads = 2;
    OK(hone_scorer_new(model, NULL, &how, &scorer));
    hone_model_free(model);
    CHECK(hone_scorer_length(scorer) == L && hone_scorer_vocab(scorer) == K);
    hone_report *report;
    double yes;
    OK(hone_scorer_inspect(scorer, &report));
    OK(hone_report_number(report, "/normalised", &yes));
    CHECK(yes == 1);
    hone_report_free(report);
    scores(scorer);
    distributions(scorer);
    draws(scorer);
    masks(scorer);
    agreement(scorer);
    misuse(engine, scorer, argv[2]);
    hone_engine_free(engine);
    double still;
    int64_t row[L] = {1, 1, 1};
    OK(hone_scorer_score(scorer, row, 1, NULL, &still));
    hone_scorer_free(scorer);
    return 0;
}
