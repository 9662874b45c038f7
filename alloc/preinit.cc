// What a program that has Quarry in it begins with, before the constructors of its shared
// libraries: whose fork handlers are registered there would be within Quarry's otherwise
// (RegisterHandlers()). A shared library may not have this: the constructor of libquarry.so
// is the first in another way.

#include "absl/base/attributes.h"
#include "alloc/calls.h"

namespace quarry {
namespace {

void StartBeforeConstructors(int, char**, char** environment) {
  StartProcess(environment);
}

using Start = void(int, char**, char**);
ABSL_ATTRIBUTE_SECTION_VARIABLE(.preinit_array)
__attribute__((used)) Start* const start = StartBeforeConstructors;

}  // namespace
}  // namespace quarry
