/* usage: dlopen_host own|libc
 * Opens a library with RTLD_DEEPBIND, by a name that only this program's DT_RUNPATH
 * leads to. own: its malloc is this program's, and each frees the other's blocks.
 * libc: it is libc's. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void* Find(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == NULL) {
    fprintf(stderr, "dlopen_host: %s\n", dlerror());
    exit(1);
  }
  return found;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  if (dlopen("libdlopen_absent.so", RTLD_NOW) != NULL) return 1;
  if (strstr(dlerror(), "libdlopen_absent.so") == NULL) return 1;

  void* library = dlopen("libdlopen_plugin.so", RTLD_NOW | RTLD_DEEPBIND);
  if (library == NULL) {
    fprintf(stderr, "dlopen_host: %s\n", dlerror());
    return 1;
  }
  void* (*plugin_malloc)(size_t) = Find(library, "PluginMalloc");
  void (*plugin_free)(void*) = Find(library, "PluginFree");
  void* (*plugin_address)(void) = Find(library, "PluginAddressOfFree");
  const int is_own = plugin_address() == (void*)free;
  if (is_own != (strcmp(argv[1], "own") == 0)) {
    fprintf(stderr, "dlopen_host: the library has %s free\n",
            is_own ? "this program's" : "another");
    return 1;
  }
  if (is_own) {
    for (size_t bytes = 1; bytes < 3000000; bytes = bytes * 2 + 1) {
      plugin_free(malloc(bytes));
      free(plugin_malloc(bytes));
    }
  }
  return 0;
}
