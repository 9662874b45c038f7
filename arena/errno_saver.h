// errno as it was, at the end of a scope.
//
// A system call that fails here is an answer to the allocator and not the
// program's business: free() leaves errno alone, and so does a malloc() that
// finds memory elsewhere.
//
// Thread-safety: lives on the stack of one thread.
#ifndef QUARRY_ARENA_ERRNO_SAVER_H_
#define QUARRY_ARENA_ERRNO_SAVER_H_

#include <cerrno>

namespace quarry {

class ErrnoSaver {
 public:
  ErrnoSaver() : saved_(errno) {}
  ~ErrnoSaver() { errno = saved_; }
  ErrnoSaver(const ErrnoSaver&) = delete;
  ErrnoSaver& operator=(const ErrnoSaver&) = delete;

 private:
  const int saved_;
};

}  // namespace quarry

#endif  // QUARRY_ARENA_ERRNO_SAVER_H_
