// How much of each size class a thread's cache keeps, and how much it takes at once.
//
//   magazine   begins with FirstMagazineBlocks(), and doubles up to MostMagazineBlocks()
//              when it runs empty or over
//   spare      FullMagazineBlocks()
//   depot      MostDepotMagazines() of a class, each of FullMagazineBlocks(); of all
//              classes kMostDepotBytes
//   refill     half of what the magazine may hold, and MostRefillBlocks() at most
//
// What a magazine and a spare hold is out of reach of other threads, so it is little; what
// lies in the depot is not, and is more: a collector that sweeps, or a phase that ends,
// frees more than a magazine or two at once, and soon wants it again.
//
// Thread-safety: constants.
#ifndef QUARRY_TCACHE_CACHE_BOUNDS_H_
#define QUARRY_TCACHE_CACHE_BOUNDS_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "tcache/size_classes.h"

namespace quarry {

// Of more than 8 KiB. A thread has few of them, so their depot may hold as much as all
// depots together; it is given back where fresh pages would otherwise be needed. A
// magazine has few, too, so they do not turn cold: to flush it touches few lines.
constexpr bool IsLarge(SizeClass size_class) {
  return BlockBytes(size_class) > 8 * 1024;
}

// What a magazine may grow to. Of large blocks it holds a few in more bytes, since of
// sizes that come in no order one of two would be full and empty again and again; but a
// refill is of half of kMostMagazineBytes at most.
constexpr size_t kMostMagazineBytes = 32 * 1024;
constexpr size_t kMostLargeMagazineBytes = 64 * 1024;
constexpr int32_t kMostMagazineBlocks = 128;
constexpr int32_t kFirstMagazineBlocks = 8;
constexpr int32_t kFewestMagazineBlocks = 4;

// Of the depot: magazines of one class, and bytes of one class and of all.
constexpr size_t kDepotMagazines = 64;
constexpr size_t kMostShelfBytes = 512 * 1024;
constexpr size_t kMostDepotBytes = 4 * 1024 * 1024;

// What follows from these for a class, computed beforehand.
struct ClassBounds {
  int16_t magazine_blocks;
  int8_t refill_blocks;
  uint8_t depot_magazines;
};

constexpr ClassBounds MakeClassBounds(SizeClass size_class) {
  const size_t block_bytes = BlockBytes(size_class);
  const auto blocks = static_cast<int32_t>(kMostMagazineBytes / block_bytes);
  const auto large_blocks = static_cast<int32_t>(kMostLargeMagazineBytes / block_bytes);
  const int32_t magazine_blocks = std::clamp(
      blocks, std::clamp(large_blocks, kFewestMagazineBlocks, kFirstMagazineBlocks),
      kMostMagazineBlocks);
  const int32_t refill_blocks =
      std::clamp(static_cast<int32_t>(kMostMagazineBytes / 2 / block_bytes), 1,
                 kMostMagazineBlocks / 2);
  const size_t full_bytes = static_cast<size_t>(magazine_blocks + 1) * block_bytes;
  const size_t depot_bytes = IsLarge(size_class) ? kMostDepotBytes : kMostShelfBytes;
  const size_t depot_magazines =
      std::clamp<size_t>(depot_bytes / full_bytes, 1, kDepotMagazines);
  return {static_cast<int16_t>(magazine_blocks), static_cast<int8_t>(refill_blocks),
          static_cast<uint8_t>(depot_magazines)};
}

inline constexpr std::array<ClassBounds, kClasses> kClassBounds = [] {
  std::array<ClassBounds, kClasses> bounds = {};
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) bounds[c] = MakeClassBounds(c);
  return bounds;
}();

constexpr int32_t MostMagazineBlocks(SizeClass size_class) {
  return kClassBounds[size_class].magazine_blocks;
}
constexpr int32_t MostRefillBlocks(SizeClass size_class) {
  return kClassBounds[size_class].refill_blocks;
}
constexpr uint32_t MostDepotMagazines(SizeClass size_class) {
  return kClassBounds[size_class].depot_magazines;
}

constexpr int32_t FirstMagazineBlocks(SizeClass size_class) {
  return std::min(2 * MostRefillBlocks(size_class), kFirstMagazineBlocks);
}

// A magazine overflows with one block more than it may hold, and only one that cannot grow
// becomes the spare, and from there goes to the depot.
constexpr size_t FullMagazineBlocks(SizeClass size_class) {
  return static_cast<size_t>(MostMagazineBlocks(size_class)) + 1;
}
constexpr size_t FullMagazineBytes(SizeClass size_class) {
  return FullMagazineBlocks(size_class) * BlockBytes(size_class);
}

}  // namespace quarry

#endif  // QUARRY_TCACHE_CACHE_BOUNDS_H_
