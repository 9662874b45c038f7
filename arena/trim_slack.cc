#include "arena/trim_slack.h"

#include <algorithm>

#include "arena/clock.h"
#include "arena/settings.h"

namespace quarry {

void TrimSlack::NotePurgedOverCap(size_t pages) {
  const uint32_t now_ms = NowMs();
  ForgetOldPurges(now_ms);
  purged_pages_ += pages;
  purged_ms_ = now_ms;
}

void TrimSlack::ForgetOldPurges(uint32_t now_ms) {
  if (AgeMs(purged_ms_, now_ms) >= settings.decay_ms.load(std::memory_order_relaxed)) {
    purged_pages_ = 0;
  }
}

void TrimSlack::NoteTakenAfterPurge(size_t clean_pages) {
  ForgetOldPurges(NowMs());
  const size_t taken = std::min(clean_pages, purged_pages_);
  purged_pages_ -= taken;
  pages_.store(this->pages() + taken, std::memory_order_relaxed);
}

void TrimSlack::NotePurgedByAge(size_t pages) {
  pages_.store(this->pages() - std::min(this->pages(), pages),
               std::memory_order_relaxed);
}

}  // namespace quarry
