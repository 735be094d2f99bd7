// A failed check prints what differs and where, and the program returns non-zero.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <string>

#include "cpu/pick.h"

namespace test {

constexpr int MOST_PRINTED = 20;

inline int failures = 0;
inline std::string situation;  // the case at hand, in words; printed with a failure

[[gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    if (++failures > MOST_PRINTED) return;
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "[%s] ", situation.c_str());
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
}

#define CHECK(condition, ...)                        \
    do {                                             \
        if (!(condition)) ::test::fail(__VA_ARGS__); \
    } while (false)

[[gnu::format(printf, 1, 2)]] inline void now(const char* format, ...) {
    char text[256];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    situation = text;
}

// What main returns: runs the tests on the instruction set that MPAMATCH_CPU names.
inline int run(void (*tests)()) {
    try {
        std::printf("instruction set %s\n", mpamatch::name_of(mpamatch::instruction_set()));
        tests();
    } catch (const std::exception& error) {
        fail("exception: %s", error.what());
    }
    if (failures > 0) std::fprintf(stderr, "%d checks failed\n", failures);
    return failures > 0 ? 1 : 0;
}

}  // namespace test
