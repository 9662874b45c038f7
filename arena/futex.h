// Sleeping until a word changes.
//
// Thread-safety: any thread. errno is preserved.
// Source: futex(2).
#ifndef QUARRY_ARENA_FUTEX_H_
#define QUARRY_ARENA_FUTEX_H_

#include <atomic>
#include <cstdint>

namespace quarry {

// Sleeps while `word` is `value`. May return at any time: the caller looks.
void FutexWait(std::atomic<uint32_t>& word, uint32_t value);

// The same for at most `most_ms` milliseconds; false when they have passed.
[[nodiscard]] bool FutexWaitFor(std::atomic<uint32_t>& word, uint32_t value,
                                uint64_t most_ms);

// Wakes one of those who sleep.
void FutexWakeOne(std::atomic<uint32_t>& word);

}  // namespace quarry

#endif  // QUARRY_ARENA_FUTEX_H_
