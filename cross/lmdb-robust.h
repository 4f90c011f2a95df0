/* Put before every C file of a musl build (`-include`), for the sake of one of them: LMDB's mdb.c.
 *
 * LMDB asks for a robust lock, one that another process can take over from a writer that was killed. A board's kernel has
 * them. qemu-user has not (no get_robust_list), musl says ENOSYS, and LMDB refuses to open. Its own switch,
 * MDB_USE_ROBUST=0, would give the lock up on the boards as well: a writer killed while `larder ls` looks on would leave
 * the next writer waiting for ever. So we ask, and go without only where the kernel says that it cannot. */
#if defined(__linux__) && !defined(__ASSEMBLER__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* As mdb.c does: the first system header that is read decides for the whole file. */
#endif
#include <errno.h>
#include <pthread.h>

static inline int larder_mutexattr_setrobust(pthread_mutexattr_t *attributes, int robust)
{
    int error = pthread_mutexattr_setrobust(attributes, robust);
    return error == ENOSYS ? 0 : error;
}
#define pthread_mutexattr_setrobust larder_mutexattr_setrobust
#endif
