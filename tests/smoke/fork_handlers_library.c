/* A library in whose fork handlers the forking thread waits for a thread that allocates, as
 * one does that takes a mutex which other threads hold meanwhile. Its constructor registers
 * them, before it allocates anything, and more of them than libc has room for without. */
#include "tests/smoke/fork_handlers_library.h"

#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdlib.h>

enum { kBlocks = 2000, kMoreHandlers = 60 };

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

void WaitForOther(void) {
  sem_post(&asked);
  sem_wait(&answered);
}

int StartOther(void) {
  pthread_t thread;
  return pthread_create(&thread, NULL, Allocate, NULL);
}

static void DoNothing(void) {}

__attribute__((constructor)) static void RegisterBeforeAnAllocation(void) {
  if (sem_init(&asked, 0, 0) != 0 || sem_init(&answered, 0, 0) != 0) abort();
  if (pthread_atfork(WaitForOther, WaitForOther, NULL) != 0) abort();
  for (int i = 0; i < kMoreHandlers; ++i) {
    if (pthread_atfork(DoNothing, DoNothing, DoNothing) != 0) abort();
  }
}
