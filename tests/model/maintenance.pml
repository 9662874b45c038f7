/*
 * How the maintenance thread learns of work.
 *
 * Models:
 *   arena/maintenance_signal.{h,cc}  NoteWork, TryStart, TurnOff, FallAsleep,
 *                                    StayAwake, WaitForWork, ResetAfterFork
 *   tcache/maintenance.cc            Maintain, Sleep, MaintenanceTick as far as
 *                                    it asks what is left, MaintainOnSlowPath
 * Work is made in three ways:
 *   DIRTY    under a lock that the look takes: runs of an arena, huge blocks
 *   PENDING  by a sequentially consistent push on a cache's stack
 *   CACHED   by a cache's owner under its biased lock: depots, and page runs. The
 *            store waits in the owner's buffer until some later time, and the state
 *            is loaded past it; but the look has all threads fenced first.
 * Two threads make work of any kind, any number of times, and start the thread
 * when that is wanted, which may fail. A fork may come at any time: the child
 * has the memory, but neither the thread nor what other threads were about to
 * do; one thread of it goes on.
 *
 * Abstracted: time (a tick may find any work due, or none); locked operations
 * are one step, and sequentially consistent; of the store buffer, only the one
 * store that matters (on x86 all else is a locked operation or follows one).
 *
 * Properties: while no thread is on the way to note work, start the thread or
 * fall asleep, work is left only if the thread is awake or wanted, or was
 * turned off; it runs once at most; it is never in the futex with a state of kAwake
 * that nobody is about to act on.
 * In the child of a fork this holds when no thread was on such a way at the
 * fork; what vanished threads were about to note waits for the next NoteWork.
 *
 * Mutants, each of which must fail:
 *   SLEEP_WITHOUT_LOOKING  FallAsleep, then WaitForWork at once
 *   LOOK_BEFORE_ASLEEP     the look, then FallAsleep
 *   LOOK_WITHOUT_FENCE     the look has no thread fenced
 *   NOTE_BEFORE_WORK       a room calls NoteWork, then makes the work
 *   NO_WAKE                NoteWork changes the state, and wakes nobody
 *   WAIT_WITHOUT_VALUE     the futex does not compare the state
 *   START_IN_TWO_STEPS     TryStart loads, then stores
 *   FORK_FORGETS           ResetAfterFork makes every state kNoThread
 *   FORK_AT_ANY_MOMENT     the last exception above is none: a known limit
 */

#define NO_THREAD 0
#define WANTED 1
#define AWAKE 2
#define ASLEEP 3
#define OFF 4

byte state = NO_THREAD;
bit dirty, pending, cached; /* work */
bit buffered[2];          /* `cached` in the store buffer of a room */
bit sleeping;             /* the thread is in the futex */
byte threads;             /* that run Maintain() */
byte busy;                /* rooms in the midst of something */
bit falling;              /* the thread is between FallAsleep and the wait */
bit epoch;                /* the thread of an older one has vanished */

#define ALIVE (mine == epoch)

/* A store that waited reaches memory. */
inline Flush(room) {
  if
  :: buffered[room] -> buffered[room] = 0; cached = 1
  :: else
  fi
}

inline NoteWork() {
  seen = state;
  if
  :: seen == NO_THREAD ->
     atomic { if :: state == NO_THREAD -> state = WANTED :: else fi }
  :: seen == ASLEEP ->
     atomic {
       if
       :: state == ASLEEP -> state = AWAKE
       :: else -> seen = NO_THREAD
       fi
     };
#ifndef NO_WAKE
     if
     :: seen == ASLEEP -> sleeping = 0
     :: else
     fi
#endif
  :: else
  fi;
  seen = 0
}

inline MakeWork() {
  if
  :: dirty = 1
  :: pending = 1
  :: buffered[room] = 1
  fi
}

/* After a fork it goes on no more: each of its steps asks whether it lives. */
proctype Maintain(bit mine) {
  bit left;
end_awake:
  do
  :: ALIVE ->
     /* A tick, of which each step is one lock. */
     left = 0;
     if
     :: atomic { ALIVE && pending -> pending = 0; dirty = 1 }
     :: atomic { ALIVE && !pending }
     fi;
     if
     :: atomic { ALIVE && cached -> cached = 0; dirty = 1 }
     :: atomic { ALIVE && cached -> left = 1 }
     :: atomic { ALIVE && !cached }
     fi;
     if
     :: atomic { ALIVE && dirty -> dirty = 0 }
     :: atomic { ALIVE && dirty -> left = 1 }
     :: atomic { ALIVE && !dirty }
     fi;
     if
     :: left -> goto end_awake
     :: else
     fi;

     /* Sleep. */
#ifndef LOOK_BEFORE_ASLEEP
     atomic { ALIVE -> falling = 1; state = ASLEEP };
#ifndef LOOK_WITHOUT_FENCE
     /* In TidySlabs(): each owner's stores leave its buffer at some moment of it. */
     atomic { ALIVE -> Flush(0) };
     atomic { ALIVE -> Flush(1) };
#endif
#else
     atomic { ALIVE -> falling = 1 };
#endif
#ifndef SLEEP_WITHOUT_LOOKING
     if
     :: atomic { ALIVE && pending -> pending = 0; dirty = 1 }
     :: atomic { ALIVE && !pending }
     fi;
     if
     :: atomic { ALIVE && cached -> left = 1 }
     :: atomic { ALIVE && !cached }
     fi;
     if
     :: atomic { ALIVE && dirty -> left = 1 }
     :: atomic { ALIVE && !dirty }
     fi;
#endif
#ifdef LOOK_BEFORE_ASLEEP
     atomic { ALIVE -> state = ASLEEP };
#endif
     if
     :: left ->
        atomic {
          ALIVE ->
          falling = 0;
          if :: state == ASLEEP -> state = AWAKE :: else fi
        }
     :: else ->
        /* WaitForWork. */
        if
        :: atomic { ALIVE && state == ASLEEP -> sleeping = 1; falling = 0 };
           /* A wait that ends for no reason asks the state again, and waits. */
           atomic { ALIVE && !sleeping }
#ifdef WAIT_WITHOUT_VALUE
        :: atomic { ALIVE && state != ASLEEP -> sleeping = 1; falling = 0 };
           atomic { ALIVE && !sleeping }
#else
        :: atomic { ALIVE && state != ASLEEP -> falling = 0 }
#endif
        fi
     fi
  od
}

proctype Room(byte room) {
  byte seen;
end_at_rest:
  do
  /* The processor gets to it at any time. */
  :: atomic { buffered[room] -> Flush(room) }
  :: busy++;
#ifdef NOTE_BEFORE_WORK
     NoteWork();
     MakeWork();
#else
     MakeWork();
     NoteWork();
#endif
     busy--
  :: atomic { state == WANTED -> busy++ };
     /* TryStart. */
#ifdef START_IN_TWO_STEPS
     seen = state;
     state = AWAKE;
#else
     atomic {
       seen = state;
       if :: seen == WANTED -> state = AWAKE :: else fi
     };
#endif
     if
     :: seen == WANTED ->
        if
        :: atomic { threads++; assert(threads == 1); run Maintain(epoch) }
        :: state = OFF /* The thread could not be made. */
        fi
     :: else
     fi;
     seen = 0;
     busy--
  od
}

/* One fork, of which the child is what goes on. fork() takes all locks, and its
 * caller's stores have left their buffer. */
proctype Fork() {
#ifdef FORK_AT_ANY_MOMENT
  atomic { busy == 0 ->
#else
  atomic { busy == 0 && !falling ->
#endif
    epoch = 1;
    threads = 0;
    sleeping = 0;
    falling = 0;
    Flush(0);
    Flush(1);
    /* ResetAfterFork. */
    if
#ifdef FORK_FORGETS
    :: true -> state = NO_THREAD
#else
    :: state == NO_THREAD || state == ASLEEP -> state = NO_THREAD
    :: state == WANTED || state == AWAKE -> state = WANTED
    :: state == OFF
#endif
    fi
  }
}

#define WORK (dirty || pending || cached || buffered[0] || buffered[1])
#define IS_SEEN_TO \
  (state == WANTED || state == OFF || \
   (state == AWAKE && threads == 1 && !sleeping))

proctype Check() {
end:
  do
  :: d_step { busy == 0 && !falling -> assert(!WORK || IS_SEEN_TO) }
  od
}

init {
  atomic {
    run Room(0);
    run Room(1);
    run Fork();
    run Check()
  }
}
