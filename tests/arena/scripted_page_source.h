#ifndef QUARRY_TESTS_ARENA_SCRIPTED_PAGE_SOURCE_H_
#define QUARRY_TESTS_ARENA_SCRIPTED_PAGE_SOURCE_H_

#include <cstddef>
#include <vector>

#include "arena/page_source.h"

namespace quarry {

// Pages from the operating system, refused where a test says so, with a record
// of every call.
//
// Calls that may be refused are counted from 1: Map, Purge, GrowInPlace, Move, MoveOut.
//
// Thread-safety: one thread.
class ScriptedPageSource final : public PageSource {
 public:
  enum class Kind {
    kMap,
    kUnmap,
    kPurge,
    kGrow,
    kMove,
    kMoveOut,
    kGuard,
    kSmallPages,
    kHugePages,
    kPopulate,
  };

  struct Call {
    Kind kind;
    void* start;
    size_t bytes;
    bool refused;
  };

  // Refuses the n-th call from now, or none if n is 0.
  void RefuseNth(size_t n) { refuse_nth_ = n; }

  // Refuses the n-th call from now and all after it.
  void RefuseFrom(size_t n) { refuse_from_ = n; }

  // Refuses all calls of this kind.
  void RefuseKind(Kind kind) { refused_kinds_.push_back(kind); }

  // Refuses to map more than this at once.
  void RefuseMapsAbove(size_t bytes) { largest_map_ = bytes; }

  void RefuseNothing() {
    refuse_nth_ = refuse_from_ = 0;
    refused_kinds_.clear();
    largest_map_ = ~size_t{0};
  }

  const std::vector<Call>& calls() const { return calls_; }
  void ForgetCalls() { calls_.clear(); }

  bool RefusedAny() const {
    for (const Call& call : calls_) {
      if (call.refused) return true;
    }
    return false;
  }

  size_t CountOf(Kind kind) const {
    size_t count = 0;
    for (const Call& call : calls_) count += call.kind == kind;
    return count;
  }

 private:
  bool Refused(Kind kind) {
    if (refuse_nth_ > 0 && --refuse_nth_ == 0) return true;
    if (refuse_from_ == 1) return true;
    if (refuse_from_ > 1) --refuse_from_;
    for (Kind refused : refused_kinds_) {
      if (refused == kind) return true;
    }
    return false;
  }

  void* MapPages(size_t bytes, size_t alignment) override {
    return Mapped(bytes, [&] { return os_.Map(bytes, alignment); });
  }

  void* MapPagesToGrow(size_t bytes, size_t alignment) override {
    return Mapped(bytes, [&] { return os_.MapPlace(0, bytes, alignment); });
  }

  template <typename Mapper>
  void* Mapped(size_t bytes, Mapper map) {
    const bool refused = Refused(Kind::kMap) || bytes > largest_map_;
    void* const start = refused ? nullptr : map();
    calls_.push_back({Kind::kMap, start, bytes, start == nullptr});
    return start;
  }

  void UnmapPages(void* start, size_t bytes) override {
    os_.Unmap(start, bytes);
    calls_.push_back({Kind::kUnmap, start, bytes, false});
  }

  bool PurgePages(void* start, size_t bytes) override {
    const bool done = !Refused(Kind::kPurge) && os_.PurgeToZero(start, bytes);
    calls_.push_back({Kind::kPurge, start, bytes, !done});
    return done;
  }

  bool GrowPages(void* start, size_t old_bytes, size_t new_bytes) override {
    const bool done =
        !Refused(Kind::kGrow) && os_.GrowInPlace(start, old_bytes, new_bytes);
    calls_.push_back({Kind::kGrow, start, new_bytes, !done});
    return done;
  }

  bool MovePages(void* start, size_t old_bytes, void* place,
                 size_t new_bytes) override {
    const bool refused = Refused(Kind::kMove);
    calls_.push_back({Kind::kMove, place, new_bytes, refused});
    if (!refused) return os_.Move(start, old_bytes, place, new_bytes);
    os_.Unmap(place, new_bytes);
    return false;
  }

  bool MovePagesOut(void* start, size_t old_bytes, void* place,
                    size_t new_bytes) override {
    const bool refused = Refused(Kind::kMoveOut);
    calls_.push_back({Kind::kMoveOut, place, new_bytes, refused});
    if (!refused) return os_.MoveOut(start, old_bytes, place, new_bytes);
    os_.Unmap(place, new_bytes);
    return false;
  }

  void GuardPages(void* start, size_t bytes) override {
    os_.Guard(start, bytes);
    calls_.push_back({Kind::kGuard, start, bytes, false});
  }

  void AdviseSmallPages(void* start, size_t bytes) override {
    os_.KeepSmallPages(start, bytes);
    calls_.push_back({Kind::kSmallPages, start, bytes, false});
  }

  void AdviseHugePages(void* start, size_t bytes) override {
    os_.PreferHugePages(start, bytes);
    calls_.push_back({Kind::kHugePages, start, bytes, false});
  }

  void PopulatePages(void* start, size_t bytes) override {
    os_.Populate(start, bytes);
    calls_.push_back({Kind::kPopulate, start, bytes, false});
  }

  // Not OsPages(), so that this one may stand in for it.
  OsPageSource os_;
  size_t refuse_nth_ = 0;
  size_t refuse_from_ = 0;
  size_t largest_map_ = ~size_t{0};
  std::vector<Kind> refused_kinds_;
  std::vector<Call> calls_;
};

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_SCRIPTED_PAGE_SOURCE_H_
