/* What a library may not do to its host: take its signals, print, hang a forked child, or insist on
 * an ONNX Runtime of its own. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    int lines, drops, wrong;
} journal;

static void line(void *context, hone_log_level level, const char *target, const char *message) {
    journal *j = (journal *)context;
    __atomic_add_fetch(&j->lines, 1, __ATOMIC_RELAXED);
    if (level > HONE_LOG_LEVEL_INFO || target == NULL || message == NULL || j->drops > 0) {
        __atomic_store_n(&j->wrong, 1, __ATOMIC_RELAXED);
    }
}

static void dropped(void *context) { ((journal *)context)->drops++; }

static void logs(void) {
    static journal first, second;
    hone_log_sink sink = {line, dropped, &first};
    OK(hone_log_set(HONE_LOG_LEVEL_INFO, &sink));
    sink.context = &second;
    OK(hone_log_set(HONE_LOG_LEVEL_INFO, &sink));
    CHECK(first.drops == 1);
    hone_engine *engine;
    OK(hone_engine_open(NULL, NULL, &engine));
    hone_engine_free(engine);
    OK(hone_log_set(HONE_LOG_LEVEL_OFF, NULL));
    CHECK(second.drops == 1 && second.wrong == 0);
    CHECK(first.lines == 0);
}

/* The signals that every thread but this one blocks, as the kernel has it. */
static int others_block(int signal) {
    DIR *tasks = opendir("/proc/self/task");
    int others = 0, blocking = 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == (int)getpid()) continue;
        char path[512], text[256];
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *status = fopen(path, "r");
        if (status == NULL) continue; /* It has just ended. */
        char state = 'X';
        unsigned long long mask = 0;
        while (fgets(text, sizeof text, status) != NULL) {
            if (strncmp(text, "State:", 6) == 0) state = text[7];
            if (strncmp(text, "SigBlk:", 7) == 0) mask = strtoull(text + 7, NULL, 16);
        }
        fclose(status);
        if (state == 'X' || state == 'Z') continue; /* It ends, and has no mask any more. */
        others++;
        blocking += (int)(mask >> (signal - 1) & 1);
    }
    closedir(tasks);
    CHECK(others > 0);
    return others == blocking;
}

/* Each signal's handler, at the first call; afterwards a check that it is still there. */
static void handlers_are_as_before(void) {
    static void (*before[32])(int);
    static int known;
    for (int signal = 1; signal < 32; signal++) {
        struct sigaction action;
        CHECK(sigaction(signal, NULL, &action) == 0);
        if (!known) before[signal] = action.sa_handler;
        CHECK(action.sa_handler == before[signal]);
    }
    known = 1;
}

/* So many that a step takes far longer than what is between two. */
enum { STEPPED = 200000 };
static hone_optimizer *busy;
static int taken;

/* Steps until `taken` is set to -1. */
static void *steps(void *unused) {
    (void)unused;
    static float weights[STEPPED], gradient[STEPPED];
    int now = 0;
    while (__atomic_load_n(&taken, __ATOMIC_ACQUIRE) == now) {
        OK(hone_optimizer_step(busy, weights, gradient, STEPPED));
        int was = now++;
        __atomic_compare_exchange_n(&taken, &was, now, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    return NULL;
}

static void signals_and_forks(const char *model_path, const char *samples_path, const char *mam) {
    hone_engine *engine;
    hone_model *model;
    hone_samples *samples;
    hone_job *job;
    OK(hone_engine_open(NULL, NULL, &engine));
    OK(hone_model_load(engine, model_path, &model));
    OK(hone_samples_load(model, samples_path, NULL, &samples));
    hone_model *table;
    hone_scorer *scorer, *other = NULL;
    OK(hone_model_load(engine, mam, &table));
    /* A scorer with a helper that waits for work. */
    OPTIONS(hone_scorer_options, helped);
    helped.threads = 2;
    helped.batch = 1;
    int64_t asked[4][3] = {{0, 0, 0}, {0, 0, 1}, {0, 1, 0}, {1, 0, 0}};
    double answers[4];
    OK(hone_scorer_new(table, NULL, &helped, &scorer));
    OK(hone_scorer_score(scorer, asked[0], 4, NULL, answers));
    OPTIONS(hone_prune_options, how);
    how.sparsity = 0.5;
    how.gradients = 1000000;
    how.threads = 3;
    OK(hone_prune(model, samples, &how, &job));
    OPTIONS(hone_progress, now);
    do {
        OK(hone_job_wait(job, 10, NULL));
        OK(hone_job_progress(job, &now));
    } while (now.done == 0);
    for (int i = 0; i < 50; i++) {
        CHECK(others_block(SIGTERM) && others_block(SIGINT) && others_block(SIGCHLD));
    }
    handlers_are_as_before();

    /* An optimizer that another thread is using nearly all of the time, and one that nobody is. */
    hone_optimizer *idle;
    hone_gradients *gradients;
    float weight = 1, slope = 1;
    OPTIONS(hone_optimizer_options, stepping);
    stepping.method = HONE_OPTIMIZER_METHOD_SGD;
    stepping.threads = 1;
    OK(hone_optimizer_new(STEPPED, &stepping, &busy));
    OK(hone_optimizer_new(1, &stepping, &idle));
    OK(hone_gradients_new(2, 1, NULL, &gradients));
    /* One with a helper that waits for work. */
    enum { HELPED = 10000 };
    static float many[HELPED], slopes[HELPED];
    hone_optimizer *shared;
    OPTIONS(hone_optimizer_options, sharing);
    sharing.window = 2;
    sharing.threads = 2;
    OK(hone_optimizer_new(HELPED, &sharing, &shared));
    OK(hone_optimizer_step(shared, many, slopes, HELPED));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, steps, NULL) == 0);
    while (__atomic_load_n(&taken, __ATOMIC_ACQUIRE) < 3) continue;

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20); /* A child that hangs ends by SIGALRM. */
        hone_job *another = NULL;
        FAILS(UNAVAILABLE, "forked", hone_prune(model, samples, &how, &another));
        FAILS(UNAVAILABLE, "forked", hone_finetune(model, samples, NULL, &another));
        FAILS(UNAVAILABLE, "forked", hone_evaluate(model, model, samples, NULL, &another));
        int64_t rows[20][3] = {{0}};
        double log_p;
        hone_model *again = NULL;
        FAILS(UNAVAILABLE, "forked", hone_mam_train(engine, rows[0], 20, 3, NULL, &another));
        FAILS(UNAVAILABLE, "forked", hone_scorer_score(scorer, rows[0], 1, NULL, &log_p));
        FAILS(UNAVAILABLE, "forked", hone_scorer_sample(scorer, 1, NULL, rows[0], NULL));
        FAILS(UNAVAILABLE, "forked", hone_scorer_check(scorer, rows[0], 1, NULL, &another));
        FAILS(UNAVAILABLE, "forked", hone_scorer_bracket(scorer, rows[0], 1, NULL, &log_p, &log_p,
                                                         NULL, NULL));
        FAILS(UNAVAILABLE, "forked", hone_scorer_normaliser(scorer, NULL, NULL));
        hone_scorer_free(scorer);
        FAILS(UNAVAILABLE, "forked", hone_scorer_new(table, NULL, NULL, &other));
        FAILS(UNAVAILABLE, "forked", hone_model_load(engine, model_path, &again));
        FAILS(UNAVAILABLE, "forked", hone_job_wait(job, -1, NULL));
        FAILS(UNAVAILABLE, "forked", hone_job_progress(job, &now));
        static float zeros[STEPPED], ones[STEPPED];
        FAILS(UNAVAILABLE, "forked", hone_optimizer_step(busy, zeros, ones, STEPPED));
        FAILS(UNAVAILABLE, "forked", hone_optimizer_set_learning_rate(busy, 0.1));
        FAILS(UNAVAILABLE, "forked", hone_optimizer_save(busy, "never-written"));
        FAILS(UNAVAILABLE, "forked", hone_optimizer_step(idle, &weight, &slope, 1));
        FAILS(UNAVAILABLE, "forked", hone_gradients_push(gradients, &slope, 1));
        CHECK(hone_optimizer_steps(busy) == 0 && hone_gradients_count(gradients) == 0);
        FAILS(UNAVAILABLE, "forked", hone_optimizer_step(shared, many, slopes, HELPED));
        hone_optimizer_free(busy);
        hone_optimizer_free(shared);
        hone_gradients_free(gradients);
        hone_optimizer *own;
        OK(hone_optimizer_new(1, &stepping, &own)); /* Its own works. */
        OK(hone_optimizer_step(own, &weight, &slope, 1));
        hone_optimizer_free(own);
        hone_job_cancel(job);
        hone_job_free(job);
        hone_engine_free(engine);
        /* Another program, as the memory of the threads that are not here would count as lost. */
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    __atomic_store_n(&taken, -1, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    OK(hone_optimizer_step(shared, many, slopes, HELPED));
    hone_optimizer_free(shared);
    hone_optimizer_free(busy);
    hone_optimizer_free(idle);
    hone_gradients_free(gradients);
    hone_engine_free(engine);
    hone_job_state state;
    OK(hone_job_wait(job, 0, &state));
    CHECK(state == HONE_JOB_STATE_CANCELLED);
    hone_job_free(job);
    hone_scorer_free(scorer);
    hone_model_free(table);
    hone_samples_free(samples);
    hone_model_free(model);
}

/* The host's own ONNX Runtime, by the address of its API. */
static void runtime_of_host(void) {
    typedef const void *(*get_api_base)(void);
    void *library = dlopen(getenv("HONE_ORT_DYLIB"), RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    get_api_base get;
    void *symbol = dlsym(library, "OrtGetApiBase");
    CHECK(symbol != NULL);
    memcpy(&get, &symbol, sizeof get);
    OPTIONS(hone_engine_options, how);
    hone_engine *engine, *again;
    /* A file that is not there is an error, after which another can be named. */
    how.onnxruntime = "/no/such/libonnxruntime.so";
    FAILS(RUNTIME, "/no/such/libonnxruntime.so", hone_engine_open(NULL, &how, &engine));
    how.ort_api_base = get();
    OK(hone_engine_open(NULL, &how, &engine));
    OK(hone_engine_open(NULL, &how, &again));
    hone_engine_free(again);
    OPTIONS(hone_engine_options, other);
    other.onnxruntime = getenv("HONE_ORT_DYLIB");
    FAILS(CONFLICT, "elsewhere", hone_engine_open(NULL, &other, &again));
    hone_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 5);
    /* Whatever is printed, by the library or by ONNX Runtime, shows in this file. */
    char path[4096];
    snprintf(path, sizeof path, "%s/printed-%s", argv[3], argv[0] == NULL ? "" : strrchr(argv[0], '/') + 1);
    handlers_are_as_before();
    int out = dup(1), err = dup(2);
    CHECK(freopen(path, "w", stdout) != NULL && dup2(1, 2) == 2);
    runtime_of_host();
    logs();
    signals_and_forks(argv[1], argv[2], argv[4]);
    fflush(stdout);
    CHECK(ftell(stdout) == 0 && lseek(1, 0, SEEK_END) == 0);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    remove(path);
    return 0;
}
