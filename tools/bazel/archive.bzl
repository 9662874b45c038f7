"""An archive of one object, for programs that are not built with Bazel."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

def _single_object_archive_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    archives = [
        library.pic_static_library or library.static_library
        for dep in ctx.attr.deps
        for linker_input in dep[CcInfo].linking_context.linker_inputs.to_list()
        for library in linker_input.libraries
    ]
    object = ctx.actions.declare_file(ctx.label.name + ".o")
    archive = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.run_shell(
        inputs = depset(archives, transitive = [toolchain.all_files]),
        outputs = [object, archive],
        # What is hidden in a shared library is local to this object, so none
        # of it may be left to a group of which a linker drops all but one.
        command = """
            set -e
            ld=$1 objcopy=$2 ar=$3 object=$4 archive=$5
            shift 5
            "$ld" -r --force-group-allocation -o "$object" --whole-archive "$@"
            "$objcopy" --localize-hidden "$object"
            rm -f "$archive"
            "$ar" rcsD "$archive" "$object"
        """,
        arguments = [
            toolchain.ld_executable,
            toolchain.objcopy_executable,
            toolchain.ar_executable,
            object.path,
            archive.path,
        ] + [file.path for file in archives],
        mnemonic = "QuarryArchive",
        progress_message = "Joining objects into " + archive.short_path,
    )
    return [DefaultInfo(
        files = depset([archive]),
        runfiles = ctx.runfiles(files = [archive]),
    )]

single_object_archive = rule(
    implementation = _single_object_archive_impl,
    doc = """Joins all objects of `deps` into one, and that into an archive.

    A linker takes an archive's objects one by one. With malloc in one object
    and memalign in another it may take the one from here and the other from
    libc.a, and with that a second malloc.
    """,
    attrs = {
        "deps": attr.label_list(providers = [CcInfo]),
        "_cc_toolchain": attr.label(
            default = "@bazel_tools//tools/cpp:current_cc_toolchain",
        ),
    },
    incompatible_use_toolchain_transition = True,
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)
