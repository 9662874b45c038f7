// Which forms of C++'s operator new and delete are Quarry's, and which the program's.
//
// A program may replace any of them, and most are by default a call of another one:
//
//   new(n, nothrow)     -> new(n)         delete(p, n)        -> delete(p)
//   new[](n)            -> new(n)         delete(p, nothrow)  -> delete(p)
//   new[](n, nothrow)   -> new[](n)       delete[](p)         -> delete(p)
//                                         delete[](p, n)      -> delete[](p)
//                                         delete[](p, nothrow)-> delete[](p)
//
// and the same with an alignment. So one that replaces the first of these alone, to
// count, to have a header before each block or a heap of its own, gets all. Quarry's
// forms that end in a jump anyway make that call. The others look first whether what
// they would call is Quarry's own: new(n, nothrow), which has to catch; and the sized
// deletes, which would lose the size. Those look once in each thread that has a cache,
// and at each call in a program that has any basic form of its own.
//
// An executable that is not position-independent and takes the address of a form counts
// as one that has that form, since the address is in it. It gets the same blocks, by way
// of that form, but sizes are not checked.
//
// All are weak: in a program that Quarry is linked into as an archive, the program's
// definition is the only one then.
#ifndef QUARRY_ALLOC_OPERATOR_FORMS_H_
#define QUARRY_ALLOC_OPERATOR_FORMS_H_

#include "absl/base/attributes.h"
#include "alloc/quarry.h"

#define QUARRY_REPLACEABLE QUARRY_PUBLIC ABSL_ATTRIBUTE_WEAK

namespace quarry {

// Whether `form`, as the process has it, is `own`, the library's definition.
template <typename Form>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool IsOwn(Form* form, Form* own) {
  // To the compiler they are one function.
  asm("" : "+r"(own));
  return form == own;
}

}  // namespace quarry

#endif  // QUARRY_ALLOC_OPERATOR_FORMS_H_
