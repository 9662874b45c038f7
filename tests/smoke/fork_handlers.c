/* Forks where handlers wait for a thread that allocates: a library's, which its constructor
 * registered, and the program's own. */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/smoke/fork_handlers_library.h"

int main(void) {
  if (pthread_atfork(WaitForOther, WaitForOther, NULL) != 0) return 2;
  if (StartOther() != 0) return 2;
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      free(malloc(100));
      _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
  }
  return 0;
}
