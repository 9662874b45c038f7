#ifndef QUARRY_TESTS_ARENA_REFUSE_CALL_H_
#define QUARRY_TESTS_ARENA_REFUSE_CALL_H_

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <cerrno>
#include <cstddef>
#include <iterator>

namespace quarry {

// Has the system refuse a call, by its number, to this thread from now on and to what it
// starts; or end the process for it, by SECCOMP_RET_KILL_PROCESS. False if it cannot.
inline bool RefuseCall(unsigned int number,
                       unsigned int action = SECCOMP_RET_ERRNO | EPERM) {
  sock_filter instructions[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(instructions), instructions};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_REFUSE_CALL_H_
