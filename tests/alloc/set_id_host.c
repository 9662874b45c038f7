/* usage: set_id_host
 * Has the maintenance thread started, if there is one, gives up the right to change its
 * user by a call that acts on one thread, and then tries to. That fails, as with libc's
 * malloc; with a second thread that still had the right, libc would end the process.
 * Status 3: it may not give anything up, or has nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  for (int i = 0; i < 4; ++i) {
    void* block = malloc(3000000);
    memset(block, 1, 3000000);
    free(block);
    free(malloc(100000));
  }
  usleep(20000);

  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data) != 0) return 3;
  const unsigned right = 1u << CAP_SETUID;
  if ((data[0].effective & right) == 0) return 3;
  data[0].effective &= ~right;
  data[0].permitted &= ~right;
  if (syscall(SYS_capset, &header, data) != 0) return 3;

  if (setresuid(12345, 12345, 12345) == 0 || errno != EPERM) {
    fprintf(stderr, "set_id_host: setresuid() is not refused\n");
    return 1;
  }
  if (setgid(getgid()) != 0 || setegid(getegid()) != 0) return 1;
  if (seteuid(12345) == 0 || setreuid(12345, 12345) == 0 || setuid(12345) == 0) return 1;
  if (setregid(getgid(), getegid()) != 0) return 1;
  if (setresgid(getgid(), getegid(), getegid()) != 0) return 1;
  if (setgroups(0, NULL) != 0 || initgroups("nobody", getgid()) != 0) return 1;
  free(malloc(3000000));
  return 0;
}
