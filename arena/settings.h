// What a user may set, read by every room.
//
// Thread-safety: written and read by any thread at any time, on slow paths alone.
// Ordering: relaxed. A setting guards no other memory.
#ifndef QUARRY_ARENA_SETTINGS_H_
#define QUARRY_ARENA_SETTINGS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace quarry {

// Which memory may lie on huge pages. The allocator's own never does.
enum class HugePagePolicy : uint8_t {
  kNever,   // None.
  kSystem,  // As the system is set.
  kGrown,   // Of an arena that has grown, slabs of a thread that has many, and whatever
            // follows an earlier range that was filled; and large blocks after one that
            // was filled. Other huge blocks as the system is set.
};

struct Settings {
  // Blocks of at least this many bytes are mappings of their own.
  std::atomic<size_t> mmap_threshold_bytes{size_t{4} << 20};

  // Whether that grows to the size of a huge block that is freed, as in glibc.
  // No longer once either threshold was set.
  std::atomic<bool> mmap_threshold_adapts{true};

  // Free dirty bytes that an arena keeps before it gives pages back.
  std::atomic<size_t> trim_threshold_bytes{size_t{64} << 20};

  // For how long free memory may stay dirty before it goes back to the system; 0 means
  // that page runs go as soon as they reach their arena.
  std::atomic<size_t> decay_ms{500};

  // Whether a thread of the allocator's own sees to that while the program
  // makes no calls.
  std::atomic<bool> maintenance{true};

  // Whether memory is given back by MADV_FREE: cheaper, but resident until the
  // system needs it.
  std::atomic<bool> lazy_purge{false};

  std::atomic<HugePagePolicy> huge_pages{HugePagePolicy::kGrown};

  // Above the first, memory goes back at once and the program is told; above
  // the second, requests fail. 0 means no limit.
  std::atomic<size_t> soft_limit_bytes{0};
  std::atomic<size_t> hard_limit_bytes{0};

  // At most this many arenas, and kMaxArenas; 0 means one for each processor.
  std::atomic<size_t> arenas_max{0};

  // So many caches of threads that exited are kept as they are, for the threads
  // that start next.
  std::atomic<size_t> parked_caches{16};

  // Whether what dlopen() is told to bind to its own dependencies first does so.
  std::atomic<bool> deepbind{false};

  // Whether a sized free with a size that the block cannot have had ends the
  // program. Otherwise the block is freed as if no size had been given.
  std::atomic<bool> check_sizes{true};

  // When not 0, every byte of a fresh block has the complement of this value,
  // and every byte of a freed block has this value, as M_PERTURB of glibc.
  std::atomic<uint8_t> perturb_byte{0};
};

extern constinit Settings settings;

}  // namespace quarry

#endif  // QUARRY_ARENA_SETTINGS_H_
