/* quarry.h is a C header: this program is C, and fails to compile otherwise. */
#include "alloc/quarry.h"

#include <stdlib.h>
#include <string.h>

#define EXPECT(condition) \
  do {                    \
    if (!(condition)) abort(); \
  } while (0)

int main(void) {
  quarry_statistics_t statistics;
  quarry_allocation_t allocation = quarry_allocate_at_least(10);
  char* text = quarry_malloc(6);
  EXPECT(allocation.block != NULL && allocation.bytes >= 10);
  EXPECT(text != NULL);
  strcpy(text, "stone");
  text = quarry_realloc(text, 1000);
  EXPECT(text != NULL && strcmp(text, "stone") == 0);
  statistics.size = sizeof(statistics);
  EXPECT(quarry_statistics(&statistics) == 0);
  EXPECT(statistics.live_bytes >= 1010);
  EXPECT(quarry_try_expand(text, 1, 1000) >= 1000);
  quarry_set_pressure_callback(NULL, NULL);
  EXPECT(quarry_set_memory_limit(2, 1) != 0);
  quarry_free(text);
  quarry_free(allocation.block);
  return 0;
}
