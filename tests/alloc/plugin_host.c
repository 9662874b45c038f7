/* A C program: no C++ runtime until it loads a plug-in that brings one.
 * usage: plugin_host [PLUGIN] */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

int main(int argc, char** argv) {
  if (argc > 1) {
    void* plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    int (*run)(void) = NULL;
    if (plugin != NULL) *(void**)&run = dlsym(plugin, "RunOutOfMemory");
    if (run == NULL) {
      fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    return run();
  } else {
    void* (*operator_new)(size_t) = NULL;
    *(void**)&operator_new = dlsym(RTLD_DEFAULT, "_Znwm");
    if (operator_new == NULL) return 1;
    operator_new(SIZE_MAX / 4);
    return 1;
  }
}
