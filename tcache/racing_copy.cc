#include "tcache/racing_copy.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "arena/errno_saver.h"
#include "arena/report.h"

namespace quarry {

bool CopyRacing(std::span<const RacingPiece> pieces) {
  constexpr size_t kMostPieces = 8;
  QUARRY_CHECK(pieces.size() <= kMostPieces);
  iovec from[kMostPieces];
  iovec to[kMostPieces];
  size_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    from[i] = {const_cast<void*>(pieces[i].from), pieces[i].bytes};
    to[i] = {pieces[i].to, pieces[i].bytes};
    bytes += pieces[i].bytes;
  }
  ErrnoSaver saver;
  // From this very process, which needs no permission. Some programs have a getpid() of
  // their own.
  const auto self = static_cast<pid_t>(syscall(SYS_getpid));
  return process_vm_readv(self, to, pieces.size(), from, pieces.size(), 0) ==
         static_cast<ssize_t>(bytes);
}

}  // namespace quarry
