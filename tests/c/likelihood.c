/* How far scores are likelihoods: brackets and the normaliser, of a table whose answers are known
 * and of the digits, whose answers are those of the command line.
 *
 *     likelihood TABLE DIGITS ROWS [quick]
 *
 * `quick` takes a few draws, whose answers are of no use, for runs under valgrind.
 */
#include "check.h"

#include <math.h>

enum { L = 64, ROWS = 3 };

/* The first rows of an array of int8 in a file of numpy. */
static void read_rows(const char *path, int64_t rows[ROWS][L]) {
    FILE *file = fopen(path, "rb");
    unsigned char head[10];
    signed char cells[ROWS * L];
    CHECK(file != NULL && fread(head, 1, 10, file) == 10);
    CHECK(fseek(file, 10 + head[8] + 256 * head[9], SEEK_SET) == 0);
    CHECK(fread(cells, 1, sizeof cells, file) == sizeof cells);
    fclose(file);
    for (int i = 0; i < ROWS * L; i++) {
        rows[i / L][i % L] = cells[i];
        CHECK(cells[i] == 0 || cells[i] == 1);
    }
}

static int near(double a, double b, double tolerance) { return fabs(a - b) <= tolerance; }

/* The digits:
 *
 *     hone mam score examples/mam/digits.onnx --data examples/mam/test.npy --limit 3 --correct 2048
 */
static void digits(hone_scorer *scorer, const char *path, int quick) {
    static const double theta[ROWS] = {-19.75119019, -15.34468079, -12.13119602};
    static const double lower[ROWS] = {-23.32145811, -15.89888469, -12.29449582};
    static const double lower_error[ROWS] = {0.70435687, 0.60959329, 0.72376944};
    static const double upper[ROWS] = {-20.70304393, -15.06679110, -10.19239993};
    static const double upper_error[ROWS] = {0.01457916, 0.87899860, 2.42599682};
    const double log_sum = 1.05998700, effective = 138, k = 0.68;
    int64_t rows[ROWS][L];
    double out[4][ROWS];
    read_rows(path, rows);
    OK(hone_scorer_bracket(scorer, rows[0], ROWS, NULL, out[0], out[1], out[2], out[3]));
    for (int i = 0; i < ROWS; i++) {
        CHECK(near(out[0][i], lower[i], 1e-3) && near(out[2][i], lower_error[i], 1e-3));
        CHECK(near(out[1][i], upper[i], 5e-3) && near(out[3][i], upper_error[i], 5e-3));
    }
    OPTIONS(hone_normaliser_options, few);
    OPTIONS(hone_normaliser, sum);
    few.draws = 16;
    OK(hone_scorer_normaliser(scorer, quick ? &few : NULL, &sum));
    if (!quick) {
        CHECK(near(sum.log_sum, log_sum, 0.02));
        CHECK(near(sum.effective_draws, effective, 0.1 * effective));
        CHECK(near(sum.pareto_k, k, 0.05) && sum.draws == 2048);
    }
    CHECK(!sum.exact);
    CHECK(sum.reliable == (sum.effective_draws >= 100 && sum.pareto_k < 0.7));
    CHECK(sum.error > 0 && sum.largest_share > 0 && sum.largest_share < 1);

    /* Likelihoods by θ, corrected. */
    OPTIONS(hone_score_options, how);
    how.half = HONE_HALF_THETA;
    OK(hone_scorer_score(scorer, rows[0], ROWS, &how, out[0]));
    how.log_normaliser = sum.log_sum;
    OK(hone_scorer_score(scorer, rows[0], ROWS, &how, out[1]));
    for (int i = 0; i < ROWS; i++) {
        CHECK(near(out[0][i], theta[i], 1e-3) && out[1][i] == out[0][i] - sum.log_sum);
    }
    /* A part of a row has none, whether it is missing in the row or by the mask. */
    static unsigned char known[ROWS][L];
    memset(known, 1, sizeof known);
    known[2][63] = 0;
    how.known = known[0];
    rows[0][5] = -1;
    OK(hone_scorer_score(scorer, rows[0], ROWS, &how, out[0]));
    CHECK(isnan(out[0][0]) && out[0][1] == out[1][1] && isnan(out[0][2]));
    FAILS(INVALID_DATA, "site 5 is missing", hone_scorer_score(scorer, rows[0], 1, &how, out[0]));
    how.half = HONE_HALF_PHI;
    FAILS(INVALID_ARGUMENT, "by \xce\xb8", hone_scorer_score(scorer, rows[0], 1, &how, out[0]));
    how.half = 0;
    FAILS(INVALID_ARGUMENT, "`log_normaliser`",
          hone_scorer_condition(scorer, rows[0], known[0], 1, &how, out[0]));
    FAILS(INVALID_ARGUMENT, "`log_normaliser`",
          hone_scorer_bracket(scorer, rows[0], 1, &how, out[0], out[1], NULL, NULL));
}

/* The same answers for other draws, other seeds another one; few draws are no good. */
static void draws(hone_scorer *scorer, uint32_t count) {
    OPTIONS(hone_normaliser_options, how);
    OPTIONS(hone_normaliser, one);
    OPTIONS(hone_normaliser, other);
    how.draws = count;
    OK(hone_scorer_normaliser(scorer, &how, &one));
    OK(hone_scorer_normaliser(scorer, &how, &other));
    CHECK(memcmp(&one, &other, sizeof one) == 0 && one.draws == count);
    how.seed = 1;
    OK(hone_scorer_normaliser(scorer, &how, &other));
    CHECK(one.log_sum != other.log_sum);
    how.draws = 1;
    FAILS(INVALID_ARGUMENT, "draws", hone_scorer_normaliser(scorer, &how, &other));
    how.reserved = 1;
    FAILS(INVALID_ARGUMENT, "reserved", hone_scorer_normaliser(scorer, &how, &other));
}

/* (1 + x0 + 2 x1 x2 + 3 x0 x2) / 22: every order says the same, and θ agrees. */
static void table(hone_scorer *scorer) {
    int64_t rows[3][3] = {{1, 0, 1}, {-1, -1, 1}, {0, 7, 0}};
    const double truth[2] = {5.0 / 22, 16.0 / 22};
    double lower[3], upper[3], errors[2][3];
    OPTIONS(hone_score_options, how);
    how.orders = 4;
    OK(hone_scorer_bracket(scorer, rows[0], 3, &how, lower, upper, errors[0], errors[1]));
    for (int i = 0; i < 2; i++) {
        CHECK(near(lower[i], log(truth[i]), 1e-5) && near(upper[i], log(truth[i]), 1e-5));
        CHECK(errors[0][i] < 1e-5 && errors[1][i] < 1e-5);
    }
    CHECK(isnan(lower[2]) && isnan(upper[2]) && isnan(errors[0][2]) && isnan(errors[1][2]));
    FAILS(INVALID_DATA, "site 1",
          hone_scorer_bracket(scorer, rows[2], 1, &how, lower, upper, NULL, NULL));
    how.orders = 1;
    OK(hone_scorer_bracket(scorer, rows[0], 1, &how, lower, upper, errors[0], errors[1]));
    CHECK(near(lower[0], log(truth[0]), 1e-5) && isnan(errors[0][0]) && isnan(errors[1][0]));
    OK(hone_scorer_bracket(scorer, NULL, 0, NULL, NULL, NULL, NULL, NULL));

    OPTIONS(hone_normaliser, sum);
    OK(hone_scorer_normaliser(scorer, NULL, &sum));
    CHECK(near(sum.log_sum, 0, 1e-5) && sum.error == 0 && sum.exact == 1 && sum.reliable == 1);
    CHECK(sum.draws == 8 && isnan(sum.pareto_k) && near(sum.largest_share, 7.0 / 22, 1e-5));

    FAILS(INVALID_ARGUMENT, "`scorer`",
          hone_scorer_bracket(NULL, rows[0], 1, NULL, lower, upper, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`rows`",
          hone_scorer_bracket(scorer, NULL, 1, NULL, lower, upper, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`lower`",
          hone_scorer_bracket(scorer, rows[0], 1, NULL, NULL, upper, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`upper`",
          hone_scorer_bracket(scorer, rows[0], 1, NULL, lower, NULL, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "overlap",
          hone_scorer_bracket(scorer, rows[0], 2, NULL, lower, lower + 1, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "overlap",
          hone_scorer_bracket(scorer, rows[0], 2, NULL, lower, upper, NULL, upper));
    FAILS(INVALID_ARGUMENT, "too many",
          hone_scorer_bracket(scorer, rows[0], (size_t)-1, NULL, lower, upper, NULL, NULL));
    how.half = HONE_HALF_PHI;
    FAILS(INVALID_ARGUMENT, "`half`",
          hone_scorer_bracket(scorer, rows[0], 1, &how, lower, upper, NULL, NULL));
    FAILS(INVALID_ARGUMENT, "`scorer`", hone_scorer_normaliser(NULL, NULL, &sum));
    FAILS(INVALID_ARGUMENT, "`out`", hone_scorer_normaliser(scorer, NULL, NULL));
}

static hone_scorer *scorer_of(hone_engine *engine, const char *path) {
    hone_model *model;
    hone_scorer *scorer;
    OPTIONS(hone_scorer_options, how);
    how.threads = 2;
    OK(hone_model_load(engine, path, &model));
    OK(hone_scorer_new(model, NULL, &how, &scorer));
    hone_model_free(model);
    return scorer;
}

int main(int argc, char **argv) {
    CHECK(argc == 4 || (argc == 5 && strcmp(argv[4], "quick") == 0));
    int quick = argc == 5;
    hone_engine *engine;
    OK(hone_engine_open(NULL, NULL, &engine));
    hone_scorer *scorer = scorer_of(engine, argv[1]);
    table(scorer);
    hone_scorer_free(scorer);
    scorer = scorer_of(engine, argv[2]);
    digits(scorer, argv[3], quick);
    draws(scorer, quick ? 16 : 300);
    hone_scorer_free(scorer);
    hone_engine_free(engine);
    return 0;
}
