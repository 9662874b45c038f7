/* Registers fork handlers before it allocates anything. In them it waits for a thread
 * that allocates, as one does who takes a mutex that other threads hold meanwhile. */
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kBlocks = 2000 };

static sem_t asked;
static sem_t answered;

static void* Allocate(void* unused) {
  static void* blocks[kBlocks];
  for (;;) {
    sem_wait(&asked);
    for (int i = 0; i < kBlocks; ++i) blocks[i] = malloc(i % 50 * 100);
    for (int i = 0; i < kBlocks; ++i) free(blocks[i]);
    sem_post(&answered);
  }
  return unused;
}

static void WaitForOther(void) {
  sem_post(&asked);
  sem_wait(&answered);
}

int main(void) {
  pthread_t thread;
  if (pthread_atfork(WaitForOther, WaitForOther, NULL) != 0) return 2;
  if (sem_init(&asked, 0, 0) != 0 || sem_init(&answered, 0, 0) != 0) return 2;
  if (pthread_create(&thread, NULL, Allocate, NULL) != 0) return 2;
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
