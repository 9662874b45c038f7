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

def quarry_dependencies(path):
    """What a workspace needs that builds Quarry offline, with Debian's Bazel 4.2.3.

    Args:
      path: where Quarry is, as of the workspace. What it has already under one of
        these names stays.
    """
    local = {
        "bazel_skylib": "/usr/share/bazel/tools/skylib",
        "platforms": "/usr/share/bazel/platforms",
        # Debian's rules_cc does not load in its Bazel, so a stub forwards to the
        # rules that Bazel brings along.
        "rules_cc": path + "/tools/bazel/rules_cc",
        "rules_java": "/usr/share/bazel/rules/java",
        "rules_proto": "/usr/share/bazel/rules/proto",
    }
    for name, at in local.items():
        if not native.existing_rule(name):
            native.local_repository(name = name, path = at)
    if not native.existing_rule("com_google_absl"):
        debian_abseil(name = "com_google_absl")
