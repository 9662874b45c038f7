/*
 * How a call that must not find the maintenance thread ends it.
 *
 * Models:
 *   tcache/maintenance_thread.{h,cc}  TryBegin, NoteBegun, NoteFailure, IsToEnd, Hold,
 *                                     Release
 *   tcache/maintenance.cc             MaintainOnSlowPath, and Maintain as far as it ends
 * Two slow paths start the thread whenever there is none that is wanted, which may fail;
 * the signal lets one of them in at a time. Two calls hold it, any number of times, and
 * at once. The thread ends when it is to, or when it has nothing to do.
 *
 * Abstracted: time, and what wakes the thread (Hold() does so again and again). TryBegin
 * waits for the one before as long as it takes; the code gives up after a millisecond.
 * Operations are one step, and sequentially consistent. The kernel has a thread from the
 * moment of its creation until some time after it has last looked.
 *
 * Property: while a call is made for which the thread is held, the kernel has none.
 *
 * Mutants, each of which must fail:
 *   ASK_BEFORE_BEGIN  TryBegin asks whether it is held, and then says that it begins
 *   LOOK_BEFORE_HOLD  Hold looks for a thread, and then says that it is held
 *   NO_WAIT_FOR_OLD   TryBegin does not wait until the one before is gone
 *   HOLD_AS_FLAG      holds are not counted
 */

#define NONE 0
#define BEGINNING 1
#define FIRST 2 /* Ids of threads: FIRST and FIRST + 1, in turn. */

bit awake;          /* The signal is kAwake: nobody else starts one. */
byte id = NONE;
byte holds;
bool exists[2];     /* By id. */
byte next_id;

#define ANY_EXISTS (exists[0] || exists[1])

/* The thread of this id, again and again. */
proctype Thread(byte me) {
  do
  :: exists[me] ->
     id = FIRST + me;
     do
     :: holds != 0 -> break /* It is to end. */
     :: break               /* It has nothing to do. */
     od;
     awake = 0;             /* Another may be started from here on. */
     exists[me] = false     /* And now it is gone. */
  od
}

init {
  atomic {
    run Thread(0);
    run Thread(1)
  }
}

active [2] proctype SlowPath() {
  byte before;
  do
  :: holds == 0 ->
     atomic { !awake -> awake = 1 }
#ifndef NO_WAIT_FOR_OLD
     before = id;
     if
     :: before >= FIRST -> !exists[before - FIRST]
     :: else
     fi;
#endif
#ifdef ASK_BEFORE_BEGIN
     if
     :: holds != 0 -> awake = 0; goto again
     :: else
     fi;
     id = BEGINNING;
#else
     id = BEGINNING;
     if
     :: holds != 0 -> id = NONE; awake = 0; goto again
     :: else
     fi;
#endif
     if
     :: id = NONE; awake = 0 /* It could not be started. */
     :: atomic {
          !exists[next_id] ->
          exists[next_id] = true;
          next_id = 1 - next_id
        }
     fi;
again: skip
  od
}

active [2] proctype Call() {
  byte seen;
  do
  ::
#ifdef LOOK_BEFORE_HOLD
     do
     :: seen = id;
        if
        :: seen == NONE -> break
        :: seen >= FIRST && !exists[seen - FIRST] -> break
        :: else
        fi
     od;
     holds++;
#else
#ifdef HOLD_AS_FLAG
     holds = 1;
#else
     holds++;
#endif
     do
     :: seen = id;
        if
        :: seen == NONE -> break
        :: seen >= FIRST && !exists[seen - FIRST] -> break
        :: else
        fi
     od;
#endif
     assert(!ANY_EXISTS);
     skip;                 /* The call. */
     assert(!ANY_EXISTS);
#ifdef HOLD_AS_FLAG
     holds = 0
#else
     holds--
#endif
  od
}
