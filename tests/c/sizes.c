/* Option structs of callers older and newer than the library, for every function that takes one.
 *
 *     sizes MODEL SAMPLES MAM
 */
#include "check.h"

/* `call` with `o`, a struct of defaults: of a newer caller that sets nothing new, and of one that
 * knew the size alone (what follows must not be read), it does what `usual` says, for an error or
 * for none; of one that sets something new, and with a size that cannot be, it is an error. */
#define SIZES(type, call, usual, cleanup)                                                          \
    do {                                                                                           \
        struct {                                                                                   \
            type known;                                                                            \
            unsigned long long later;                                                              \
        } given_;                                                                                  \
        const type *o = &given_.known;                                                             \
        memset(&given_, 0, sizeof given_);                                                         \
        given_.known.size = sizeof given_;                                                         \
        expect(call, usual, __LINE__);                                                             \
        cleanup;                                                                                   \
        given_.later = 1;                                                                          \
        FAILS(INVALID_ARGUMENT, "too old", call);                                                  \
        memset(&given_, 0xff, sizeof given_);                                                      \
        given_.known.size = sizeof given_.known.size;                                              \
        expect(call, usual, __LINE__);                                                             \
        cleanup;                                                                                   \
        given_.known.size = 0;                                                                     \
        FAILS(INVALID_ARGUMENT, "sizeof", call);                                                   \
        given_.known.size = (size_t)-1;                                                            \
        FAILS(INVALID_ARGUMENT, "sizeof", call);                                                   \
    } while (0)

static void expect(hone_error *error, const char *words, int line) {
    if (words == NULL ? error != NULL : strstr(hone_error_message(error), words) == NULL) {
        fprintf(stderr, "line %d: \"%s\"\n", line, hone_error_message(error));
        exit(1);
    }
    hone_error_free(error);
}

/* A struct that comes out is written as far as it reaches, its size stays, the rest is zero. */
static void progress(hone_job *job) {
    struct {
        hone_progress known;
        unsigned long long later;
    } longer;
    memset(&longer, 0xff, sizeof longer);
    longer.known.size = sizeof longer;
    OK(hone_job_progress(job, &longer.known));
    CHECK(longer.later == 0 && longer.known.reserved == 0 && longer.known.size == sizeof longer);
    OPTIONS(hone_progress, shorter);
    memset(&shorter, 0xff, sizeof shorter);
    shorter.size = offsetof(hone_progress, done);
    OK(hone_job_progress(job, &shorter));
    CHECK(shorter.phase != NULL && shorter.done == UINT64_MAX && shorter.state == UINT32_MAX);
    CHECK(shorter.size == offsetof(hone_progress, done));
    FAILS(INVALID_ARGUMENT, "`out`", hone_job_progress(job, NULL));
}

static void made_longer_and_shorter(hone_scorer *scorer) {
    struct {
        hone_normaliser known;
        unsigned long long later;
    } longer;
    memset(&longer, 0xff, sizeof longer);
    longer.known.size = sizeof longer;
    OK(hone_scorer_normaliser(scorer, NULL, &longer.known));
    CHECK(longer.later == 0 && longer.known.exact == 1 && longer.known.size == sizeof longer);
    OPTIONS(hone_normaliser, shorter);
    memset(&shorter, 0xff, sizeof shorter);
    shorter.size = offsetof(hone_normaliser, draws);
    OK(hone_scorer_normaliser(scorer, NULL, &shorter));
    CHECK(shorter.error == 0 && shorter.draws == UINT64_MAX && shorter.exact == UINT32_MAX);
    shorter.size = 3;
    FAILS(INVALID_ARGUMENT, "sizeof", hone_scorer_normaliser(scorer, NULL, &shorter));
}

static void let_go(hone_job *job) {
    hone_job_cancel(job);
    hone_job_free(job);
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    hone_engine *engine, *other;
    hone_model *model, *table;
    hone_samples *samples, *few;
    hone_scorer *scorer, *another;
    hone_job *job;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, argv[1], &model));
    OK(hone_model_load(engine, argv[3], &table));
    OPTIONS(hone_samples_options, limited);
    limited.limit = 8;
    OK(hone_samples_load(model, argv[2], &limited, &samples));
    OK(hone_scorer_new(table, NULL, NULL, &scorer));

    SIZES(hone_engine_options, hone_engine_open(NULL, o, &other), NULL, hone_engine_free(other));
    SIZES(hone_samples_options, hone_samples_load(model, argv[2], o, &few), NULL,
          hone_samples_free(few));
    SIZES(hone_samples_options, hone_samples_from_tensors(model, NULL, 0, NULL, o, &few), "missing",
          (void)0);
    SIZES(hone_prune_options, hone_prune(model, samples, o, &job), "`sparsity`", (void)0);
    SIZES(hone_finetune_options, hone_finetune(model, samples, o, &job), NULL, let_go(job));
    SIZES(hone_evaluate_options, hone_evaluate(model, model, samples, o, &job), NULL, let_go(job));
    SIZES(hone_scorer_options, hone_scorer_new(table, NULL, o, &another), NULL,
          hone_scorer_free(another));

    int64_t row[3] = {1, 0, 1}, drawn[3], rows[20][2];
    unsigned char given[3] = {1, 0, 0};
    double answer, distributions[6];
    memset(rows, 0, sizeof rows);
    SIZES(hone_score_options, hone_scorer_score(scorer, row, 1, o, &answer), NULL, (void)0);
    SIZES(hone_score_options, hone_scorer_condition(scorer, row, given, 1, o, &answer), NULL,
          (void)0);
    SIZES(hone_score_options, hone_scorer_distributions(scorer, row, 1, o, distributions, 6), NULL,
          (void)0);
    double lower, upper;
    SIZES(hone_score_options,
          hone_scorer_bracket(scorer, row, 1, o, &lower, &upper, NULL, NULL), NULL, (void)0);
    OPTIONS(hone_normaliser, normaliser);
    SIZES(hone_normaliser_options, hone_scorer_normaliser(scorer, o, &normaliser), NULL, (void)0);
    made_longer_and_shorter(scorer);
    SIZES(hone_sample_options, hone_scorer_sample(scorer, 1, o, drawn, NULL), NULL, (void)0);
    SIZES(hone_sample_options, hone_scorer_impute(scorer, row, 1, o, drawn, NULL), NULL, (void)0);
    SIZES(hone_check_options, hone_scorer_check(scorer, row, 1, o, &job), NULL, let_go(job));
    SIZES(hone_mam_train_options, hone_mam_train(engine, rows[0], 20, 2, o, &job), NULL,
          let_go(job));

    hone_gradients *gradients, *more;
    hone_fisher *fisher;
    hone_optimizer *optimizer;
    float weights[2] = {1, 2}, gradient[2] = {1, -1};
    OK(hone_gradients_new(1, 2, NULL, &gradients));
    OK(hone_gradients_push(gradients, gradient, 2));
    SIZES(hone_gradients_options, hone_gradients_new(1, 1, o, &more), NULL,
          hone_gradients_free(more));
    SIZES(hone_fisher_options, hone_fisher_new(gradients, o, &fisher), NULL,
          hone_fisher_free(fisher));
    SIZES(hone_weights_options, hone_weights_prune(gradients, weights, NULL, 2, NULL, 0, o, NULL),
          "`sparsity`", (void)0);
    SIZES(hone_optimizer_options, hone_optimizer_new(2, o, &optimizer), NULL,
          hone_optimizer_free(optimizer));
    hone_gradients_free(gradients);

    OK(hone_evaluate(model, model, samples, NULL, &job));
    OK(hone_job_wait(job, -1, NULL));
    progress(job);
    hone_job_free(job);
    hone_scorer_free(scorer);
    hone_samples_free(samples);
    hone_model_free(table);
    hone_model_free(model);
    hone_engine_free(engine);
    return 0;
}
