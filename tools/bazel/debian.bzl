"""Debian's installed libraries under the labels that their projects use."""

_ABSEIL_BUILD = {
    "base": """
cc_library(
    name = "all_headers",
    hdrs = glob([
        "**/*.h",
        "**/*.inc",
    ]),
    visibility = ["//absl:__subpackages__"],
)

cc_library(
    name = "core_headers",
    hdrs = [
        "attributes.h",
        "config.h",
        "internal/thread_annotations.h",
        "optimization.h",
        "options.h",
        "policy_checks.h",
        "thread_annotations.h",
    ],
    visibility = ["//visibility:public"],
)
""",
    "container": """
cc_library(
    name = "flat_hash_map",
    hdrs = glob(["**/*.h"]),
    linkopts = [
        "-labsl_raw_hash_set",
        "-labsl_hash",
        "-labsl_city",
        "-labsl_low_level_hash",
        "-labsl_raw_logging_internal",
    ],
    visibility = ["//visibility:public"],
    deps = [
        "//absl/base:all_headers",
        "//absl/numeric:all_headers",
    ],
)
""",
    "numeric": """
cc_library(
    name = "all_headers",
    hdrs = glob([
        "**/*.h",
        "**/*.inc",
    ]),
    visibility = ["//absl:__subpackages__"],
)

cc_library(
    name = "bits",
    hdrs = [
        "bits.h",
        "internal/bits.h",
    ],
    visibility = ["//visibility:public"],
    deps = ["//absl/base:core_headers"],
)
""",
}

def _debian_abseil_impl(repository_ctx):
    # A package folder of links, not one link to the installed folder: Bazel
    # wants to put its BUILD file beside the headers.
    installed = repository_ctx.path("/usr/include/absl")
    for package, build in _ABSEIL_BUILD.items():
        for entry in installed.get_child(package).readdir():
            repository_ctx.symlink(
                entry,
                "absl/{}/{}".format(package, entry.basename),
            )
        repository_ctx.file("absl/{}/BUILD".format(package), build)

debian_abseil = repository_rule(
    implementation = _debian_abseil_impl,
    doc = "The parts of Abseil that Quarry uses, as installed.",
    local = True,
)
