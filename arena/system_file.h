#ifndef QUARRY_ARENA_SYSTEM_FILE_H_
#define QUARRY_ARENA_SYSTEM_FILE_H_

#include <cstddef>

namespace quarry {

// Reads a small file of the kernel's, as /proc and /sys have them.
//
// Thread-safety: any thread, with any lock held. Allocates nothing, is no
//   cancellation point, and leaves errno alone.
// Returns the bytes read, at most `capacity_bytes`; 0 when there is no such
//   file or it may not be read.
size_t ReadSystemFile(const char* path, char* text, size_t capacity_bytes);

// A path made of parts, without allocating.
//
// Thread-safety: one thread.
// Errors: a path that is too long is cut off, and then names no file.
class PathBuffer {
 public:
  PathBuffer& Append(const char* text, size_t bytes);
  PathBuffer& Append(const char* text);

  size_t bytes() const { return bytes_; }
  const char* text() const { return text_; }  // Terminated.

  // Forgets all but the first `bytes` <= bytes() characters.
  void CutTo(size_t bytes);

 private:
  static constexpr size_t kCapacityBytes = 1024;

  size_t bytes_ = 0;
  char text_[kCapacityBytes] = {};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_SYSTEM_FILE_H_
