/* What the tests of the C API have in common. They are compiled as C11 and as C++17. */
#ifndef CHECK_H
#define CHECK_H

#include <hone.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program unless the condition holds. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Ends the program unless the call succeeds. */
#define OK(call)                                                                                   \
    do {                                                                                           \
        hone_error *check_error_ = (call);                                                         \
        if (check_error_ != NULL) {                                                                \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,                          \
                    hone_error_message(check_error_));                                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Ends the program unless the call fails with HONE_CODE_<code> and a message that has `words`. */
#define FAILS(code, words, call) check_failure((call), HONE_CODE_##code, words, __LINE__, #call)

static inline void check_failure(hone_error *error, hone_code code, const char *words, int line,
                                 const char *call) {
    if (error == NULL || hone_error_code(error) != code ||
        strstr(hone_error_message(error), words) == NULL) {
        fprintf(stderr, "line %d: %s: code %d \"%s\", not %d with \"%s\"\n", line, call,
                (int)hone_error_code(error), hone_error_message(error), (int)code, words);
        exit(1);
    }
    hone_error_free(error);
}

/* A struct of options with every field at its default. */
#define OPTIONS(type, name)                                                                        \
    type name;                                                                                     \
    memset(&name, 0, sizeof name);                                                                 \
    name.size = sizeof name

/* Uniform numbers between -1 and 1, the same on every machine. */
static inline float uniform(unsigned long long *state) {
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(*state >> 40) / (float)(1 << 23) - 1.0f;
}

#endif
