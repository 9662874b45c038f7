#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct node {
  int depth;
  char name[16];
  struct node* next;
};

static int leaf(struct node* node, int depth) { return node->depth + depth; }

static int descend(struct node* parent, int depth) {
  struct node* node = calloc(1, sizeof *node);
  int result;
  node->depth = depth;
  snprintf(node->name, sizeof node->name, "node %d", depth);
  node->next = parent;
  result = depth == 9 ? 0 : leaf(node, depth) + descend(node, depth + 1);
  free(node);
  return result;
}

static void* thread(void* argument) {
  (void)argument;
  printf("%d\n", descend(NULL, 1));
  return NULL;
}

int main(void) {
  pthread_t id;
  pthread_create(&id, NULL, thread, NULL);
  pthread_join(id, NULL);
  return 0;
}
