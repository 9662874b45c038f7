/*
 * A lock that its owner takes without a locked instruction.
 *
 * Models tcache/biased_lock.{h,cc}: Enter, Leave, AcquireAsOwner,
 * TryAcquireAsOwner, ReleaseAsOwner, Acquire, TryAcquire, Release, AwaitOwner,
 * GiveBias, AcquireAndEndBias, AcquireForFork, ResetAfterFork. The lock inside is one
 * step (tests/model/lock.pml has its own).
 *
 * The owner has a store buffer, as on x86: its plain stores reach memory later,
 * in order; its own loads see them at once; locked instructions empty it, and so
 * does FenceAllThreads() at some moment of the call. The others' stores that
 * matter follow, or are followed by, a locked instruction or that call.
 *
 * Two others take the lock in any number of rounds, one of which waits, and one
 * of which only tries. The owner may go: then the next one comes. At a fork it
 * vanishes wherever it is, with what is in its buffer; the others may go on.
 *
 * Abstracted: orders weaker than x86's; the checks of a hint before TryAcquire.
 *
 * Properties: one holder at most; what one holder stored the next one sees,
 * whatever way each came; no deadlock; where nobody is at it, the bias is with
 * the owner, if there is one.
 *
 * Mutants, each of which must fail:
 *   NO_FENCE           the others have a fence of their own alone
 *   LOOK_BEFORE_ENTER  the owner asks for the bias, then says it is inside
 *   NO_WAIT            Acquire does not wait for the owner
 *   TRY_IS_BLIND       TryAcquire does not ask whether the owner is inside
 *   BIAS_BEFORE_WORK   the others give the bias back, then work
 *   BIAS_IS_KEPT       Release gives no bias back
 *   END_KEEPS_BIAS     after EndBias the bias is given back all the same
 *   LEAVE_BEFORE_WORK  the owner leaves, then works
 *   FORK_KEEPS_INSIDE  the child believes that the owner is where it was
 *   FORK_DOES_NOT_WAIT the fork takes the lock inside, and has the owner fenced
 */

#define INSIDE 0
#define WORK 1 /* what the lock guards */
#define VARIABLES 2
#define MOST_STORES 6

byte memory[VARIABLES];
/* The owner's buffer: the oldest store first. */
chan stores = [MOST_STORES] of { byte, byte };
typedef View { byte value[VARIABLES]; byte waiting[VARIABLES] }
View view;

bit held;  /* the lock inside */
bit has_bias, is_owned;
byte holders;
byte last; /* what the last holder left */
bit has_vanished; /* the owner, in the child of a fork */
byte passing; /* others between taking the lock inside and giving it back */

#define SEEN(variable) \
  (view.waiting[variable] -> view.value[variable] : memory[variable])

inline Store(variable, what) {
  atomic {
    view.value[variable] = what;
    view.waiting[variable]++;
    stores!variable, what
  }
}

/* The oldest store reaches memory. */
inline Commit() {
  stores?variable, what;
  memory[variable] = what;
  view.waiting[variable]--;
  if
  :: view.waiting[variable] == 0 -> view.value[variable] = 0
  :: else
  fi;
  variable = 0;
  what = 0
}

inline EmptyBuffer() {
  atomic {
    do
    :: nempty(stores) -> Commit()
    :: empty(stores) -> break
    od
  }
}

proctype Buffer() {
  byte variable, what;
end:
  do
  :: atomic { nempty(stores) -> Commit() }
  od
}

/* The work: one holder, who sees what the one before it stored. */
inline OwnerWorks() {
  atomic { holders++; assert(holders == 1 && SEEN(WORK) == last) };
  atomic { last = 1 - last; Store(WORK, last) };
  atomic { assert(holders == 1); holders-- }
}
inline OtherWorks() {
  atomic { holders++; assert(holders == 1 && memory[WORK] == last) };
  atomic { last = 1 - last; memory[WORK] = last };
  atomic { assert(holders == 1); holders-- }
}

inline Leave() { Store(INSIDE, 0) }

proctype Owner() {
  byte variable, what;
  bit entered, has_it;
  {
end_at_rest:
  do
  /* AcquireAsOwner, or TryAcquireAsOwner, which does not wait. */
  :: is_owned ->
#ifdef LOOK_BEFORE_ENTER
     entered = has_bias;
     Store(INSIDE, 1);
#else
     Store(INSIDE, 1);
     entered = has_bias;
#endif
     if
     :: entered -> has_it = 1
     :: else ->
        Leave();
        if
        :: atomic { !held -> held = 1 }; EmptyBuffer(); has_it = 1
        :: held -> EmptyBuffer() /* TryAcquireAsOwner fails. */
        fi
     fi;
#ifdef LEAVE_BEFORE_WORK
     if
     :: entered -> Leave()
     :: else
     fi;
#endif
     if
     :: has_it -> OwnerWorks()
     :: else
     fi;
     /* ReleaseAsOwner. */
     if
     :: entered ->
#ifndef LEAVE_BEFORE_WORK
        Leave()
#else
        skip
#endif
     :: has_it && !entered -> EmptyBuffer(); held = 0
     :: else
     fi;
     atomic { has_it = 0; entered = 0 }
  /* The thread ends: AcquireAndEndBias, and Release. It is not inside. */
  :: atomic { is_owned && !held -> held = 1; passing++ };
     EmptyBuffer();
     is_owned = 0;
     OtherWorks();
#ifndef END_KEEPS_BIAS
     has_bias = 0;
#endif
     atomic { held = 0; passing-- }
  /* GiveBias. */
  :: atomic { !is_owned && !held -> held = 1; passing++ };
     EmptyBuffer();
     is_owned = 1;
     has_bias = 1;
     atomic { held = 0; passing-- }
  od
  } unless { has_vanished }
}

/* One fork, of which the child is what goes on; its caller is none of the others. */
proctype Fork() {
  byte variable, what;
  atomic { !held -> held = 1; passing++ };
  has_bias = 0;
  EmptyBuffer();
#ifndef FORK_DOES_NOT_WAIT
  memory[INSIDE] == 0;
#endif
  atomic {
    has_vanished = 1;
    do
    :: nempty(stores) -> stores?variable, what; view.waiting[variable]--
    :: empty(stores) -> break
    od;
    variable = 0;
    what = 0;
    view.value[INSIDE] = 0;
    view.value[WORK] = 0;
    /* The lock guards what is whole. */
    assert(holders == 0 && memory[WORK] == last);
    /* ResetAfterFork. */
#ifndef FORK_KEEPS_INSIDE
    memory[INSIDE] = 0;
#endif
    has_bias = is_owned;
    held = 0;
    passing--
  }
}

inline Release() {
#ifndef BIAS_BEFORE_WORK
#ifndef BIAS_IS_KEPT
  has_bias = is_owned;
#endif
#endif
  atomic { held = 0; passing-- }
}

proctype Other(bit waits) {
  byte variable, what;
  bit sees_owner;
end_at_rest:
  do
  :: atomic { !held -> held = 1; passing++ };
     if
     :: has_bias ->
        has_bias = 0;
        /* FenceAllThreads. */
#ifndef NO_FENCE
        EmptyBuffer();
#endif
        if
        :: waits ->
           /* AwaitOwner. */
#ifndef NO_WAIT
           memory[INSIDE] == 0
#else
           skip
#endif
        :: else ->
           sees_owner = memory[INSIDE];
#ifdef TRY_IS_BLIND
           sees_owner = 0
#endif
        fi
     :: else
     fi;
#ifdef BIAS_BEFORE_WORK
     has_bias = is_owned;
#endif
     if
     :: sees_owner -> skip
     :: else -> OtherWorks()
     fi;
     sees_owner = 0;
     Release()
  od
}

proctype Check() {
end:
  do
  :: d_step { passing == 0 -> assert(has_bias == is_owned) }
  od
}

init {
  atomic {
    run Buffer();
    run Owner();
    run Other(1);
    run Other(0);
    run Fork();
    run Check()
  }
}
