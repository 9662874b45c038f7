#include "tcache/slab.h"

#include <algorithm>
#include <bit>
#include <new>

#include "absl/base/optimization.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/report.h"

namespace quarry {
namespace {

// Of a slab without a block in use.
[[noreturn]] void ReportMarkedSlab(const Slab* slab) {
  size_t index = 0;
  while (index + 1 < slab->blocks() && !slab->remote.IsMarked(index)) ++index;
  ReportDoubleFree(slab->BlockAt(index), slab->block_bytes(), slab->start());
}

}  // namespace

Slab::Slab(Run* run, SizeClass size_class, std::atomic<uint64_t>* remote_words)
    : start_(run->start),
      run_(run),
      start_reciprocal_(StartReciprocal(size_class)),
      block_bytes_(static_cast<uint32_t>(BlockBytes(size_class))),
      blocks_(static_cast<uint16_t>(SlabBlocks(size_class))),
      size_class_(static_cast<uint16_t>(size_class)),
      remote(remote_words) {}

constexpr std::array<SlabGeometry, kClasses> Slab::kGeometry = [] {
  std::array<SlabGeometry, kClasses> geometry = {};
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    geometry[c] = {StartReciprocal(c),
                   static_cast<uint32_t>(BlockBytes(c)),
                   static_cast<uint16_t>(SlabBlocks(c)),
                   static_cast<uint16_t>(RemoteWordsAt(c))};
  }
  return geometry;
}();

Slab* Slab::Make(Arena* arena, SizeClass size_class, Filling filling) {
  static_assert([] {
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      if (DescriptorBytes(c) > Arena::kMostSlabRecordBytes) return false;
    }
    return true;
  }());
  // The descriptor first: where memory runs out, an arena that needs pages maps
  // all that is left, and would leave no room for the descriptors.
  void* memory = metadata_pool.Allocate(DescriptorBytes(size_class));
  if (memory == nullptr) return nullptr;
  Run* run = arena->Allocate(kSlabBytes / PageBytes(), kGranuleBytes, filling);
  if (run == nullptr) {
    metadata_pool.Deallocate(memory, DescriptorBytes(size_class));
    return nullptr;
  }
  std::atomic<uint64_t>* const remote_words =
      RemoteWords(static_cast<Slab*>(memory), kGeometry[size_class]);
  return new (memory) Slab(run, size_class, remote_words);
}

void Slab::Return(Slab* slab) {
  QUARRY_DCHECK(slab->used_ == 0);
  // It may be on a pending stack, too.
  if (ABSL_PREDICT_FALSE(!slab->remote.IsEmpty())) ReportMarkedSlab(slab);
  Run* const run = slab->run_;
  metadata_pool.Deallocate(slab, DescriptorBytes(slab->size_class_));
  PageMap::Set(run->start, kSlabBytes, kRunTag, run->segment);
  run->arena()->Deallocate(run);
}

size_t Slab::TakeBlocks(size_t wanted, BlockList* list) {
  // They may be free again, the very same and dirty, before the next look.
  same_looks_ = 0;
  const size_t words = this->words();
  const size_t block_bytes = block_bytes_;
  size_t left = wanted;
  size_t index = first_word_;
  for (; index < words && left > 0; ++index) {
    uint64_t word = local()[index];
    if (word == 0) continue;
    char* const base = BlockAt(index * 64);
    do {
      const auto bit = static_cast<uint32_t>(std::countr_zero(word));
      list->Append(base + bit * block_bytes);
      word &= word - 1;
    } while (--left > 0 && word != 0);
    local()[index] = word;
    if (word != 0) break;
  }
  first_word_ = static_cast<uint16_t>(index);
  if (left == wanted) return TakeFresh(wanted, list);
  used_ = static_cast<uint16_t>(used_ + (wanted - left));
  return wanted - left;
}

size_t Slab::TakeFresh(size_t wanted, BlockList* list) {
  const size_t left_blocks = blocks_ - fresh_;
  if (left_blocks == 0) return 0;
  char* block = BlockAt(fresh_);
  const size_t page_bytes = PageBytes();
  const size_t to_page_end =
      page_bytes - (reinterpret_cast<uintptr_t>(block) & (page_bytes - 1));
  const size_t block_bytes = block_bytes_;
  size_t count = (to_page_end + block_bytes - 1) / block_bytes;
  if (count > left_blocks) count = left_blocks;
  if (count > wanted) count = wanted;
  if (populated_pages_ != 1 && fresh_ == resident_ && run_->is_fresh) Populate(block);
  for (size_t i = 0; i < count; ++i, block += block_bytes) list->Append(block);
  fresh_ = static_cast<uint16_t>(fresh_ + count);
  if (fresh_ > resident_) resident_ = fresh_;
  used_ = static_cast<uint16_t>(used_ + count);
  return count;
}

// The pages from that of `block` on, if it is the first on its page, and that the first of
// as many as belong together. Not of blocks of more than a page, which may stay half empty.
void Slab::Populate(char* block) {
  const size_t page_bytes = PageBytes();
  const size_t offset = reinterpret_cast<uintptr_t>(block) & (page_bytes - 1);
  const auto page = static_cast<size_t>(block - offset - start_) / page_bytes;
  if (offset >= block_bytes_ || block_bytes_ > page_bytes || page % populated_pages_ != 0) {
    return;
  }
  const size_t pages = std::min<size_t>(populated_pages_, kSlabBytes / page_bytes - page);
  OsPages().Populate(block - offset, pages * page_bytes);
}

void Slab::PutWord(size_t index, uint64_t word, size_t count) {
  // Blocks that are free already, in the bitmap or as fresh ones.
  uint64_t twice = 0;
  if (fresh_ < (index + 1) * 64) {
    twice = fresh_ <= index * 64 ? word : word >> (fresh_ % 64) << (fresh_ % 64);
  }
  // Behind the last word, all are fresh.
  if (ABSL_PREDICT_TRUE(twice == 0)) twice = local()[index] & word;
  if (ABSL_PREDICT_FALSE(twice != 0)) {
    const size_t block =
        index * 64 + static_cast<size_t>(std::countr_zero(twice));
    ReportDoubleFree(BlockAt(block), block_bytes_, start_);
  }
  local()[index] |= word;
  if (index < first_word_) first_word_ = static_cast<uint16_t>(index);
  used_ = static_cast<uint16_t>(used_ - count);
}

void Slab::PutDrained(size_t index, uint64_t word) {
  PutWord(index, word, static_cast<size_t>(std::popcount(word)));
}

size_t Slab::Drain() {
  const size_t used = used_;
  remote.Drain([this](size_t index, uint64_t word) { PutDrained(index, word); });
  return used - used_;
}

size_t Slab::DrainAll() {
  const size_t used = used_;
  remote.DrainAll(words(), [this](size_t index, uint64_t word) { PutDrained(index, word); });
  return used - used_;
}

void Slab::Reset() {
  const size_t words = (size_t{fresh_} + 63) / 64;
  for (size_t i = 0; i < words; ++i) local()[i] = 0;
  fresh_ = 0;
  first_word_ = 0;
}

bool Slab::PurgeTail() {
  // The blocks behind the last one that is used.
  size_t in_use = fresh_;
  while (in_use > 0 && IsFree(in_use - 1)) --in_use;
  const auto page_after = [this](size_t blocks) {
    const uintptr_t end = reinterpret_cast<uintptr_t>(BlockAt(blocks));
    return RoundUp(end, PageBytes());
  };
  const uintptr_t from = page_after(in_use);
  uintptr_t to = page_after(resident_);
  if (populated_pages_ != 1 && run_->is_fresh) {
    // Those that came with the last.
    const auto start = reinterpret_cast<uintptr_t>(start_);
    to = start + std::min(RoundUp(to - start, populated_pages_ * PageBytes()), kSlabBytes);
  }
  if (to < from + kLeastTailPages * PageBytes() ||
      OsPages().Purge(reinterpret_cast<void*>(from), to - from) ==
          PageSource::Purged::kRefused) {
    return false;
  }
  for (size_t block = in_use; block < fresh_; ++block) {
    local()[block / 64] &= ~(uint64_t{1} << (block % 64));
  }
  fresh_ = static_cast<uint16_t>(in_use);
  resident_ = fresh_;
  return true;
}

template <bool kFree>
size_t Slab::Next(size_t index) const {
  while (index < fresh_) {
    const uint64_t word = kFree ? local()[index / 64] : ~local()[index / 64];
    const uint64_t rest = word >> (index % 64);
    if (rest != 0) {
      return std::min<size_t>(
          index + static_cast<size_t>(std::countr_zero(rest)), fresh_);
    }
    index = (index / 64 + 1) * 64;
  }
  return fresh_;
}

size_t Slab::PurgeFreePages() {
  size_t purges = PurgeTail() ? 1 : 0;
  const size_t page_bytes = PageBytes();
  for (size_t from = Next<true>(0); from < fresh_;) {
    const size_t to = Next<false>(from);
    const uintptr_t start =
        RoundUp(reinterpret_cast<uintptr_t>(BlockAt(from)), page_bytes);
    const uintptr_t end =
        reinterpret_cast<uintptr_t>(BlockAt(to)) & ~(page_bytes - 1);
    if (start < end) {
      if (OsPages().Purge(reinterpret_cast<void*>(start), end - start) ==
          PageSource::Purged::kRefused) {
        break;
      }
      ++purges;
    }
    from = Next<true>(to);
  }
  return purges;
}

uint16_t Slab::HashOfFree() const {
  uint64_t hash = fresh_;
  const size_t words = (size_t{fresh_} + 63) / 64;
  for (size_t i = first_word_; i < words; ++i) {
    hash = (hash ^ local()[i]) * 0x9e3779b97f4a7c15;
  }
  return static_cast<uint16_t>(hash >> 48);
}

Slab::Look Slab::LookForIdlePages(uint8_t pass, uint8_t looks) {
  pass_ = pass & kPasses;
  const uint16_t hash = HashOfFree();
  if (hash != seen_) {
    seen_ = hash;
    same_looks_ = 0;
  } else if (same_looks_ == kPurged) {
    return {0, true};
  } else if (same_looks_ < looks) {
    ++same_looks_;
  }
  if (same_looks_ < looks) return {0, false};
  const size_t purges = PurgeFreePages();
  seen_ = HashOfFree();
  same_looks_ = kPurged;
  return {purges, true};
}

void Slab::SetFullness() {
  const size_t blocks = blocks_;
  size_t from = used_;
  size_t to = used_;
  if (used_ == 0) {
    fullness_ = kEmpty;
    Reset();
  } else if (used_ == blocks) {
    fullness_ = kFull;
  } else {
    const size_t fourth = (blocks + 3) / 4;
    if (used_ >= 3 * fourth) {
      fullness_ = kThreeFourths;
      from = 3 * fourth;
      to = blocks - 1;
    } else if (used_ >= 2 * fourth) {
      fullness_ = kHalf;
      from = 2 * fourth;
      to = std::min(3 * fourth, blocks) - 1;
    } else if (used_ >= fourth) {
      fullness_ = kFourth;
      from = fourth;
      to = std::min(2 * fourth, blocks) - 1;
    } else {
      fullness_ = kSparse;
      from = 1;
      to = fourth - 1;
    }
  }
  fullness_from_ = static_cast<uint16_t>(from);
  fullness_to_ = static_cast<uint16_t>(to);
}

void Slab::Verify() const {
  size_t free = 0;
  const size_t words = this->words();
  for (size_t i = 0; i < words; ++i) {
    free += static_cast<size_t>(std::popcount(local()[i]));
    QUARRY_CHECK(i >= first_word_ || local()[i] == 0);
  }
  QUARRY_CHECK(used_ + free + (blocks_ - fresh_) == blocks_);
  for (size_t block = fresh_; block < words * 64; ++block) {
    QUARRY_CHECK(((local()[block / 64] >> (block % 64)) & 1) == 0);
  }
  QUARRY_CHECK(run_->start == start_);
  QUARRY_CHECK(PageMap::DescriptorOf(start_) == this);
  QUARRY_CHECK(PageMap::DescriptorOf(start_ + kSlabBytes - 1) ==
               this);
}

}  // namespace quarry
