// From any address to what Quarry keeps there, in one load.
//
// Address space is divided into granules of 64 KiB. Each granule has two
// words: a 4-byte tag, which is all that the fast path of free() reads, and
// the address of a descriptor, which the slow paths read.
//
//   tag:  31               12 11                       0
//         [     owner id     ][ offset of the magazine ]
//
// The tag is made so that `tag - my_owner_tag` is the offset of the magazine
// that takes the block when this thread owns the slab, and at least
// kOwnerUnit otherwise: owners are compared and the size class is found by one
// subtraction.
//
// Granules near the first segment, the home window, lie in one flat array, so
// that a look-up there is shift and load. The kernel places mappings
// close together, so this is where a process's heap is. Anything farther
// away is found through a table of leaves, one for 4 GiB. Both arrays of the
// window and the table of leaves are untouched zero pages until used: a 4 GiB
// heap touches 256 KiB of tags. They are a mapping, not zero data of the library:
// a garbage collector in the program takes such data for its roots, which it
// reads each time and makes its heap the larger for.
//
// Thread-safety: TagOf() and DescriptorOf() on any thread at any time. Set()
//   only by who holds the granules: an arena that maps or unmaps a segment,
//   a thread cache that makes, gives up or adopts a slab.
// Ordering: relaxed. A thread that frees a live block received its address
//   after the block was allocated, and so after the entry was written; an
//   owner id changes under a reader only between two owners that are both
//   another thread than the reader.
// Errors: an address that Quarry never held has tag kNoTag and descriptor
//   nullptr. Reserve() is false when the OS refuses memory for the tables or a leaf.
// Cost: HomeTagOf() is eight instructions, of which the tag waits for a shift and
//   a load.
// Size: 4 + 8 bytes for each granule, in whole pages as they are touched.
// Source: the page map of tcmalloc (Ghemawat, Menage 2005).
#ifndef QUARRY_ARENA_PAGE_MAP_H_
#define QUARRY_ARENA_PAGE_MAP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/lock.h"

namespace quarry {

constexpr size_t kGranuleShift = 16;
constexpr size_t kGranuleBytes = size_t{1} << kGranuleShift;

using Tag = uint32_t;

// The first owner id; ids are multiples of it, so that the bits below are free
// for the offset of a magazine.
constexpr Tag kOwnerUnit = 1u << 12;
// No thread has this owner id: frees of such blocks always go the slow way.
constexpr Tag kNobody = ~Tag{0} & ~(kOwnerUnit - 1);

// Not Quarry's.
constexpr Tag kNoTag = 0;
// Pages of a segment that are no slab; the descriptor is the Segment.
constexpr Tag kRunTag = kNobody | 0xfff;
// The first granule of a huge block; the descriptor is the Huge.
constexpr Tag kHugeTag = kNobody | 0xffe;

class PageMap {
 public:
  // Maps the tables, if need be. False if the system refuses them; Reserve() does the
  // same. To be called before the first segment is mapped, or they would lie where the
  // system could place the next one beside it.
  static bool MakeTables();

  // Makes Set() possible for all granules that [start, start + bytes) touches.
  [[nodiscard]] static bool Reserve(const void* start, size_t bytes);

  // Sets all granules that [start, start + bytes) touches. Requires that they
  // were reserved.
  static void Set(const void* start, size_t bytes, Tag tag, void* descriptor);

  ABSL_ATTRIBUTE_ALWAYS_INLINE static Tag TagOf(const void* p) {
    const uintptr_t granule = HomeGranule(p);
    if (ABSL_PREDICT_FALSE(granule >= kHomeGranules)) return FarTagOf(p);
    return SureHomeTagOf(p);
  }

  // TagOf() for the fast path, which has a slow path at hand for the rare
  // address outside of the home window: false there, with *tag untouched.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool HomeTagOf(const void* p, Tag* tag) {
    const uintptr_t granule = HomeGranule(p);
    if (ABSL_PREDICT_FALSE(granule >= kHomeGranules)) return false;
    *tag = SureHomeTagOf(p);
    return true;
  }

  static void* DescriptorOf(const void* p) {
    const uintptr_t granule = HomeGranule(p);
    if (ABSL_PREDICT_FALSE(granule >= kHomeGranules)) return FarDescriptorOf(p);
    return HomeDescriptorOf(p);
  }

  // Both for an address of which HomeTagOf() told the tag.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Tag SureHomeTagOf(const void* p) {
    return Load(*EntryFor<Tag>(window_.tags_origin, p));
  }
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void* HomeDescriptorOf(const void* p) {
    return Load(*EntryFor<void*>(window_.descriptors_origin, p));
  }

  // Bytes mapped for leaves.
  static size_t LeafBytes() {
    return leaf_bytes_.load(std::memory_order_relaxed);
  }

 private:
  // 64 GiB of addresses: 4 MiB of tags and 8 MiB of descriptors, virtual.
  static constexpr size_t kHomeGranules = size_t{1} << 20;
  // Mappings are placed downward from the first, so most of the window lies
  // below it.
  static constexpr uintptr_t kHomeAboveBytes = uintptr_t{4} << 30;

  static constexpr size_t kLeafGranules = size_t{1} << 16;
  static constexpr size_t kAddressBits = 48;
  static constexpr size_t kLeaves =
      size_t{1} << (kAddressBits - kGranuleShift - 16);

  // Plain arrays, read and written through std::atomic_ref: a million atomic
  // objects would be a million constructors to the compiler.
  struct Leaf {
    Tag tags[kLeafGranules];
    void* descriptors[kLeafGranules];
  };

  // What is mapped once, in zero pages.
  struct Tables {
    Tag tags[kHomeGranules];
    void* descriptors[kHomeGranules];
    Leaf* leaves[kLeaves];
  };

  // No address that a program has lies less than the window's size above it.
  static constexpr uintptr_t kNowhere = uintptr_t{1} << 63;

  // Alone on its line: every free reads it.
  struct alignas(64) Window {
    // kNowhere until the first segment is mapped, when all are set for good, this
    // one last. Not atomic, which would cost the fast path two instructions: who
    // frees a block had it from a thread that allocated, directly or not, and so
    // sees what that one saw. nullptr is outside before and after.
    uintptr_t start;
    // Where the tag and the descriptor of granule 0 would be: what finds them does
    // not wait for a subtraction. Addresses only, outside of the tables.
    uintptr_t tags_origin;
    uintptr_t descriptors_origin;
  };

  // Both nullptr for an address that no leaf covers.
  struct Entry {
    Tag* tag;
    void** descriptor;
  };

  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Load(T& word) {
    return std::atomic_ref<T>(word).load(std::memory_order_relaxed);
  }

  ABSL_ATTRIBUTE_ALWAYS_INLINE static uintptr_t HomeGranule(const void* p) {
    return (reinterpret_cast<uintptr_t>(p) - window_.start) >> kGranuleShift;
  }

  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T* EntryFor(uintptr_t origin,
                                                  const void* p) {
    const uintptr_t index = reinterpret_cast<uintptr_t>(p) >> kGranuleShift;
    return reinterpret_cast<T*>(origin + index * sizeof(T));
  }

  static Tag FarTagOf(const void* p);
  static void* FarDescriptorOf(const void* p);
  static Entry EntryOf(uintptr_t address);
  // Returns nullptr when the system refuses them.
  static Tables* MakeTablesLocked();
  static void PlaceHome(const Tables& tables, uintptr_t first_segment);

  // Hidden, so that the shared library reaches it without its table of global
  // offsets.
  [[gnu::visibility("hidden")]] static Window window_;
  // nullptr until the first segment is mapped.
  static std::atomic<Tables*> tables_;
  static std::atomic<size_t> leaf_bytes_;
};

// Taken by Reserve(); for fork.
Lock& PageMapLock();

}  // namespace quarry

#endif  // QUARRY_ARENA_PAGE_MAP_H_
