// Every call that allocates with every call that may free what it gave: what is live
// afterwards is what was live before. Of a block that is lost on a seldom trodden way nothing
// tells but that, and in time the resident size.
//
// Linked with //alloc:malloc: all of them are Quarry's in this process.
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "alloc/quarry.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/statistics_now.h"

extern "C" void cfree(void* block);  // glibc has no declaration of it any more.

namespace quarry {
namespace {

using std::align_val_t;
using std::nothrow;

// Its thread-local storage would count as live.
const bool no_thread = (settings.maintenance = false, true);

// What a caller may say of a block when it frees it.
enum class Asked {
  kSize,         // That it was asked for with this size.
  kAlignedSize,  // And with this alignment.
  kNothing,
};

struct Allocating {
  const char* name;
  Asked asked;
  void* (*allocate)(size_t alignment, size_t bytes);
  size_t more_bytes = 0;  // That it asks for, where 0 would free.
};

struct Freeing {
  const char* name;
  Asked asked;
  void (*free)(void* block, size_t alignment, size_t bytes);
};

constexpr Allocating kAllocating[] = {
    {"malloc", Asked::kSize, [](size_t, size_t n) { return malloc(n); }},
    {"calloc", Asked::kSize, [](size_t, size_t n) { return calloc(1, n); }},
    {"realloc", Asked::kSize, [](size_t, size_t n) { return realloc(nullptr, n); }},
    {"realloc, growing", Asked::kSize,
     [](size_t, size_t n) { return realloc(malloc(n / 2 + 1), n + 1); }, 1},
    {"realloc, shrinking", Asked::kSize,
     [](size_t, size_t n) { return realloc(malloc(3 * n), n + 1); }, 1},
    {"reallocarray", Asked::kSize,
     [](size_t, size_t n) { return reallocarray(malloc(1), 1, n + 1); }, 1},
    {"quarry_reallocf", Asked::kSize,
     [](size_t, size_t n) { return quarry_reallocf(malloc(n), n + 1); }, 1},
    {"quarry_malloc_aligned8", Asked::kSize,
     [](size_t, size_t n) { return quarry_malloc_aligned8(n); }},
    {"quarry_allocate_at_least", Asked::kSize,
     [](size_t, size_t n) { return quarry_allocate_at_least(n).block; }},
    {"new", Asked::kSize, [](size_t, size_t n) { return ::operator new(n); }},
    {"new[]", Asked::kSize, [](size_t, size_t n) { return ::operator new[](n); }},
    {"new, nothrow", Asked::kSize,
     [](size_t, size_t n) { return ::operator new(n, nothrow); }},
    {"aligned new", Asked::kAlignedSize,
     [](size_t a, size_t n) { return ::operator new(n, align_val_t{a}); }},
    {"aligned new, nothrow", Asked::kAlignedSize,
     [](size_t a, size_t n) { return ::operator new[](n, align_val_t{a}, nothrow); }},
    {"aligned_alloc", Asked::kAlignedSize,
     [](size_t a, size_t n) { return aligned_alloc(a, n); }},
    {"memalign", Asked::kAlignedSize, [](size_t a, size_t n) { return memalign(a, n); }},
    {"posix_memalign", Asked::kAlignedSize,
     [](size_t a, size_t n) {
       void* block = nullptr;
       return posix_memalign(&block, a, n) == 0 ? block : nullptr;
     }},
    {"valloc", Asked::kNothing, [](size_t, size_t n) { return valloc(n); }},
    {"pvalloc", Asked::kNothing, [](size_t, size_t n) { return pvalloc(n); }},
};

constexpr Freeing kFreeing[] = {
    {"free", Asked::kNothing, [](void* p, size_t, size_t) { free(p); }},
    {"cfree", Asked::kNothing, [](void* p, size_t, size_t) { cfree(p); }},
    {"realloc to 0", Asked::kNothing,
     [](void* p, size_t, size_t) { EXPECT_EQ(quarry_realloc(p, 0), nullptr); }},
    {"realloc, and free", Asked::kNothing,
     [](void* p, size_t, size_t n) { free(realloc(p, n / 3 + 1)); }},
    {"delete", Asked::kNothing, [](void* p, size_t, size_t) { ::operator delete(p); }},
    {"delete[], nothrow", Asked::kNothing,
     [](void* p, size_t, size_t) { ::operator delete[](p, nothrow); }},
    {"sized delete", Asked::kSize,
     [](void* p, size_t, size_t n) { ::operator delete(p, n); }},
    {"free_sized", Asked::kSize,
     [](void* p, size_t, size_t n) { quarry_free_sized(p, n); }},
    {"aligned delete", Asked::kAlignedSize,
     [](void* p, size_t a, size_t) { ::operator delete(p, align_val_t{a}); }},
    {"aligned sized delete", Asked::kAlignedSize,
     [](void* p, size_t a, size_t n) { ::operator delete[](p, n, align_val_t{a}); }},
    {"free_aligned_sized", Asked::kAlignedSize,
     [](void* p, size_t a, size_t n) { quarry_free_aligned_sized(p, a, n); }},
};

constexpr size_t kSizes[] = {0,     1,     8,     16,    17,    48,     100,    255,
                             1000,  1024,  1025,  3000,  4096,  4097,   5000,   8192,
                             8193,  12000, 16384, 16385, 20000, 21000,  21900,  32768,
                             32769, 40000, 65536, 65537, 99999, 300000, 5000000};
constexpr size_t kAlignments[] = {8, 16, 64, 1024, 4096, 65536, 2 << 20};

size_t LiveBytesWhereAllBalances() {
  const quarry_statistics_t statistics = Statistics();
  ExpectBalanced(statistics);
  return statistics.live_bytes;
}

bool MayFree(const Allocating& allocating, const Freeing& freeing) {
  return freeing.asked == Asked::kNothing || freeing.asked == allocating.asked;
}

// Calls visit(allocating, freeing, alignment, bytes) for all of them that make sense.
template <typename Visit>
void ForEachPair(Visit visit) {
  for (const Allocating& allocating : kAllocating) {
    for (const Freeing& freeing : kFreeing) {
      if (!MayFree(allocating, freeing)) continue;
      for (const size_t alignment : kAlignments) {
        if (allocating.asked != Asked::kAlignedSize && alignment != 8) continue;
        for (const size_t bytes : kSizes) visit(allocating, freeing, alignment, bytes);
      }
    }
  }
}

// Some live at a time, so that each magazine is neither full nor empty most of the time, and
// more at times, so that it overflows and is filled.
template <typename FreeOne>
void TakeAndFree(const Allocating& allocating, size_t alignment, size_t bytes,
                 FreeOne free_one) {
  std::array<void*, 40> blocks;
  const size_t count = bytes > 100000 || alignment > 4096 ? 4 : std::size(blocks);
  const auto take = [&] {
    void* const block = allocating.allocate(alignment, bytes);
    EXPECT_NE(block, nullptr);
    if (bytes > 0) static_cast<char*>(block)[bytes - 1] = 1;
    return block;
  };
  std::generate_n(blocks.begin(), count, take);
  for (size_t i = 0; i < 3 * count; ++i) {
    void*& block = blocks[i * 7 % count];
    free_one(block);
    block = take();
  }
  std::for_each_n(blocks.begin(), count, free_one);
}

TEST(EveryPair, LeavesLiveWhatWasLive) {
  LiveBytesWhereAllBalances();
  ForEachPair([](const Allocating& allocating, const Freeing& freeing, size_t alignment,
                 size_t bytes) {
    const size_t live_bytes = LiveBytesWhereAllBalances();
    TakeAndFree(allocating, alignment, bytes, [&](void* block) {
      freeing.free(block, alignment, bytes + allocating.more_bytes);
    });
    EXPECT_EQ(LiveBytesWhereAllBalances(), live_bytes) << allocating.name << " and " << freeing.name << ", "
                                       << bytes << " at " << alignment;
  });
  quarry_verify();
}

// The same where another thread frees.
TEST(EveryPair, LeavesLiveWhatWasLiveWhicheverThreadFrees) {
  std::thread([] {}).join();  // What libc keeps of the first.
  for (const Freeing& freeing : kFreeing) {
    const size_t live_bytes = LiveBytesWhereAllBalances();
    for (const Allocating& allocating : kAllocating) {
      if (!MayFree(allocating, freeing)) continue;
      const size_t alignment = 64;
      std::vector<std::pair<void*, size_t>> blocks;
      blocks.reserve(4 * std::size(kSizes));
      for (size_t i = 0; i < blocks.capacity(); ++i) {
        const size_t bytes = kSizes[i % std::size(kSizes)];
        blocks.emplace_back(allocating.allocate(alignment, bytes),
                            bytes + allocating.more_bytes);
      }
      std::thread([&] {
        for (const auto& [block, bytes] : blocks) freeing.free(block, alignment, bytes);
      }).join();
    }
    EXPECT_EQ(LiveBytesWhereAllBalances(), live_bytes) << freeing.name;
  }
  quarry_verify();
}

}  // namespace
}  // namespace quarry
