// What a user may set, read by every room.
//
// Thread-safety: written while the process has one thread or by mallopt();
//   read by any thread at any time, on slow paths alone.
// Ordering: relaxed. A setting guards no other memory.
#ifndef QUARRY_ARENA_SETTINGS_H_
#define QUARRY_ARENA_SETTINGS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace quarry {

struct Settings {
  // Blocks of at least this many bytes are mappings of their own.
  std::atomic<size_t> mmap_threshold_bytes{size_t{4} << 20};

  // Free dirty bytes that an arena keeps before it gives pages back.
  std::atomic<size_t> trim_threshold_bytes{size_t{64} << 20};

  // At most this many arenas; 0 means one for each processor.
  std::atomic<size_t> arenas_max{0};

  // When not 0, every byte of a fresh block has the complement of this value,
  // and every byte of a freed block has this value, as M_PERTURB of glibc.
  std::atomic<uint8_t> perturb_byte{0};
};

extern constinit Settings settings;

}  // namespace quarry

#endif  // QUARRY_ARENA_SETTINGS_H_
