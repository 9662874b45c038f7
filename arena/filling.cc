#include "arena/filling.h"

#include "arena/limits.h"
#include "arena/settings.h"

namespace quarry {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

bool IsOfUse() {
  return settings.huge_pages.load(kRelaxed) == HugePagePolicy::kGrown;
}

}  // namespace

Filling FillingHistory::Expect(size_t bytes) {
  if (bytes < kLeastBytes || !IsOfUse() || AboveSoftLimit()) {
    return Filling::kUnknown;
  }
  const size_t told_bytes = bytes / kMostGrowth;
  void* const newest = newest_.load(kRelaxed);
  const size_t newest_bytes = newest_bytes_.load(kRelaxed);
  if (newest != nullptr && newest_bytes >= told_bytes) LookAt(newest, newest_bytes);
  return filled_bytes_.load(kRelaxed) >= told_bytes ? Filling::kFromLowEnd
                                                    : Filling::kUnknown;
}

Filling FillingHistory::Observe(void* start, size_t bytes) {
  if (bytes < kLeastToldBytes || !IsOfUse()) return Filling::kUnknown;
  if (newest_.load(kRelaxed) == start) newest_.store(nullptr, kRelaxed);
  return LookAt(start, bytes);
}

Filling FillingHistory::LookAt(void* start, size_t bytes) {
  const bool is_filled = source_.IsFilledFromLowEnd(start, bytes);
  filled_bytes_.store(is_filled ? bytes : 0, kRelaxed);
  return is_filled ? Filling::kFromLowEnd : Filling::kUnknown;
}

}  // namespace quarry
