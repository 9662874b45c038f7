#include "arena/page_map.h"

#include "arena/lock.h"
#include "arena/page_source.h"
#include "arena/report.h"

namespace quarry {
namespace {

// Guards the making of tables and leaves and the choice of the window.
constinit Lock page_map_lock(LockRank::kPageMap);

// Where the tables are from. They are neither counted nor charged to a limit: it is
// addresses that they take, and a few pages.
constinit OsPageSource table_pages;

static_assert(kGranuleBytes % kLargestPageBytes == 0,
              "a granule is whole pages");

constexpr uintptr_t LeafIndex(uintptr_t address) { return address >> 32; }

constexpr uintptr_t IndexInLeaf(uintptr_t address) {
  return (address >> kGranuleShift) & 0xffff;
}

constexpr uintptr_t RoundDownToGranule(uintptr_t address) {
  return address & ~(kGranuleBytes - 1);
}

}  // namespace

constinit PageMap::Window PageMap::window_ = {kNowhere, 0, 0};
constinit std::atomic<PageMap::Tables*> PageMap::tables_{nullptr};
constinit std::atomic<size_t> PageMap::leaf_bytes_{0};

Lock& PageMapLock() { return page_map_lock; }

bool PageMap::MakeTables() {
  // Acquire: as in EntryOf().
  if (tables_.load(std::memory_order_acquire) != nullptr) return true;
  LockHolder hold(page_map_lock);
  return MakeTablesLocked() != nullptr;
}

PageMap::Tables* PageMap::MakeTablesLocked() {
  Tables* tables = tables_.load(std::memory_order_relaxed);
  if (tables != nullptr) return tables;
  const size_t bytes = RoundUp(sizeof(Tables), PageBytes());
  const size_t guard_bytes = PageBytes();
  void* const mapping = table_pages.Map(bytes + 2 * guard_bytes, PageBytes());
  if (mapping == nullptr) return nullptr;
  char* const start = static_cast<char*>(mapping) + guard_bytes;
  table_pages.Guard(start - guard_bytes, guard_bytes);
  table_pages.Guard(start + bytes, guard_bytes);
  // Tags are four bytes for 64 KiB: a huge page of them would be resident for the
  // sake of a few words.
  table_pages.KeepSmallPages(start, bytes);
  tables = reinterpret_cast<Tables*>(start);
  // Pairs with the acquires: who sees the tables sees zeros in them.
  tables_.store(tables, std::memory_order_release);
  return tables;
}

void PageMap::PlaceHome(const Tables& tables, uintptr_t first_segment) {
  constexpr uintptr_t kBelow =
      (kHomeGranules << kGranuleShift) - kHomeAboveBytes;
  const uintptr_t start = first_segment > kBelow
                              ? RoundDownToGranule(first_segment) - kBelow
                              : kGranuleBytes;
  const uintptr_t index = start >> kGranuleShift;
  window_.tags_origin =
      reinterpret_cast<uintptr_t>(tables.tags) - index * sizeof(Tag);
  window_.descriptors_origin =
      reinterpret_cast<uintptr_t>(tables.descriptors) - index * sizeof(void*);
  std::atomic_signal_fence(std::memory_order_release);
  window_.start = start;
}

bool PageMap::Reserve(const void* start, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(start);
  const uintptr_t last = first + bytes - 1;
  QUARRY_CHECK(LeafIndex(last) < kLeaves);
  LockHolder hold(page_map_lock);
  Tables* const tables = MakeTablesLocked();
  if (tables == nullptr) return false;
  if (window_.start == kNowhere) PlaceHome(*tables, first);
  if (HomeGranule(start) < kHomeGranules &&
      HomeGranule(reinterpret_cast<void*>(last)) < kHomeGranules) {
    return true;
  }
  for (uintptr_t i = LeafIndex(first); i <= LeafIndex(last); ++i) {
    if (Load(tables->leaves[i]) != nullptr) continue;
    void* memory = OsPages().Map(sizeof(Leaf), PageBytes());
    if (memory == nullptr) return false;
    OsPages().KeepSmallPages(memory, sizeof(Leaf));
    // A fresh mapping is zero, which is what a Leaf of no entries is. Pairs
    // with the acquire in EntryOf(): who sees the leaf sees zeros in it.
    std::atomic_ref<Leaf*>(tables->leaves[i])
        .store(static_cast<Leaf*>(memory), std::memory_order_release);
    leaf_bytes_.fetch_add(sizeof(Leaf), std::memory_order_relaxed);
  }
  return true;
}

PageMap::Entry PageMap::EntryOf(uintptr_t address) {
  Tables* const tables = tables_.load(std::memory_order_acquire);
  if (tables == nullptr) return {nullptr, nullptr};
  const uintptr_t granule = HomeGranule(reinterpret_cast<void*>(address));
  if (granule < kHomeGranules) {
    return {&tables->tags[granule], &tables->descriptors[granule]};
  }
  if (LeafIndex(address) >= kLeaves) return {nullptr, nullptr};
  Leaf* leaf = std::atomic_ref<Leaf*>(tables->leaves[LeafIndex(address)])
                   .load(std::memory_order_acquire);
  if (leaf == nullptr) return {nullptr, nullptr};
  return {&leaf->tags[IndexInLeaf(address)],
          &leaf->descriptors[IndexInLeaf(address)]};
}

void PageMap::Set(const void* start, size_t bytes, Tag tag, void* descriptor) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(start);
  for (uintptr_t address = RoundDownToGranule(first); address < first + bytes;
       address += kGranuleBytes) {
    Entry entry = EntryOf(address);
    std::atomic_ref<Tag>(*entry.tag).store(tag, std::memory_order_relaxed);
    std::atomic_ref<void*>(*entry.descriptor)
        .store(descriptor, std::memory_order_relaxed);
  }
}

Tag PageMap::FarTagOf(const void* p) {
  const Entry entry = EntryOf(reinterpret_cast<uintptr_t>(p));
  return entry.tag == nullptr ? kNoTag : Load(*entry.tag);
}

void* PageMap::FarDescriptorOf(const void* p) {
  const Entry entry = EntryOf(reinterpret_cast<uintptr_t>(p));
  return entry.descriptor == nullptr ? nullptr : Load(*entry.descriptor);
}

}  // namespace quarry
