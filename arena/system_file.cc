#include "arena/system_file.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "arena/errno_saver.h"

namespace quarry {

size_t ReadSystemFile(const char* path, char* text, size_t capacity_bytes) {
  ErrnoSaver saver;
  size_t bytes = 0;
  // By their numbers: libc's open() and read() end a thread that is cancelled,
  // and that must not happen within malloc.
  const long file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
  if (file >= 0) {
    while (bytes < capacity_bytes) {
      const long got =
          syscall(SYS_read, file, text + bytes, capacity_bytes - bytes);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      bytes += static_cast<size_t>(got);
    }
    syscall(SYS_close, file);
  }
  return bytes;
}

PathBuffer& PathBuffer::Append(const char* text, size_t bytes) {
  bytes = std::min(bytes, kCapacityBytes - 1 - bytes_);
  memcpy(text_ + bytes_, text, bytes);
  bytes_ += bytes;
  text_[bytes_] = '\0';
  return *this;
}

PathBuffer& PathBuffer::Append(const char* text) {
  return Append(text, strlen(text));
}

void PathBuffer::CutTo(size_t bytes) {
  bytes_ = bytes;
  text_[bytes_] = '\0';
}

}  // namespace quarry
