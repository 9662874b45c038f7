// A copy of memory that another thread may be writing to.
//
// What a thread's fast path changes is no atomic, for that would cost it instructions;
// so no other thread may read it. The system may: each byte that it copies was there at
// some moment, though not all at the same one. Of a thread that rests they fit together.
//
// Thread-safety: any thread.
// Cost: a system call.
#ifndef QUARRY_TCACHE_RACING_COPY_H_
#define QUARRY_TCACHE_RACING_COPY_H_

#include <cstddef>
#include <span>

namespace quarry {

// So many bytes, from where they may be written to meanwhile, to the caller's own memory.
struct RacingPiece {
  const void* from;
  void* to;
  size_t bytes;
};

// Copies each piece, of which there are at most eight. False if the system refuses, or some
// address cannot be read; what the copies hold is then not known. Leaves errno alone.
[[nodiscard]] bool CopyRacing(std::span<const RacingPiece> pieces);

}  // namespace quarry

#endif  // QUARRY_TCACHE_RACING_COPY_H_
