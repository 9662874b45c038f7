/*
 * The lock on one futex word.
 *
 * Models arena/lock.h and lock.cc: Seize, AcquireContended, Yield, WakeOne; and
 * the kernel's futex: a wait compares the word and sleeps in one step, and may
 * end for no reason; a wake ends the wait of one sleeper.
 *
 * Three threads acquire and release in any number of rounds, and each may stop
 * for ever between two. Spinning is a choice: it seizes a free lock or gives up
 * at any time. TryAcquire and AcquireForFork are its parts.
 *
 * Abstracted: memory orders (every step is sequentially consistent; the word's
 * operations are read-modify-writes).
 *
 * Properties: one holder at most; no deadlock, which is to say that no thread
 * sleeps for ever while the others have stopped; a free lock says that nobody
 * holds it.
 *
 * Mutants, each of which must fail:
 *   WAITER_SEIZES         after a wait the word says kHeld, not kContended
 *   WAIT_WITHOUT_VALUE    the wait does not compare the word
 *   WAKE_BEFORE_FREE      Yield wakes, then frees
 *   SEIZE_IN_TWO_STEPS    Seize loads, then stores
 */

#define FREE 0
#define HELD 1
#define CONTENDED 2

byte state = FREE;
byte holders;
byte sleepers; /* in the futex */
byte wakes;    /* sleepers whose wait has ended, but who do not run yet */

/* `has_it` is its result. */
inline Seize() {
#ifdef SEIZE_IN_TWO_STEPS
  if
  :: state == FREE -> state = HELD; has_it = 1
  :: state != FREE
  fi
#else
  atomic {
    if
    :: state == FREE -> state = HELD; has_it = 1
    :: else
    fi
  }
#endif
}

inline WakeOne() {
  atomic {
    if
    :: sleepers > 0 -> sleepers--; wakes++
    :: else
    fi
  }
}

inline Wait() {
  atomic {
    if
#ifdef WAIT_WITHOUT_VALUE
    :: true -> sleepers++
#else
    :: state == CONTENDED -> sleepers++
    :: else -> goto awake
#endif
    fi
  };
  atomic { wakes > 0 -> wakes-- }
awake:
  skip
}

active [3] proctype Thread() {
  bit has_it;
  byte old;
  do
  :: break
  :: true ->
     /* Acquire; AcquireContended's spin seizes a lock that it sees free. */
     do
     :: !has_it -> Seize(); if :: has_it -> break :: else fi
     :: !has_it -> break
     od;
     do
     :: has_it -> break
     :: else ->
#ifdef WAITER_SEIZES
        Seize();
        if
        :: has_it -> break
        :: else
        fi;
        atomic { if :: state == HELD -> state = CONTENDED :: else fi };
#else
        atomic { old = state; state = CONTENDED };
        if
        :: old == FREE -> has_it = 1; break
        :: else
        fi;
#endif
        Wait()
     od;

     holders++;
     assert(holders == 1 && state != FREE);
     holders--;

     /* Release. */
     has_it = 0;
#ifdef WAKE_BEFORE_FREE
     if :: state == CONTENDED -> WakeOne() :: else fi;
     state = FREE;
#else
     atomic { old = state; state = FREE };
     if
     :: old == CONTENDED -> WakeOne()
     :: else
     fi;
#endif
     old = 0
  od
}

/* Ends a wait for no reason, when nobody else would: at most once. */
active proctype Kernel() {
  if
  :: atomic { sleepers > 0 -> sleepers--; wakes++ }
  :: true
  fi
}
