// What memory the control group of this process may use.
//
// Containers are control groups: what the machine has is not what the process
// may take, and whoever takes more is killed.
//
// Thread-safety: any thread, with any lock held; CgroupMemoryLimit() one at a time.
//   Allocates nothing and leaves errno alone.
// Source: the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
#ifndef QUARRY_ARENA_CGROUP_H_
#define QUARRY_ARENA_CGROUP_H_

#include <cstddef>
#include <string_view>

namespace quarry {

// The bytes that a file like memory.max names; 0 for "max", for what is no
// number, and for the astronomic number by which version 1 says "no limit".
size_t ParseCgroupLimit(std::string_view text);

// The path of the group of `controller` in the text of /proc/self/cgroup;
// `controller` is empty for version 2. No characters when there is none.
std::string_view FindCgroupPath(std::string_view text,
                                std::string_view controller);

// The smallest limit of the process's group and of all groups about it:
// memory.high and memory.max; where no group has these, version 1's
// memory.limit_in_bytes. 0 when there is no limit. `root` stands before
// /proc and /sys.
size_t CgroupMemoryLimit(const char* root = "");

}  // namespace quarry

#endif  // QUARRY_ARENA_CGROUP_H_
