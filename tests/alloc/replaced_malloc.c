/* usage: replaced_malloc
 * A program with a malloc of its own that does not know of reallocarray(): that must
 * come to its realloc(), as glibc's does. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Alignas(16) char heap[1 << 20];
static size_t used;
static volatile int reallocs; /* The compiler takes allocation to leave it alone. */

static int IsOwn(const void* block) {
  return (const char*)block >= heap && (const char*)block < heap + sizeof(heap);
}

void* malloc(size_t bytes) {
  used = (used + 15) & ~(size_t)15;
  if (bytes > sizeof(heap) - used) return NULL;
  used += bytes;
  return heap + used - bytes;
}

void free(void* block) {
  if (block != NULL && !IsOwn(block)) abort();
}

void* calloc(size_t count, size_t bytes) { return malloc(count * bytes); }

/* Copies what may be behind the block, too. */
void* realloc(void* block, size_t bytes) {
  char* const moved = malloc(bytes);
  ++reallocs;
  if (block != NULL && !IsOwn(block)) abort();
  if (moved != NULL && block != NULL) {
    const size_t most = (size_t)(heap + sizeof(heap) - (char*)block);
    memmove(moved, block, bytes < most ? bytes : most);
  }
  return moved;
}

int main(int argc, char** argv) {
  const size_t too_many = SIZE_MAX / (size_t)(argc + 1);
  (void)argv;
  char* block = reallocarray(NULL, 10, 10);
  if (reallocs != 1 || !IsOwn(block)) return 1;
  strcpy(block, "content");
  block = reallocarray(block, 100, 10);
  if (reallocs != 2 || !IsOwn(block) || strcmp(block, "content") != 0) return 2;
  errno = 0;
  if (reallocarray(block, too_many, 3) != NULL || errno != ENOMEM) return 3;
  if (reallocs != 2) return 4;
  free(block);
  return 0;
}
