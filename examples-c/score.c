/* Scores rows of discrete values by a marginalization model, and completes one of them.
 *
 *     score model.onnx
 */
#include <hone.h>

#include <stdio.h>
#include <stdlib.h>

static void check(hone_error *error) {
    if (error == NULL) return;
    fprintf(stderr, "score: %s\n", hone_error_message(error));
    hone_error_free(error);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    hone_engine *engine;
    hone_model *model;
    hone_scorer *scorer;
    check(hone_engine_open(NULL, NULL, &engine));
    check(hone_model_load(engine, argv[1], &model));
    check(hone_scorer_new(model, NULL, NULL, &scorer));
    size_t sites = hone_scorer_length(scorer);

    /* Two rows: nothing known but the first site, and that with the second. */
    int64_t *rows = malloc(2 * sites * sizeof *rows), *drawn = malloc(2 * sites * sizeof *rows);
    unsigned char *given = calloc(2 * sites, 1);
    if (rows == NULL || drawn == NULL || given == NULL || sites < 2) return 1;
    for (size_t i = 0; i < 2 * sites; i++) rows[i] = -1;
    rows[0] = rows[sites] = rows[sites + 1] = 0;
    double log_p[2], log_conditional[2], log_q[2];
    check(hone_scorer_score(scorer, rows, 2, NULL, log_p));
    printf("log p(x0) = %.4f, log p(x0, x1) = %.4f\n", log_p[0], log_p[1]);

    /* The second row's second site given its first. */
    given[0] = given[sites] = 1;
    check(hone_scorer_condition(scorer, rows + sites, given + sites, 1, NULL, log_conditional));
    printf("log p(x1 | x0) = %.4f\n", log_conditional[0]);

    hone_sample_options how = {.size = sizeof how, .seed = 1};
    check(hone_scorer_impute(scorer, rows, 2, &how, drawn, log_q));
    for (size_t i = 0; i < sites; i++) {
        printf("%s%lld", i ? " " : "the first row, completed: ", (long long)drawn[i]);
    }
    printf(", log q = %.4f\n", log_q[0]);

    free(rows);
    free(drawn);
    free(given);
    hone_scorer_free(scorer);
    hone_model_free(model);
    hone_engine_free(engine);
    return 0;
}
