/* What a call costs: its time beside the work, and its allocations. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include <link.h>
#include <time.h>

/* The program's own allocator stands before the C library's for all of the process. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
/* All of them, and those that code of libhone asked for: the others are ONNX Runtime's. */
static long allocations, own;
static const char *hone_begin, *hone_end;

/* `from` is where the allocator returns to. */
static void count(const void *from) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    const char *place = (const char *)from;
    if (place >= hone_begin && place < hone_end) __atomic_add_fetch(&own, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t n) {
    count(__builtin_return_address(0));
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
    count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t n) {
    count(__builtin_return_address(0));
    return __libc_realloc(old, n);
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    count(__builtin_return_address(0));
    *out = __libc_memalign(alignment, n);
    return *out == NULL ? 12 : 0;
}

void *aligned_alloc(size_t alignment, size_t n) {
    count(__builtin_return_address(0));
    return __libc_memalign(alignment, n);
}

void free(void *p) { __libc_free(p); }

/* Where libhone lies in memory. */
static int found(struct dl_phdr_info *library, size_t size, void *unused) {
    (void)size;
    (void)unused;
    if (strstr(library->dlpi_name, "libhone.so") == NULL) return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        if (library->dlpi_phdr[i].p_type != PT_LOAD || !(library->dlpi_phdr[i].p_flags & PF_X)) continue;
        hone_begin = (const char *)library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
        hone_end = hone_begin + library->dlpi_phdr[i].p_memsz;
    }
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { CALLS = 200000, D = 40000 };

/* Nanoseconds of a step of one weight, the best of several runs: all of it counts as cost. */
static double time_of_step(void) {
    OPTIONS(hone_optimizer_options, how);
    how.method = HONE_OPTIMIZER_METHOD_SGD;
    how.threads = 1;
    hone_optimizer *optimizer;
    OK(hone_optimizer_new(1, &how, &optimizer));
    float weight = 1, gradient = 0.5f;
    double best = 1e9;
    for (int run = 0; run < 5; run++) {
        double start = now();
        for (int i = 0; i < CALLS; i++) OK(hone_optimizer_step(optimizer, &weight, &gradient, 1));
        double each = (now() - start) / CALLS;
        if (each < best) best = each;
    }
    hone_optimizer_free(optimizer);
    return 1e9 * best;
}

/* Allocations of a step once the window has been full. */
static long allocations_of_step(uint32_t method, uint32_t storage, uint32_t threads) {
    static float weights[D], gradient[D];
    OPTIONS(hone_optimizer_options, how);
    how.method = method;
    how.storage = storage;
    how.window = 8;
    how.threads = threads;
    hone_optimizer *optimizer;
    OK(hone_optimizer_new(D, &how, &optimizer));
    unsigned long long random = 1;
    long before = 0;
    for (int step = 0; step < 40; step++) {
        for (int i = 0; i < D; i++) gradient[i] = uniform(&random);
        if (step == 20) before = __atomic_load_n(&allocations, __ATOMIC_RELAXED);
        OK(hone_optimizer_step(optimizer, weights, gradient, D));
    }
    long count = __atomic_load_n(&allocations, __ATOMIC_RELAXED) - before;
    hone_optimizer_free(optimizer);
    return count;
}

enum { MOST = 2500, SITES = 64, MILLION = 1000000, FEW = 3 };

static int64_t cells[FEW * MILLION];
static double log_p[MILLION];

/* Random values of two, some of them missing. */
static void fill(void) {
    unsigned long long random = 3;
    for (int i = 0; i < FEW * MILLION; i++) {
        float u = uniform(&random);
        cells[i] = u > 0.3f ? 1 : u > -0.6f ? 0 : -1;
    }
}

/* What a score costs and allocates: `count` rows by one half of a model. */
static void score(const hone_scorer *scorer, uint32_t threads, uint32_t half, size_t count) {
    OPTIONS(hone_score_options, how);
    how.half = half;
    how.orders = 2;
    /* The first warms up. */
    int around = count < 100 ? 20 : 2;
    OK(hone_scorer_score(scorer, cells, count, &how, log_p));
    long before = __atomic_load_n(&allocations, __ATOMIC_RELAXED);
    long own_before = __atomic_load_n(&own, __ATOMIC_RELAXED);
    double best = 1e9;
    for (int i = 0; i < around; i++) {
        double start = now();
        OK(hone_scorer_score(scorer, cells, count, &how, log_p));
        double each = now() - start;
        if (each < best) best = each;
    }
    double all = (double)(__atomic_load_n(&allocations, __ATOMIC_RELAXED) - before) / around;
    double ours = (double)(__atomic_load_n(&own, __ATOMIC_RELAXED) - own_before) / around;
    printf("score of %7zu rows by %5s on %u threads: %9.1f us, %g allocations by hone, %g by ONNX "
           "Runtime\n",
           count, half == HONE_HALF_THETA ? "theta" : "phi", threads, 1e6 * best, ours, all - ours);
    CHECK(ours == 0);
    /* A smaller call finds all that it needs. */
    own_before = __atomic_load_n(&own, __ATOMIC_RELAXED);
    OK(hone_scorer_score(scorer, cells + SITES, count / 2 + 1, &how, log_p));
    CHECK(__atomic_load_n(&own, __ATOMIC_RELAXED) == own_before);
}

/* Nanoseconds of a score of no rows, the best of several runs: what C adds to the call of Rust, and
 * the taking and returning of a session, a system call, that is part of that. */
static double time_of_call(const hone_scorer *scorer) {
    OPTIONS(hone_score_options, how);
    how.half = HONE_HALF_THETA;
    double best = 1e9, none;
    for (int run = 0; run < 5; run++) {
        double start = now();
        for (int i = 0; i < CALLS; i++) OK(hone_scorer_score(scorer, NULL, 0, &how, &none));
        double each = (now() - start) / CALLS;
        if (each < best) best = each;
    }
    return 1e9 * best;
}

static void scores(const char *path) {
    hone_engine *engine;
    hone_model *model;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, path, &model));
    const uint32_t threads[2] = {1, 3};
    for (int i = 0; i < 2; i++) {
        hone_scorer *scorer;
        OPTIONS(hone_scorer_options, how);
        how.threads = threads[i];
        OK(hone_scorer_new(model, NULL, &how, &scorer));
        CHECK(hone_scorer_length(scorer) == SITES);
        for (uint32_t half = HONE_HALF_THETA; half <= HONE_HALF_PHI; half++) {
            score(scorer, threads[i], half, 1);
            score(scorer, threads[i], half, 64);
            score(scorer, threads[i], half, half == HONE_HALF_THETA ? MOST : 1100);
        }
        if (i == 0) printf("a score of no rows takes %.0f ns\n", time_of_call(scorer));
        hone_scorer_free(scorer);
    }
    hone_model_free(model);
    hone_engine_free(engine);
}

/* As many rows as the header promises, of few sites. */
static void many(const char *path) {
    hone_engine *engine;
    hone_model *model;
    hone_scorer *scorer;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, path, &model));
    OPTIONS(hone_scorer_options, how);
    how.threads = 2;
    OK(hone_scorer_new(model, NULL, &how, &scorer));
    CHECK(hone_scorer_length(scorer) == FEW);
    score(scorer, how.threads, HONE_HALF_THETA, MILLION - SITES);
    score(scorer, how.threads, HONE_HALF_PHI, MILLION / 2);
    hone_scorer_free(scorer);
    hone_model_free(model);
    hone_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 3 && dl_iterate_phdr(found, NULL) == 1);
    long before = allocations;
    free(malloc(1));
    fill();
    CHECK(allocations > before && own == 0); /* The counter counts, and tells apart. */
    hone_error *error = hone_model_load(NULL, NULL, NULL);
    CHECK(error != NULL && own > 0);
    hone_error_free(error);
    double ns = time_of_step();
    printf("a step of one weight takes %.0f ns\n", ns);
    CHECK(ns < 1000);
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        for (uint32_t method = 0; method < 3; method++) {
            for (uint32_t storage = 0; storage < 3; storage++) {
                long count = allocations_of_step(method, storage, threads);
                printf("method %u, storage %u, %u threads: %ld allocations in 20 steps\n", method,
                       storage, threads, count);
                CHECK(count == 0);
            }
        }
    }
    scores(argv[1]);
    many(argv[2]);
    return 0;
}
