// Which block sizes exist, and which of them serves a request.
//
//   class   1      2    3         9   10        17   18            64      65    66    67
//   bytes   8     16   32  ...  128  144  ...  256  288  ...    16384   21504  32 Ki 64 Ki
//           |      `-- 16 apart --'   `- 8 for each doubling, or 9, or 5 -'
//           `-- only for callers who state an alignment of 8 or less
//
// Class 0 is no class. Above 128 bytes a class is an eighth of a power of two above
// the one before it, with three exceptions.
//
// Requests just above a power of two are common: a buffer and the header that its
// library puts before it. Above 1 and 2 KiB there is one class more for them, at
// 17/16.
//
// From 4 to 8 KiB eighths would waste what is left behind a slab's last block: as
// many blocks of 6.5 KiB fit into 64 KiB as of 7. There the classes are a fifteenth to
// an eighth of a slab, in multiples of 128; but the first is exactly a fifteenth, so
// that it holds a database's page of 4 KiB and what is kept with it. Above 8 KiB, where
// more classes would be of as many blocks, they are a seventh, a sixth, a fifth and a
// fourth, in multiples of 512, and one more, since a slab's last pages may stay untouched.
// Above 16 KiB they are a third, a half and the whole of a slab: a request leaves the last
// pages of its block untouched, unless a larger one had the block before. What must be
// zero there, or grows, gets pages of its own instead.
//
// Every class above 8 bytes is a multiple of 16, so that blocks have the alignment
// that malloc() owes.
//
// A slab is one granule, so that an offset within it is the low 16 bits of an address and
// free() can check in four instructions that an address is the start of a block.
#ifndef QUARRY_TCACHE_SIZE_CLASSES_H_
#define QUARRY_TCACHE_SIZE_CLASSES_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "arena/page_map.h"
#include "arena/page_source.h"

namespace quarry {

using SizeClass = uint32_t;

constexpr SizeClass kNoClass = 0;
constexpr SizeClass kEightByteClass = 1;
constexpr SizeClass kFirstClass = 2;
constexpr size_t kMinAlignmentBytes = 16;
constexpr size_t kLinearMaxBytes = 128;
constexpr size_t kSmallMaxBytes = 64 * 1024;
// A request for more bytes may get a page run instead.
constexpr size_t kSlabsOnlyMaxBytes = 16 * 1024;
// Classes for each doubling, but for the exceptions, and sizes of what is larger.
constexpr size_t kStepsPerDoubling = 8;

// Of what is larger, so many sizes above that of a request serve it as well.
constexpr int kLargerMediums = 2;

// Of each class.
inline constexpr uint32_t kBlockBytes[] = {
    0,    8,    16,   32,   48,   64,   80,    96,    112,   128,
    144,  160,  176,  192,  208,  224,  240,   256,           // By 16.
    288,  320,  352,  384,  416,  448,  480,   512,           // By 32.
    576,  640,  704,  768,  832,  896,  960,   1024,          // By 64.
    1088, 1152, 1280, 1408, 1536, 1664, 1792,  1920,  2048,   // By 128, the first 64.
    2176, 2304, 2560, 2816, 3072, 3328, 3584,  3840,  4096,   // By 256, the first 128.
    4368, 4608, 4992, 5376, 5888, 6528, 7168,  8192,          // 15 to 8 in a slab.
    9216, 10752, 12288, 14336, 16384,                         // 7 to 4 in a slab.
    21504, 32768, 65536};                                     // 3, 2 and 1.

// The smallest class of more than kLinearMaxBytes, and of more than twice, four
// times as much and so on.
inline constexpr auto kFirstOfDoubling = [] {
  std::array<uint8_t, std::bit_width(kSmallMaxBytes / kLinearMaxBytes) - 1>
      first = {};
  uint8_t size_class = 0;
  for (size_t doubling = 0; doubling < first.size(); ++doubling) {
    while (kBlockBytes[size_class] <= kLinearMaxBytes << doubling) ++size_class;
    first[doubling] = size_class;
  }
  return first;
}();

// The size of the blocks of `size_class`. Requires 0 < size_class < kClasses.
constexpr size_t BlockBytes(SizeClass size_class) {
  return kBlockBytes[size_class];
}

// The smallest class whose blocks hold `bytes`, aligned to 16.
// Requires bytes <= kSmallMaxBytes.
constexpr SizeClass ClassOf(size_t bytes) {
  if (bytes <= kLinearMaxBytes) {
    const size_t last = bytes == 0 ? 0 : bytes - 1;
    return kFirstClass + static_cast<SizeClass>(last / kMinAlignmentBytes);
  }
  // The top four bits of `bytes - 1` say which eighth of which doubling; the class is that
  // one, or half as far above 8 KiB, or the first above 16 KiB, or a little above.
  const int doubling = std::bit_width(bytes - 1) - 8;
  const size_t eighth = ((bytes - 1) >> (doubling + 4)) & 7;
  const size_t step = bytes <= kSlabsOnlyMaxBytes / 2 ? eighth
                      : bytes <= kSlabsOnlyMaxBytes   ? (eighth + 1) / 2
                                                      : 0;
  SizeClass size_class = kFirstOfDoubling[static_cast<size_t>(doubling)] +
                         static_cast<SizeClass>(step);
  while (BlockBytes(size_class) < bytes) ++size_class;
  return size_class;
}

constexpr SizeClass kClasses = ClassOf(kSmallMaxBytes) + 1;
static_assert(kClasses == std::size(kBlockBytes));

// std::has_single_bit() counts bits, with a call where the processor may lack the
// instruction.
constexpr bool IsPowerOfTwo(size_t number) {
  return number != 0 && (number & (number - 1)) == 0;
}

// The request without an alignment that gets what one of `bytes` with `alignment`,
// a power of two, needs, where the result is at most kEvenMaxBytes. Blocks follow
// each other from a slab's start, so their size must be a multiple of it; and the
// smallest class for a multiple of a power of two is one, since a class up to there is
// a multiple of what it is above the class before: of the alignment, or else so close
// to that one that it is the request itself.
// Requires bytes and alignment of at most kSmallMaxBytes.
constexpr size_t AlignedBytes(size_t bytes, size_t alignment) {
  return RoundUp(bytes == 0 ? 1 : bytes, alignment);
}
constexpr size_t kEvenMaxBytes = 4 * 1024;

// The smallest class whose blocks hold `bytes` and start at multiples of
// `alignment`, a power of two; kNoClass when there is none.
constexpr SizeClass ClassOf(size_t bytes, size_t alignment) {
  if (bytes > kSmallMaxBytes || alignment > kSmallMaxBytes) return kNoClass;
  const size_t aligned_bytes = AlignedBytes(bytes, alignment);
  if (aligned_bytes > kSmallMaxBytes) return kNoClass;
  SizeClass size_class = ClassOf(aligned_bytes);
  // Ends with kSmallMaxBytes.
  while (BlockBytes(size_class) % alignment != 0) ++size_class;
  return size_class;
}

// The fewest bytes that a request served by this class may have.
constexpr size_t MinRequestBytes(SizeClass size_class) {
  return size_class <= kFirstClass ? 0 : BlockBytes(size_class - 1) + 1;
}

// What a request above kSlabsOnlyMaxBytes gets at least of page runs: whole pages, in eight
// steps for each doubling as most classes, or of a page where that is more. So a size
// which varies a little meets runs of its size again, and a block that grows a little
// stays.
inline size_t MediumBytes(size_t bytes, size_t page_bytes = PageBytes()) {
  const size_t step = std::bit_floor(bytes - 1) / kStepsPerDoubling;
  return RoundUp(bytes, step > page_bytes ? step : page_bytes);
}

// The most that one gets: what a thread keeps of the next two sizes serves, too.
inline size_t MostMediumBytes(size_t bytes) {
  size_t most = MediumBytes(bytes);
  for (int i = 0; i < kLargerMediums; ++i) {
    most += std::bit_floor(most) / kStepsPerDoubling;
  }
  return most;
}

constexpr size_t kSlabBytes = kGranuleBytes;

// The bitmaps of a slab have one summary word of 64 bits, each for a word of 64
// blocks. Only the slabs of the 8-byte class could hold more.
constexpr size_t kMaxBlocks = 64 * 64;

constexpr size_t SlabBlocks(SizeClass size_class) {
  const size_t blocks = kSlabBytes / BlockBytes(size_class);
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

// Division of an offset within a slab by the size of its blocks, as a multiply
// (Lemire, Kaser and Kurz 2019), with two answers in one product of 64 bits: the high
// half is the quotient, and the low half is less than the reciprocal exactly when
// the offset is a multiple.
constexpr uint32_t StartReciprocal(SizeClass size_class) {
  const uint64_t bytes = BlockBytes(size_class);
  return static_cast<uint32_t>(((uint64_t{1} << 32) + bytes - 1) / bytes);
}

// That product.
struct BlockOfOffset {
  uint64_t product;
  uint32_t start_reciprocal;

  // Requires offset < kSlabBytes.
  constexpr BlockOfOffset(uint64_t offset, uint32_t reciprocal)
      : product(offset * reciprocal), start_reciprocal(reciprocal) {}

  constexpr size_t index() const { return product >> 32; }
  constexpr bool IsStart() const {
    return static_cast<uint32_t>(product) < start_reciprocal;
  }
};

// Where an address lies in a slab.
inline uint32_t OffsetInGranule(const void* p) {
  static_assert(kGranuleBytes == size_t{1} << 16);
  return static_cast<uint16_t>(reinterpret_cast<uintptr_t>(p));
}
static_assert(kSlabBytes * kSmallMaxBytes <= uint64_t{1} << 32,
              "offset times the reciprocal's error stays below one quotient");

static_assert(BlockBytes(ClassOf(kSmallMaxBytes)) == kSmallMaxBytes);

}  // namespace quarry

#endif  // QUARRY_TCACHE_SIZE_CLASSES_H_
