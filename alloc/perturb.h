// The option `perturb`: what is allocated and freed is overwritten.
#ifndef QUARRY_ALLOC_PERTURB_H_
#define QUARRY_ALLOC_PERTURB_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "arena/settings.h"

namespace quarry {

// What freed bytes are set to; 0 where they are left alone.
inline uint8_t PerturbByte() {
  return settings.perturb_byte.load(std::memory_order_relaxed);
}

// `block`, of which the first `bytes` bytes are overwritten if the option says so; nullptr
// stays that.
inline void* Perturb(void* block, size_t bytes) {
  const uint8_t byte = PerturbByte();
  if (ABSL_PREDICT_FALSE(byte != 0) && block != nullptr) {
    memset(block, byte ^ 0xff, bytes);
  }
  return block;
}

}  // namespace quarry

#endif  // QUARRY_ALLOC_PERTURB_H_
