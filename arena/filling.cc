#include "arena/filling.h"

#include <algorithm>

#include "arena/limits.h"
#include "arena/settings.h"

namespace quarry {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

Filling FillingHistory::Expect(size_t bytes) {
  if (bytes < kLeastBytes || AboveSoftLimit() ||
      settings.huge_pages.load(kRelaxed) != HugePagePolicy::kGrown) {
    return Filling::kUnknown;
  }
  char* const newest = static_cast<char*>(newest_.exchange(nullptr, kRelaxed));
  const size_t newest_bytes = newest_bytes_.load(kRelaxed);
  if (newest != nullptr && newest_bytes >= bytes / kCreditOfByte) {
    Credit(newest_bytes, IsFilled(newest, newest_bytes, Look::kAtResidence));
  }
  const size_t credit_bytes = credit_bytes_.load(kRelaxed);
  if (credit_bytes < bytes) return Filling::kUnknown;
  credit_bytes_.store(credit_bytes - bytes, kRelaxed);
  return Filling::kFromLowEnd;
}

Filling FillingHistory::Observe(void* start, size_t bytes) {
  if (bytes < kLeastToldBytes) return Filling::kUnknown;
  if (newest_.load(kRelaxed) == start) newest_.store(nullptr, kRelaxed);
  const bool is_filled = IsFilled(static_cast<char*>(start), bytes, Look::kAtContent);
  Credit(bytes, is_filled);
  return is_filled ? Filling::kFromLowEnd : Filling::kUnknown;
}

// A block is filled whose first half was touched, and the rest up to some place: what
// doubles is seldom full.
bool FillingHistory::IsFilled(char* start, size_t bytes, Look look) const {
  constexpr size_t kParts = 8;
  bool has_ended = false;
  for (size_t part = 0; part < kParts; ++part) {
    // In the midst of it, and one of the odd pages: what was written to at both its ends,
    // or once in so many KiB, is not filled.
    const size_t offset =
        ((bytes / kParts * part + bytes / kParts / 2) & -PageBytes()) | PageBytes();
    const bool is_touched = IsTouched(start + offset, look);
    if (!is_touched && part < kParts / 2) return false;
    if (is_touched && has_ended) return false;
    has_ended = !is_touched;
  }
  return true;
}

bool FillingHistory::IsTouched(char* page, Look look) const {
  if (!source_.IsResident(page)) return false;
  if (look == Look::kAtResidence) return true;
  return std::any_of(page, page + PageBytes(), [](char byte) { return byte != 0; });
}

void FillingHistory::Credit(size_t bytes, bool is_filled) {
  bytes = std::min(bytes, SIZE_MAX / kCreditOfByte) * kCreditOfByte;
  const size_t credit_bytes = credit_bytes_.load(kRelaxed);
  credit_bytes_.store(is_filled ? std::max(credit_bytes, bytes)
                                : credit_bytes - std::min(credit_bytes, bytes),
                      kRelaxed);
}

}  // namespace quarry
