/*
 * A slab's way between threads: remote frees, the token, orphans, adoption,
 * return.
 *
 * Models, each atomic operation as a step of its own, and a critical section as
 * one step where no more than one of its operations is seen without the lock:
 *   tcache/remote_bitmap.h   MarkWord (word, then summary), Drain
 *   tcache/pending_stack.h   Push (its loop), TakeAll, Close, Open
 *   tcache/orphans.cc        Add, Adopt, DrainOrphan
 *   tcache/slab_token.cc     PassToken
 *   tcache/slab.cc           Return (ReturnSlab here)
 *   tcache/thread_cache*.cc  Refill and TakeOne, RelistAfterPut (Relist here),
 *                            TryFreeLocally, Tidy, ReturnEmptySlabs, DrainPending,
 *                            PassTokens, Close with CloseSlabs
 *   tcache/thread_cache_lend.cc LendSlabs
 *   tcache/cache_registry.cc Take and Give: a closed cache serves another
 *                            thread; that of a thread whose cache is parked is
 *                            idle until another thread has it, which goes on as
 *                            if it were the first
 *   tcache/thread_life.cc    what a fork's child finds (as an assertion)
 *
 * The clients are the most general ones: two threads free whatever block is in
 * use, again and again; others take a cache, allocate, free locally, drain,
 * give empty slabs back, exit and take a cache again, in any order, or stay idle for
 * ever; a maintenance thread tidies any open cache at any time, and a borrower has any
 * of them lend its slabs. One thread has the slabs at first. No run of theirs is bounded, and every state is visited.
 *
 * Abstracted: memory orders (every step is sequentially consistent); magazines
 * and depots (an owner's frees go to the bitmap at once); one arena and one
 * size class; a slab of at most three blocks, in two words; returned slabs are
 * not made again, so any touch of one is an error; a double free.
 *
 * Properties, as assertions and as no deadlock:
 *   - a block is in use, marked, or in the local bitmap, never in two of these;
 *   - a slab has one token at most, and whoever drains has it;
 *   - a word that the summary names is not empty;
 *   - a slab is returned once, when every block is free, and never touched
 *     again;
 *   - when all threads are between two calls, a slab with marks is on one
 *     pending stack of an open cache, once, and a slab without used blocks is
 *     returned or in a cache's list: no block is lost;
 *   - when all locks are free, as at a fork, every block is accounted for by
 *     the slab's bitmaps alone, whatever the summary says, and each slab that is
 *     about to be drained is in a list.
 *
 * Sizes: -DTHREADS=1 or 2 (with caches), -DFREERS=1 or 2, -DSLABS=1 or 2,
 *   -DSLAB_BLOCKS=1, 2 or 3, -DNO_MAINTENANCE, -DLEND (with a borrower, and
 *   threads look at the owner before they lock), -DNO_ALLOCATION (caches adopt,
 *   but each block is freed once), -DONE_LIFE (a thread that exited has no
 *   successor; the second may get its cache). All of it at once is too much:
 *   the runs of models_test.py each leave something small.
 *
 * Mutants, each of which must fail:
 *   WORDS_BEFORE_SUMMARY  a drain takes the words, then the summary
 *   FIRST_BY_WORD         who finds the word empty takes itself for the first
 *   UNLINK_AFTER_DRAIN    the next of a stack is read after the drain
 *   ADOPT_DRAINS          adoption drains marks whose token is on its way
 *   STACK_STAYS_OPEN      Close takes the stack but leaves it open
 *   FOREIGN_IS_OWN        DrainPending does not ask who owns the slab
 *   FOREIGN_IS_DROPPED    DrainPending forgets slabs that another cache owns
 *   ORPHAN_UNASKED        DrainOrphan does not look at the owner again
 *   LENT_UNLOCKED         LendSlabs does not take the orphans' lock
 *   OWNER_UNASKED         TryFreeLocally does not look at the owner again
 */

#ifndef THREADS
#define THREADS 2
#endif
#ifndef FREERS
#define FREERS 2
#endif
#ifndef SLABS
#define SLABS 1
#endif
#ifndef SLAB_BLOCKS
#define SLAB_BLOCKS 3
#endif

#define NIL 0      /* no slab, no cache */
#define CLOSED 7   /* head of a closed stack */
#define ORPHANS 3  /* list of the orphans; 1 and 2 are those of the caches */

/* Bits of blocks. Two blocks share word 0; the third is in word 1. */
#if SLAB_BLOCKS == 3
#define ALL 7
#elif SLAB_BLOCKS == 2
#define ALL 5 /* one block in each word */
#else
#define ALL 1
#endif

/* Of slabs, from 1. */
byte owner[SLABS + 1];
byte list[SLABS + 1]; /* that it is in */
byte next[SLABS + 1]; /* pending_next */
byte summary[SLABS + 1];
byte word0[SLABS + 1];
byte word1[SLABS + 1];
byte freed[SLABS + 1];  /* the local bitmap */
byte in_use[SLABS + 1]; /* with the program */
bit token[SLABS + 1];   /* exists */
bit returned[SLABS + 1];

/* Of caches, from 1. */
byte head[THREADS + 1];
bit cache_lock[THREADS + 1];
bit is_open[THREADS + 1];
bit is_free[THREADS + 1]; /* in the list of closed caches */

bit orphans_lock;
bit registry_lock;

byte busy; /* threads that are in a call */

#define ACQUIRE(l) atomic { l == 0 -> l = 1 }
#define RELEASE(l) l = 0
#if THREADS == 2
#define ANY(of_cache) (of_cache[1] || of_cache[2])
#else
#define ANY(of_cache) (of_cache[1])
#endif
#define TOUCH(s) assert(!returned[s])

inline ReturnSlab(s) {
  d_step {
    assert(!returned[s] && freed[s] == ALL && list[s] == NIL);
    assert(!token[s] && word0[s] == 0 && word1[s] == 0);
    returned[s] = 1;
    /* Not a part of the state any more. */
    owner[s] = NIL;
    next[s] = NIL
  }
}

inline TakeWord0(s) {
  d_step {
    TOUCH(s);
    assert(word0[s] != 0);
    assert((freed[s] & word0[s]) == 0);
    freed[s] = freed[s] | word0[s];
    word0[s] = 0
  }
}

inline TakeWord1(s) {
  d_step {
    TOUCH(s);
    assert(word1[s] != 0);
    assert((freed[s] & word1[s]) == 0);
    freed[s] = freed[s] | word1[s];
    word1[s] = 0
  }
}

inline TakeSummary(s) {
  d_step {
    TOUCH(s);
    assert(token[s] && summary[s] != 0);
    token[s] = 0;
    taken = summary[s];
    summary[s] = 0
  }
}

inline Drain(s) {
#ifdef WORDS_BEFORE_SUMMARY
  if :: word0[s] != 0 -> TakeWord0(s) :: else fi;
  if :: word1[s] != 0 -> TakeWord1(s) :: else fi;
  TakeSummary(s);
  taken = 0
#else
  TakeSummary(s);
  if :: taken & 1 -> TakeWord0(s) :: else fi;
  if :: taken & 2 -> TakeWord1(s) :: else fi;
  taken = 0
#endif
}

/* `done` is its result. */
inline DrainOrphan(s) {
  ACQUIRE(orphans_lock);
  TOUCH(s);
#ifdef ORPHAN_UNASKED
  if
  :: true ->
#else
  if
  :: owner[s] != NIL ->
     done = 0;
     RELEASE(orphans_lock)
  :: else ->
#endif
     atomic { assert(list[s] == ORPHANS); list[s] = NIL };
     Drain(s);
     done = 1;
     if
     :: freed[s] != ALL ->
        d_step { list[s] = ORPHANS; RELEASE(orphans_lock) }
     :: else ->
        RELEASE(orphans_lock);
        ReturnSlab(s)
     fi
  fi
}

inline PassToken(s) {
  do
  :: d_step { TOUCH(s); to = owner[s] };
     if
     :: to == NIL -> DrainOrphan(s)
     :: else ->
        old_head = head[to];
        do
        :: old_head == CLOSED ->
           /* Waits until the slabs of the closed cache are orphans. */
           atomic { orphans_lock == 0 -> done = 0 };
           break
        :: else ->
           d_step { TOUCH(s); next[s] = old_head };
           /* Compare and exchange. */
           atomic {
             if
             :: head[to] == old_head -> head[to] = s; done = 1; break
             :: else -> old_head = head[to]
             fi
           }
        od;
        atomic { to = NIL; old_head = NIL }
     fi;
     if :: done -> done = 0; break :: else fi
  od;
  skip
}

/* Under the cache's lock. */
inline Relist(s) {
  d_step {
    TOUCH(s);
    assert(list[s] == me);
#if SLABS == 2
    /* One empty slab stays. */
    if
    :: freed[s] == ALL && list[3 - s] == me && freed[3 - s] == ALL ->
       list[s] = NIL;
       assert(!token[s]);
       returned[s] = 1;
       owner[s] = NIL;
       next[s] = NIL
    :: else
    fi
#endif
  }
}

inline ReturnEmptySlabs() {
  d_step {
    if
    :: list[1] == me && freed[1] == ALL ->
       list[1] = NIL;
       assert(!token[1] && !returned[1]);
       returned[1] = 1;
       owner[1] = NIL;
       next[1] = NIL
    :: else
    fi;
#if SLABS == 2
    if
    :: list[2] == me && freed[2] == ALL ->
       list[2] = NIL;
       assert(!token[2] && !returned[2]);
       returned[2] = 1;
       owner[2] = NIL;
       next[2] = NIL
    :: else
    fi
#endif
  }
}

inline DrainStack(relist) {
  others = NIL;
  do
  :: current != NIL ->
#ifndef UNLINK_AFTER_DRAIN
     d_step { TOUCH(current); following = next[current] };
#endif
     if
#ifdef FOREIGN_IS_OWN
     :: true ->
#else
     :: owner[current] == me ->
#endif
        Drain(current);
        if :: relist -> Relist(current) :: else fi
#ifndef FOREIGN_IS_OWN
     :: owner[current] != me ->
#ifndef FOREIGN_IS_DROPPED
        d_step { TOUCH(current); next[current] = others; others = current }
#else
        skip
#endif
#endif
     fi;
#ifdef UNLINK_AFTER_DRAIN
     d_step { TOUCH(current); following = next[current] };
#endif
     d_step { current = following; following = NIL }
  :: else -> break
  od;
  skip
}

inline PassTokens() {
  do
  :: others != NIL ->
     d_step {
       TOUCH(others);
       current = others;
       others = next[others]
     };
     PassToken(current);
     current = NIL
  :: else -> break
  od;
  skip
}

/* Under the cache's lock. */
inline DrainPending() {
  d_step {
    assert(head[me] != CLOSED);
    current = head[me];
    head[me] = NIL
  };
  DrainStack(1);
  PassTokens()
}

inline DrainPendingIfAny() {
  if :: head[me] != NIL -> DrainPending() :: else fi
}

/* Gives slab `s` up if the cache has it: ReturnSlab() comes after the locks. */
inline GiveUp(s, bit_of_s) {
  d_step {
    if
    :: list[s] == me && freed[s] == ALL ->
       list[s] = NIL;
       emptied = emptied | bit_of_s
    :: list[s] == me && freed[s] != ALL ->
       list[s] = ORPHANS;
       owner[s] = NIL
    :: else
    fi
  }
}

inline GiveAllUp() {
  GiveUp(1, 1);
#if SLABS == 2
  GiveUp(2, 2)
#endif
}

inline Close() {
  ACQUIRE(cache_lock[me]);
  ACQUIRE(orphans_lock);
  d_step {
    assert(head[me] != CLOSED);
    current = head[me];
#ifdef STACK_STAYS_OPEN
    head[me] = NIL
#else
    head[me] = CLOSED
#endif
  };
  DrainStack(0);
  GiveAllUp();
  RELEASE(orphans_lock);
  RELEASE(cache_lock[me]);
  if :: emptied & 1 -> ReturnSlab(1) :: else fi;
#if SLABS == 2
  if :: emptied & 2 -> ReturnSlab(2) :: else fi;
#endif
  emptied = 0;
  PassTokens()
}

/* Under the lock of the cache, which has no slab with a free block. */
inline Adopt(s) {
  atomic {
    orphans_lock == 0 ->
    if
    :: list[s] == ORPHANS && freed[s] != 0 ->
       TOUCH(s);
       owner[s] = me;
       list[s] = me
    :: else
    fi
  };
#ifdef ADOPT_DRAINS
  if
  :: list[s] == me ->
     d_step {
       freed[s] = freed[s] | word0[s] | word1[s];
       word0[s] = 0;
       word1[s] = 0;
       summary[s] = 0;
       token[s] = 0
     }
  :: else
  fi
#endif
}

#define HAS_FREE(s) (list[s] == me && freed[s] != 0)

inline AllocateFrom(s, b) {
  d_step { TOUCH(s); freed[s] = freed[s] & ~b; in_use[s] = in_use[s] | b }
}

/* The program frees a block that is its own: nobody else does. */
inline FreeLocally(s, b) {
  atomic {
    list[s] == me && (in_use[s] & b) ->
    TOUCH(s);
    freed[s] = freed[s] | b;
    in_use[s] = in_use[s] & ~b
  };
  Relist(s)
}

inline ACall(s) {
  if
  /* Refill, with TakeOne's single block: the lowest. */
  :: true ->
     DrainPendingIfAny();
     if
     :: HAS_FREE(s)
     :: else -> Adopt(s)
     fi;
#ifndef NO_ALLOCATION
     if
     :: HAS_FREE(s) && (freed[s] & 1) -> AllocateFrom(s, 1)
     :: HAS_FREE(s) && (freed[s] & 3) == 2 -> AllocateFrom(s, 2)
     :: HAS_FREE(s) && (freed[s] & 7) == 4 -> AllocateFrom(s, 4)
     :: else
     fi
#else
     skip
#endif
  :: FreeLocally(s, 1)
  :: FreeLocally(s, 4)
  /* FlushThread. */
  :: true ->
     DrainPendingIfAny();
     ReturnEmptySlabs()
  fi
}

#ifdef LEND
/* The owner was looked at before the lock was taken. A block that was freed by
 * another thread meanwhile would be freed twice, which is left out. */
inline TryFreeLocally(s, b) {
  d_step {
    if
#ifdef OWNER_UNASKED
    :: in_use[s] & b ->
#else
    :: owner[s] == me && (in_use[s] & b) ->
#endif
       assert(list[s] == me);
       freed[s] = freed[s] | b;
       in_use[s] = in_use[s] & ~b
    :: else -> skip
    fi
  }
}

/* Of a slab that is partly used. */
inline Lend(s) {
  d_step {
    if
    :: list[s] == me && freed[s] != 0 && freed[s] != ALL -> owner[s] = NIL; done = 1
    :: else
    fi
  };
  if
  :: done -> d_step { TOUCH(s); list[s] = ORPHANS; done = 0 }
  :: else
  fi
}
#endif

/* A thread that has a cache, exits, and is followed by another. */
proctype Thread(byte me) {
  byte current, following, others, taken, to, old_head, emptied;
  bit done;
  if
  :: me != NIL -> goto living
  :: else
  fi;
end_without_cache:
  atomic {
    registry_lock == 0 && ANY(is_free) ->
    if
    :: is_free[1] -> me = 1
#if THREADS == 2
    :: is_free[2] -> me = 2
#endif
    fi;
    is_free[me] = 0
  };
  /* Nobody holds the lock of a closed cache for long. */
  atomic {
    cache_lock[me] == 0 ->
    head[me] = NIL; /* Open */
    is_open[me] = 1
  };
living:
end_living:
  do
  :: atomic { cache_lock[me] == 0 -> cache_lock[me] = 1; busy++ };
     if
     :: ACall(1)
#if SLABS == 2
     :: ACall(2)
#endif
     fi;
     d_step { RELEASE(cache_lock[me]); busy-- }
#ifdef LEND
  :: atomic { owner[1] == me && (in_use[1] & 1) -> busy++ };
     ACQUIRE(cache_lock[me]);
     TryFreeLocally(1, 1);
     d_step { RELEASE(cache_lock[me]); busy-- }
#endif
  :: atomic { true -> busy++ };
     Close();
     atomic {
       registry_lock == 0 ->
       is_open[me] = 0;
       is_free[me] = 1;
       me = NIL;
       busy--
     };
#ifdef ONE_LIFE
     break
#else
     goto end_without_cache
#endif
  od
}

/* Of all blocks `b` at once. While a batch holds them, they are in use. */
inline MarkWord(s, b, word, bit_of_word) {
  /* CheckIsBlock, and the addition to the word. */
  atomic {
    (in_use[s] & b) == b ->
    TOUCH(s);
    busy++;
    in_use[s] = in_use[s] & ~b;
    assert((word & b) == 0 && (freed[s] & b) == 0);
    taken = word;
    word = word | b
  };
  if
  :: taken != 0 -> skip /* kAdded */
  :: else ->
     d_step {
       TOUCH(s);
       assert((summary[s] & bit_of_word) == 0);
#ifdef FIRST_BY_WORD
       taken = 0;
#else
       taken = summary[s];
#endif
       summary[s] = summary[s] | bit_of_word;
       if
       :: taken == 0 -> assert(!token[s]); token[s] = 1 /* kFirst */
       :: else
       fi
     };
     if
     :: taken == 0 -> PassToken(s)
     :: else
     fi
  fi;
  d_step { taken = 0; busy-- }
}

/* A thread that frees blocks which it does not own. */
proctype Freer() {
  byte taken, to, old_head;
  bit done;
end_at_rest:
  do
  :: MarkWord(1, 1, word0[1], 1)
#if SLAB_BLOCKS == 3
  :: MarkWord(1, 2, word0[1], 1)
  :: MarkWord(1, 3, word0[1], 1)
#endif
#if SLAB_BLOCKS >= 2
  :: MarkWord(1, 4, word1[1], 2)
#endif
#if SLABS == 2
  :: MarkWord(2, 1, word0[2], 1)
#if SLAB_BLOCKS == 3
  :: MarkWord(2, 2, word0[2], 1)
  :: MarkWord(2, 3, word0[2], 1)
#endif
#if SLAB_BLOCKS >= 2
  :: MarkWord(2, 4, word1[2], 2)
#endif
#endif
  od
}

/* Tidy() of any open cache. */
proctype Maintenance() {
  byte me, current, following, others, taken, to, old_head;
  bit done;
end_asleep:
  do
  :: atomic {
       registry_lock == 0 && ANY(is_open) ->
       registry_lock = 1;
       busy++;
       if
       :: is_open[1] -> me = 1
#if THREADS == 2
       :: is_open[2] -> me = 2
#endif
       fi
     };
     if
     :: atomic { cache_lock[me] == 0 -> cache_lock[me] = 1 };
        if
        :: head[me] == CLOSED
        :: else ->
           DrainPendingIfAny();
           ReturnEmptySlabs()
        fi;
        RELEASE(cache_lock[me])
     :: cache_lock[me] != 0
     fi;
     d_step { me = NIL; RELEASE(registry_lock); busy-- }
  od
}

#ifdef LEND
/* LendSlabs() of any open cache, by another thread. */
proctype Borrower() {
  byte me, current, following, others, taken, to, old_head;
  bit done;
end_content:
  do
  :: atomic {
       ANY(is_open) ->
       busy++;
       if
       :: is_open[1] -> me = 1
#if THREADS == 2
       :: is_open[2] -> me = 2
#endif
       fi
     };
     if
     :: atomic { cache_lock[me] == 0 -> cache_lock[me] = 1 };
        if
        :: head[me] == CLOSED
        :: else ->
           DrainPendingIfAny();
           ReturnEmptySlabs();
#ifndef LENT_UNLOCKED
           ACQUIRE(orphans_lock);
#endif
           Lend(1);
#if SLABS == 2
           Lend(2);
#endif
#ifndef LENT_UNLOCKED
           RELEASE(orphans_lock)
#endif
        fi;
        RELEASE(cache_lock[me])
     :: cache_lock[me] != 0
     fi;
     d_step { me = NIL; busy-- }
  od
}
#endif

/* How often an open cache's stack holds `s`. Two slabs at most: a longer stack
 * is a loop. */
#define IS_AT(c, s) \
  (is_open[c] && (head[c] == s || \
                  (head[c] != NIL && head[c] != CLOSED && next[head[c]] == s)))
#if THREADS == 2
#define STACKS_WITH(s) (IS_AT(1, s) + IS_AT(2, s))
#define NO_LOCK_IS_HELD \
  (!registry_lock && !orphans_lock && !cache_lock[1] && !cache_lock[2])
#else
#define STACKS_WITH(s) (IS_AT(1, s))
#define NO_LOCK_IS_HELD (!registry_lock && !orphans_lock && !cache_lock[1])
#endif

#define AT_REST(s) \
  (returned[s] || \
   ((word0[s] != 0) == ((summary[s] & 1) != 0) && \
    (word1[s] != 0) == ((summary[s] & 2) != 0) && \
    (summary[s] != 0) == token[s] && token[s] == STACKS_WITH(s) && \
    list[s] != NIL && (list[s] == ORPHANS || owner[s] == list[s]) && \
    (list[s] != ORPHANS || (owner[s] == NIL && freed[s] != ALL))))

#define MARKED(s) (word0[s] | word1[s])
#define ACCOUNTED(s) \
  ((in_use[s] | MARKED(s) | freed[s]) == ALL && \
   (in_use[s] & MARKED(s)) == 0 && (in_use[s] & freed[s]) == 0 && \
   (MARKED(s) & freed[s]) == 0 && \
   (list[s] != NIL || freed[s] == ALL))

proctype Check() {
end:
  do
  :: d_step { busy == 0 -> assert(AT_REST(1)) }
  :: d_step { NO_LOCK_IS_HELD -> assert(ACCOUNTED(1)) }
#if SLABS == 2
  :: d_step { busy == 0 -> assert(AT_REST(2)) }
  :: d_step { NO_LOCK_IS_HELD -> assert(ACCOUNTED(2)) }
#endif
  od
}

init {
  atomic {
    /* The first cache has the slabs, and every block is in use. */
    owner[1] = 1; list[1] = 1; in_use[1] = ALL;
#if SLABS == 2
    owner[2] = 1; list[2] = 1; in_use[2] = ALL;
#endif
    is_open[1] = 1;
    run Thread(1);
#if THREADS == 2
    head[2] = CLOSED;
    is_free[2] = 1;
    run Thread(NIL);
#endif
    run Freer();
#if FREERS == 2
    run Freer();
#endif
#ifndef NO_MAINTENANCE
    run Maintenance();
#endif
#ifdef LEND
    run Borrower();
#endif
    run Check()
  }
}
