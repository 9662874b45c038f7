/*
 * Quarry, a memory allocator: the calls that a program makes by name.
 *
 * The same heap serves malloc, operator new and the calls below, when the
 * library that overrides them is linked or preloaded; a block from any of them
 * may be given to any other. Linking //alloc:quarry alone overrides nothing:
 * then these calls are a second heap beside libc's, and the two must not be
 * given each other's blocks.
 *
 * For C and C++. All sizes and alignments are in bytes.
 *
 * Thread-safety: every call may be made by any number of threads at once, and
 *   any thread may free any block. Not to be called from a signal handler.
 * Errors: a call that returns a block returns NULL with errno ENOMEM when there
 *   is no memory for it or when it asks for more than PTRDIFF_MAX bytes; the
 *   heap is as it was before. A call given a pointer that is not a live block
 *   (freed before, inside a block, on the stack, of another allocator) writes
 *   one line to stderr and aborts; a block that was freed before may be found out
 *   later, or, where it is only asked about, not (README, Limits).
 * Source: ISO C23 and POSIX where they have the call, glibc 2.36 where they
 *   leave it open.
 */
#ifndef QUARRY_ALLOC_QUARRY_H_
#define QUARRY_ALLOC_QUARRY_H_

#include <stddef.h>
#include <stdint.h>

#define QUARRY_PUBLIC __attribute__((visibility("default")))

/* What the compiler may assume of a call that returns a fresh block. */
#define QUARRY_BLOCK(...) \
  QUARRY_PUBLIC __attribute__((malloc, warn_unused_result, __VA_ARGS__))

#ifdef __cplusplus
#define QUARRY_NOTHROW noexcept
extern "C" {
#else
#define QUARRY_NOTHROW __attribute__((nothrow))
#endif

/* ------------------------------------------------------------ allocating */

/* A block of at least `bytes` bytes with undefined content, 16-byte aligned
 * whatever its size. `bytes` may be 0: the block is then unique all the same,
 * and is freed like any other. */
QUARRY_BLOCK(alloc_size(1))
void* quarry_malloc(size_t bytes) QUARRY_NOTHROW;

/* As quarry_malloc(), for a caller that needs no alignment above 8: saves the
 * rounding of small sizes up to a multiple of 16. */
QUARRY_BLOCK(alloc_size(1))
void* quarry_malloc_aligned8(size_t bytes) QUARRY_NOTHROW;

/* A block of `count` times `bytes_each` bytes, all zero. A product that does
 * not fit in size_t is ENOMEM. Above 16 KiB, memory that comes straight from
 * the system is known to be zero and is not written. */
QUARRY_BLOCK(alloc_size(1, 2))
void* quarry_calloc(size_t count, size_t bytes_each) QUARRY_NOTHROW;

/* A block of at least `bytes` bytes at a multiple of `alignment`, which is
 * rounded up to a power of two; 0 means the usual alignment. An alignment above
 * SIZE_MAX / 2 + 1 is EINVAL. */
QUARRY_BLOCK(alloc_size(2))
void* quarry_memalign(size_t alignment, size_t bytes) QUARRY_NOTHROW;

/* As quarry_memalign(): `bytes` need not be a multiple of `alignment`, and an
 * `alignment` that is not a power of two is rounded up to one, as glibc does up
 * to 2.37; later glibc refuses it. */
QUARRY_BLOCK(alloc_size(2))
void* quarry_aligned_alloc(size_t alignment, size_t bytes) QUARRY_NOTHROW;

/* Stores a block of at least `bytes` bytes at a multiple of `alignment` in
 * `*block` and returns 0. Returns EINVAL when `alignment` is not a power of two
 * multiple of sizeof(void*), and ENOMEM when there is no memory; `*block` is
 * then untouched. */
QUARRY_PUBLIC __attribute__((nonnull(1), warn_unused_result))
int quarry_posix_memalign(void** block, size_t alignment,
                          size_t bytes) QUARRY_NOTHROW;

/* A block of at least `bytes` bytes at a multiple of the system's page size. */
QUARRY_BLOCK(alloc_size(1))
void* quarry_valloc(size_t bytes) QUARRY_NOTHROW;

/* As quarry_valloc(), of `bytes` rounded up to a multiple of the page size. */
QUARRY_BLOCK(alloc_size(1))
void* quarry_pvalloc(size_t bytes) QUARRY_NOTHROW;

/* A block and all the bytes of it that the caller may use. */
typedef struct quarry_allocation {
  void* block;  /* NULL, with `bytes` 0, when there is no memory. */
  size_t bytes; /* At least what was asked for. */
} quarry_allocation_t;

/* A block of at least `bytes` bytes, and how many it really has: a container
 * that grows uses them before it asks again. The block may be freed with any
 * size from what was asked for to what was returned. */
QUARRY_PUBLIC __attribute__((warn_unused_result))
quarry_allocation_t quarry_allocate_at_least(size_t bytes) QUARRY_NOTHROW;

/* -------------------------------------------------------------- resizing */

/* Makes `block` at least `bytes` bytes, moving it if it must; its content is
 * kept up to the smaller of both sizes. Returns where it is now. On failure
 * returns NULL and `block` is as it was. A NULL `block` is quarry_malloc(); 0
 * bytes of a block free it and return NULL with errno untouched. The new place
 * keeps no alignment above 16. */
QUARRY_PUBLIC __attribute__((alloc_size(2), warn_unused_result))
void* quarry_realloc(void* block, size_t bytes) QUARRY_NOTHROW;

/* quarry_realloc() to `count` times `bytes_each` bytes. A product that does not
 * fit in size_t is ENOMEM, and `block` is as it was. */
QUARRY_PUBLIC __attribute__((alloc_size(2, 3), warn_unused_result))
void* quarry_reallocarray(void* block, size_t count,
                          size_t bytes_each) QUARRY_NOTHROW;

/* As quarry_realloc(), but on failure `block` is freed. */
QUARRY_PUBLIC __attribute__((alloc_size(2), warn_unused_result))
void* quarry_reallocf(void* block, size_t bytes) QUARRY_NOTHROW;

/* Makes `block` at least `least_bytes` bytes without moving it, and as much
 * longer as there is room for, up to about `most_bytes`; never shorter. Returns
 * how many bytes it now has, or 0, with nothing changed and errno untouched,
 * when there is no room behind it, `block` is NULL, or `least_bytes` is more
 * than `most_bytes`. Small blocks never grow. For a sized free, `block` was
 * then asked for with what was returned. */
QUARRY_PUBLIC __attribute__((warn_unused_result))
size_t quarry_try_expand(void* block, size_t least_bytes,
                         size_t most_bytes) QUARRY_NOTHROW;

/* --------------------------------------------------------------- freeing */

/* Frees `block`, from whichever call it came. NULL does nothing. errno is left
 * as it is. */
QUARRY_PUBLIC
void quarry_free(void* block) QUARRY_NOTHROW;

/* Frees `block`, of which the caller states the size: what it was asked for
 * with, in the last call that resized it if any did. Not for blocks that were
 * asked for with an alignment. A size of another size class aborts, unless
 * check_sizes:0 is set or it is wrong by a multiple of 4 GiB. */
QUARRY_PUBLIC
void quarry_free_sized(void* block, size_t bytes) QUARRY_NOTHROW;

/* Frees `block`, of which the caller states the alignment and the size that it
 * was asked for with. A size of another size class aborts, likewise. */
QUARRY_PUBLIC
void quarry_free_aligned_sized(void* block, size_t alignment,
                               size_t bytes) QUARRY_NOTHROW;

/* ----------------------------------------------------------------- sizes */

/* How many bytes of `block` may be used: at least what was asked for. 0 for
 * NULL. */
QUARRY_PUBLIC
size_t quarry_malloc_usable_size(const void* block) QUARRY_NOTHROW;

/* How many bytes a block of quarry_malloc(bytes) has as a rule: the best size to ask for
 * instead. Who asked for less may have less, which quarry_malloc_usable_size() tells. 0
 * if that would be more than PTRDIFF_MAX bytes. */
QUARRY_PUBLIC
size_t quarry_good_size(size_t bytes) QUARRY_NOTHROW;

/* ------------------------------------------------------------ the memory */

/* Gives back what the calling thread keeps for its own next allocations, for
 * other threads to use. Worth calling by a thread that is about to sleep long;
 * never needed at the end of a thread. */
QUARRY_PUBLIC
void quarry_thread_flush(void) QUARRY_NOTHROW;

/* Returns free memory to the system, and tells how many bytes went: of pages that a block
 * was on, written to or not, and that were not given back before. Addresses that go back as
 * well are not counted, as there is no memory behind them. About `keep_bytes` bytes are kept
 * where the calling thread allocates from; of other threads, what they have at hand for
 * their next small blocks. Implies quarry_thread_flush(). */
QUARRY_PUBLIC
size_t quarry_release_memory(size_t keep_bytes) QUARRY_NOTHROW;

/* Bounds what the heap may take from the system; 0 is no bound, but for the soft one
 * that of the process's control group, if there is one. Above `soft_bytes` free
 * memory goes back at once and the pressure callback is called; what would go above
 * `hard_bytes` fails with ENOMEM. Both hold from now on: a heap that is above them
 * already keeps what it has. Returns 0, or EINVAL, with nothing changed, when there is
 * a `hard_bytes` and `soft_bytes` is more. */
QUARRY_PUBLIC
int quarry_set_memory_limit(size_t soft_bytes,
                            size_t hard_bytes) QUARRY_NOTHROW;

/* What a program wants to do when its memory goes above the soft limit: drop
 * what it can do without. Told how much is mapped and what the limit is. */
typedef void (*quarry_pressure_callback_t)(void* context, size_t mapped_bytes,
                                           size_t soft_bytes);

/* From now on `callback` is called with `context`; NULL is no callback. It runs
 * within a call that allocates, of whichever thread is first to see that the heap
 * is above the limit. It may use the heap, and must return: after an exception,
 * longjmp() or pthread_exit() out of it there is no other. Where another thread is
 * in the one before, that goes on after this call has returned. By one thread at
 * a time; a child that is forked meanwhile may have no callback. */
QUARRY_PUBLIC
void quarry_set_pressure_callback(quarry_pressure_callback_t callback,
                                  void* context) QUARRY_NOTHROW;

/* Figures of the whole heap, in bytes where the name says so. They are read
 * while other threads run, each once, so they are exact only at rest, and only
 * then do the invariants hold. What other threads have at hand is read by
 * process_vm_readv(); where a filter of system calls refuses that, it counts as
 * live.
 *
 * Invariant: mapped_bytes = live_bytes + cached_bytes + slab_free_bytes +
 *   arena_free_bytes + huge_cached_bytes + metadata_bytes
 * Invariant: live_bytes = live_small_bytes + live_medium_bytes +
 *   live_huge_bytes */
typedef struct quarry_statistics {
  size_t size; /* sizeof(quarry_statistics_t), set by the caller. */

  size_t mapped_bytes;      /* All that was taken from the system, but for 12.5
                             * MiB of addresses for tables. */
  size_t peak_mapped_bytes; /* The most that ever was. */
  size_t live_bytes;        /* In blocks that the program holds. */
  size_t cached_bytes;      /* In free blocks kept by threads. */
  size_t slab_free_bytes;   /* In slabs, and not in a block that is held. */
  size_t arena_free_bytes;  /* In free page runs. */
  size_t huge_cached_bytes; /* In mappings kept for the next huge block. */
  size_t metadata_bytes;    /* The allocator's own. */

  size_t live_small_bytes;  /* In blocks of a size class. */
  size_t live_medium_bytes; /* In page runs. */
  size_t live_huge_bytes;   /* In mappings of their own. */
  size_t live_huge_blocks;

  size_t threads; /* That have a cache. */
  size_t arenas;
  size_t segments;
  size_t slabs;
  size_t slabs_orphaned; /* Of threads that have exited, or wait. */

  /* Since the program started. */
  size_t os_map_calls;
  size_t os_unmap_calls;
  size_t os_purge_calls;
  size_t refills;        /* Batches of blocks taken by a thread. */
  size_t flushes;        /* Batches of blocks given back by a thread. */
  size_t remote_frees;   /* Of blocks of another thread's slab. */
  size_t drained_blocks; /* Remote frees that the slab's thread has seen. */
  size_t slabs_made;
  size_t slabs_returned;
  size_t adoptions; /* Of slabs of threads that had exited, or wait. */

  /* Second edition. */
  size_t mappings; /* That hold blocks; the allocator's own are a few more. */
  size_t arena_dirty_bytes; /* Of arena_free_bytes, what is not yet given back;
                             * quarry_release_memory() does so at once. */
  size_t soft_limit_bytes;  /* The one in force: as quarry_set_memory_limit(), or
                             * the control group's once that was asked for, when the
                             * heap had grown; 0 is none. */
  size_t hard_limit_bytes;
} quarry_statistics_t;

/* Fills `statistics`, of which the caller has set `size`. Fields are only ever
 * added at the end: a program compiled with a shorter struct gets as much as it
 * knows, and one compiled with a longer struct finds 0 in what this library
 * does not know. Returns 0, or EINVAL when `size` is less than that of the
 * struct's first edition. */
QUARRY_PUBLIC __attribute__((nonnull(1)))
int quarry_statistics(quarry_statistics_t* statistics) QUARRY_NOTHROW;

/* Figures of one size class. */
typedef struct quarry_size_class_statistics {
  size_t block_bytes;
  size_t slabs;
  size_t live_blocks; /* Held by the program. */
  size_t free_blocks; /* The others. */
} quarry_size_class_statistics_t;

/* Fills the first `capacity` elements of `classes`, smallest class first, and
 * returns how many classes there are. `classes` may be NULL if `capacity` is 0. */
QUARRY_PUBLIC
size_t quarry_size_class_statistics(quarry_size_class_statistics_t* classes,
                                    size_t capacity) QUARRY_NOTHROW;

/* Writes a page of statistics, for people, to a file descriptor. What that
 * refuses is lost. */
QUARRY_PUBLIC
void quarry_statistics_print(int file_descriptor) QUARRY_NOTHROW;

/* Checks the heap's slabs, page runs and mappings, and what the calling thread
 * has at hand; aborts with a line that says what is wrong, if anything is. Slow.
 * Other threads go on meanwhile, but may wait for the part that is being
 * checked. */
QUARRY_PUBLIC
void quarry_verify(void) QUARRY_NOTHROW;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* QUARRY_ALLOC_QUARRY_H_ */
