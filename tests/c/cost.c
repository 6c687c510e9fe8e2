/* What a call costs: its time beside the work, and its allocations. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include <time.h>

/* The program's own allocator stands before the C library's for all of the process. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static long allocations;

void *malloc(size_t n) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t n) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_realloc(old, n);
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    *out = __libc_memalign(alignment, n);
    return *out == NULL ? 12 : 0;
}

void *aligned_alloc(size_t alignment, size_t n) {
    __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_memalign(alignment, n);
}

void free(void *p) { __libc_free(p); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { CALLS = 200000, D = 4096 };

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
static long allocations_of_step(uint32_t method, uint32_t storage) {
    static float weights[D], gradient[D];
    OPTIONS(hone_optimizer_options, how);
    how.method = method;
    how.storage = storage;
    how.window = 8;
    how.threads = 1;
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

int main(void) {
    long before = allocations;
    free(malloc(1));
    CHECK(allocations > before); /* The counter counts. */
    double ns = time_of_step();
    printf("a step of one weight takes %.0f ns\n", ns);
    CHECK(ns < 1000);
    for (uint32_t method = 0; method < 3; method++) {
        for (uint32_t storage = 0; storage < 3; storage++) {
            long count = allocations_of_step(method, storage);
            printf("method %u, storage %u: %ld allocations in 20 steps\n", method, storage, count);
            CHECK(count == 0);
        }
    }
    return 0;
}
