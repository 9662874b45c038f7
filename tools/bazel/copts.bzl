"""How Quarry's own code is compiled and linked."""

_COMMON_COPTS = [
    "-std=c++20",
    "-Wall",
    "-Wextra",
    "-Werror",
    # A false positive of g++ on memory that did not come from malloc.
    "-Wno-free-nonheap-object",
]

# The allocator itself. It runs inside every program, so it needs nothing of
# the C++ runtime, and its thread-local storage is found without a call.
QUARRY_COPTS = _COMMON_COPTS + [
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-builtin-malloc",
    "-fno-builtin-calloc",
    "-fno-builtin-realloc",
    "-fno-builtin-free",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-plt",
    "-ftls-model=initial-exec",
] + select({
    # Bazel's toolchain keeps frame pointers: two instructions on the fast path.
    "//tools/bazel:optimised": ["-fomit-frame-pointer"],
    "//conditions:default": [],
})

# Tests may use exceptions, the standard library and GoogleTest. They call
# malloc to see what it does, so the compiler must not reason calls away.
QUARRY_TEST_COPTS = _COMMON_COPTS + [
    "-fno-builtin-malloc",
    "-fno-builtin-calloc",
    "-fno-builtin-realloc",
    "-fno-builtin-free",
]

# The shared library. Bazel always names libstdc++ and libm; --as-needed drops
# what is not used, and the library uses neither. It is never unloaded, since
# blocks that it handed out may outlive any dlclose. Its constructor runs before those of
# other libraries, whose fork handlers would be within its own otherwise
# (tcache/thread_life.h), unless one that is loaded later is marked so, too, as libpthread
# was before glibc 2.34.
QUARRY_SHARED_LINKOPTS = [
    # It knows the script that puts sections in order.
    "-fuse-ld=bfd",
    # On a machine with another default the segments would not be apart.
    "-Wl,-z,separate-code",
    "-Wl,-z,max-page-size=4096",
    "-Wl,--as-needed",
    "-Wl,--gc-sections",
    "-Wl,--no-undefined",
    "-Wl,-soname,libquarry.so",
    "-Wl,-z,nodelete",
    "-Wl,-z,initfirst",
]
