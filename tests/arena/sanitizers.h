// Which sanitizer the test runs under: what a test does to the process, its
// runtime may not survive.
#ifndef QUARRY_TESTS_ARENA_SANITIZERS_H_
#define QUARRY_TESTS_ARENA_SANITIZERS_H_

namespace quarry {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kUnderAsan = true;
constexpr bool kUnderTsan = false;
#elif defined(__SANITIZE_THREAD__)
constexpr bool kUnderAsan = false;
constexpr bool kUnderTsan = true;
#elif defined(__has_feature)
constexpr bool kUnderAsan = __has_feature(address_sanitizer);
constexpr bool kUnderTsan = __has_feature(thread_sanitizer);
#else
constexpr bool kUnderAsan = false;
constexpr bool kUnderTsan = false;
#endif

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_SANITIZERS_H_
