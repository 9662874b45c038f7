/* Opened by dlopen_host.c. */
#include <stdlib.h>

void* PluginMalloc(size_t bytes) { return malloc(bytes); }
void PluginFree(void* block) { free(block); }
void* PluginAddressOfFree(void) { return (void*)free; }
